"""The engine contract, on ONNX Runtime."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import BundleError, EngineError, MissingExtraError
from diver_trt.runtime import onnx_engine
from diver_trt.runtime.onnx_engine import OnnxEngine, OnnxSession
from diver_trt.runtime.recoverer import Recoverer


def test_a_carry_feeds_each_output_to_the_next_run(digits: Bundle) -> None:
    generator = np.random.default_rng(0)
    values = {
        "latent": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "anchor": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "modulation": (0.1 * generator.standard_normal((2, 2, digits.modulation_width))).astype(np.float32),
        "coefficients": np.array([4, 4, 4, 1, 0.9, 0.1, 0.1, -3, -2], dtype=np.float32),
    }
    carried = OnnxEngine(digits, "denoiser", 2, carry=("next_latent", "latent"))
    plain = OnnxEngine(digits, "denoiser", 2)
    for name, value in values.items():
        carried.write(name, value)
        plain.write(name, value)
    addresses = set()
    for _ in range(5):
        carried.run()
        plain.run()
        np.testing.assert_array_equal(carried.read("next_latent"), plain.read("next_latent"))
        addresses.add(carried.read("next_latent").ctypes.data)
        plain.write("latent", plain.read("next_latent"))
    assert len(addresses) == 2
    carried.write("latent", values["latent"])
    carried.run()
    plain.write("latent", values["latent"])
    plain.run()
    np.testing.assert_array_equal(carried.read("next_latent"), plain.read("next_latent"))


def test_auto_falls_back_to_the_cpu_where_cuda_does_not_work(digits: Bundle) -> None:
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    with Recoverer(digits, engine="auto") as recoverer:
        assert recoverer.engine == "onnx"
    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider here .*pip install 'diver-trt\[gpu\]'"):
        Recoverer(digits, engine="onnx-cuda")


def test_an_unknown_engine_is_refused(digits: Bundle) -> None:
    with pytest.raises(EngineError, match="there is no engine 'tpu'; expected auto, onnx, onnx-cuda, rtx, trt"):
        Recoverer(digits, engine="tpu")


def test_without_onnxruntime_the_message_is_the_install_line(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, which is not installed; run `pip install 'diver-trt\[cpu\]'`"):
        OnnxSession(digits, 1).open("decoder")


def test_both_packages_together_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "version", lambda package: "1.30.0")
    with pytest.warns(RuntimeWarning, match=r"onnxruntime 1\.30\.0 and onnxruntime-gpu 1\.30\.0 are both installed .*pip uninstall"):
        onnx_engine.import_onnxruntime()


def test_a_half_removed_package_is_told_with_the_way_out(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(EngineError, match="half of it is missing, as after removing one of its two packages; run `pip uninstall"):
        OnnxSession(digits, 1).open("decoder")


def test_a_changed_file_is_the_bundles_fault_not_onnxruntimes(digits: Bundle, tmp_path: Path) -> None:
    shutil.copytree(digits.path, tmp_path / "copy")
    bundle = Bundle.open(tmp_path / "copy")
    data = bytearray((bundle.path / "decoder.onnx").read_bytes())
    data[-1000] ^= 255
    (bundle.path / "decoder.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx: SHA-256 is"):
        OnnxSession(bundle, 1).open("decoder")
