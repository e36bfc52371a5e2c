"""The engine contract, on ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.runtime import onnx_engine
from diver_trt.runtime.engine import Engine, open_engine, resolve_engine


@pytest.fixture
def decoder(digits: Bundle) -> Iterator[Engine]:
    engine = open_engine("onnx", digits, "decoder", batch=2)
    yield engine
    engine.close()


def random(engine: Engine, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((engine.batch, 4, 8, 8)).astype(np.float32)


def test_an_engine_computes_what_its_graph_does(decoder: Engine, digits: Bundle) -> None:
    latent = random(decoder, 0)
    decoder.write("latent", latent)
    decoder.run()
    session = onnxruntime.InferenceSession(digits.path / "decoder.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(decoder.read("image").astype(np.float32), session.run(None, {"latent": latent})[0], atol=1e-6)


def test_buffers_stay_where_they_are(decoder: Engine) -> None:
    decoder.write("latent", random(decoder, 0))
    decoder.run()
    address, first = decoder.read("image").ctypes.data, decoder.read("image").copy()
    decoder.write("latent", random(decoder, 1))
    decoder.run()
    assert decoder.read("image").ctypes.data == address
    assert not np.array_equal(decoder.read("image"), first)


def test_writing_copies(decoder: Engine) -> None:
    latent = random(decoder, 0)
    decoder.write("latent", latent)
    decoder.run()
    expected = decoder.read("image").copy()
    decoder.write("latent", latent)
    latent[:] = 0
    decoder.run()
    np.testing.assert_array_equal(decoder.read("image"), expected)


def test_a_carry_feeds_each_output_to_the_next_run(digits: Bundle) -> None:
    generator = np.random.default_rng(0)
    values = {
        "latent": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "anchor": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "modulation": (0.1 * generator.standard_normal((2, 2, digits.modulation_width))).astype(np.float32),
        "coefficients": np.array([4, 4, 4, 1, 0.9, 0.1, 0.1, -3, -2], dtype=np.float32),
    }
    carried = open_engine("onnx", digits, "denoiser", 2, carry=("next_latent", "latent"))
    plain = open_engine("onnx", digits, "denoiser", 2)
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 4, 8, 8), np.float16), r"latent: got float16\[2, 4, 8, 8\], but the engine was opened for float32\[2, 4, 8, 8\]"),
        (np.zeros((1, 4, 8, 8), np.float32), r"latent: got float32\[1, 4, 8, 8\], but the engine was opened for float32\[2, 4, 8, 8\]"),
    ],
)
def test_another_type_or_shape_is_refused(decoder: Engine, values: np.ndarray, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        decoder.write("latent", values)


def test_unknown_tensors_are_named(decoder: Engine) -> None:
    with pytest.raises(EngineError, match="the decoder has no input 'image'; expected latent"):
        decoder.write("image", np.zeros(1))
    with pytest.raises(EngineError, match="the decoder has no output 'latent'; expected image"):
        decoder.read("latent")


def test_a_closed_engine_says_so(decoder: Engine) -> None:
    decoder.close()
    decoder.close()
    for use in (decoder.run, lambda: decoder.read("image"), lambda: decoder.write("latent", random(decoder, 0))):
        with pytest.raises(EngineError, match="the decoder engine is closed"):
            use()


def test_auto_falls_back_to_the_cpu_where_cuda_does_not_work(digits: Bundle) -> None:
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    assert resolve_engine("auto", digits) == "onnx"
    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider here .* pip install 'diver-trt\[gpu\]'"):
        open_engine("onnx-cuda", digits, "decoder", 1)


def test_an_unknown_engine_is_refused(digits: Bundle) -> None:
    with pytest.raises(EngineError, match="there is no engine 'tpu'; expected auto, onnx, onnx-cuda"):
        resolve_engine("tpu", digits)


def test_without_onnxruntime_the_message_is_the_install_line(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, which is not installed; run `pip install 'diver-trt\[cpu\]'`"):
        open_engine("onnx", digits, "decoder", 1)
    with pytest.raises(MissingExtraError):
        resolve_engine("auto", digits)


def test_both_packages_together_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "version", lambda package: "1.30.0")
    with pytest.warns(RuntimeWarning, match=r"onnxruntime 1\.30\.0 and onnxruntime-gpu 1\.30\.0 are both installed .* pip uninstall"):
        onnx_engine.import_onnxruntime()
