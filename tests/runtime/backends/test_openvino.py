"""OpenVINO: the same bytes in every batch, what is kept between runs, and no telemetry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DeviceMemoryError, EngineError, MissingExtraError
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.recovered.run import recover
from diver_trt.runtime.backends import openvino as openvino_engine
from diver_trt.runtime.backends.openvino import OpenVinoSession, import_openvino
from diver_trt.runtime.cache import read_cached
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.session import engine_names
from tests.conftest import DISTILLED
from tests.runtime.python import run_python

QUICK = replace(PRESETS["matched"], steps=10, inherit_step=5, start_step=5, window=(5, 2))
BATCHES = (1, 2, 3, 4, 8, 9)
AVAILABLE = openvino_engine.available  # before tests/conftest.py replaces it


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that compiled networks are kept in, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diver-trt" / "openvino"


def recovered(bundle: Bundle, batch: int, recipe: Recipe = QUICK) -> NDArray[np.uint8]:
    """Nine images of random pixels, recovered."""
    generator = np.random.default_rng(1)
    size = bundle.image_size
    images = generator.integers(0, 256, (9, size, size, 3)).astype(np.uint8)
    labels = [number % bundle.num_classes for number in range(9)]
    with Recoverer(bundle, recipe, engine="openvino", batch=batch) as recoverer:
        assert (recoverer.engine, recoverer.batch) == ("openvino", batch)
        samples = recoverer(images, labels, keep_bad=True)
        return np.stack([sample.image for sample in samples])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_batch_changes_no_byte(
    digits: Bundle, eight_bit_digits: Bundle, precision: str
) -> None:
    bundle = {"fp32": digits, "int8": eight_bit_digits}[precision]
    expected = recovered(bundle, 9, Recipe())
    for batch in BATCHES:
        np.testing.assert_array_equal(recovered(bundle, batch, Recipe()), expected)


def test_the_batch_changes_no_bit_of_a_latent(random_bundle: Bundle) -> None:
    """Before rounding to pixels, and where the weights are as large as the values."""
    finals = {}
    generator = np.random.default_rng(1)
    start, anchor, noise = generator.standard_normal((3, 9, *random_bundle.latent_shape)).astype(
        np.float32
    )
    labels = [number % random_bundle.num_classes for number in range(9)]
    for batch in BATCHES:
        parts = []
        with Recoverer(random_bundle, QUICK, engine="openvino", batch=batch) as recoverer:
            for first in range(0, 9, batch):
                part = slice(first, first + batch)
                for _ in recoverer.denoise(start[part], anchor[part], noise[part], labels[part]):
                    pass
                parts.append(recoverer.latent[: len(labels[part])].copy())
        finals[batch] = np.concatenate(parts)
    for final in finals.values():
        np.testing.assert_array_equal(final, finals[9])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_number_of_threads_changes_no_byte(
    digits: Bundle,
    eight_bit_digits: Bundle,
    precision: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(openvino_engine, "available_cores", lambda count=threads: count)
        images.append(recovered({"fp32": digits, "int8": eight_bit_digits}[precision], 4))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def output_of(session: OpenVinoSession, network: NetworkName = "decoder") -> NDArray[Any]:
    engine = session.open(network)
    latent = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)
    engine.write("latent", latent)
    engine.run()
    image: NDArray[Any] = engine.read("image").copy()
    engine.close()
    return image


def test_a_network_is_compiled_once_and_computes_the_same_when_it_is_read_again(
    digits: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = recovered(digits, 4)
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == sorted(NETWORKS)
    core = import_openvino().Core

    def never(*_: object) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(core, "compile_model", never)
    np.testing.assert_array_equal(recovered(digits, 4), compiled)
    with pytest.raises(EngineError, match="it was compiled again"):
        recovered(digits, 5)


_DAMAGED_NETWORK = """
import sys
import numpy as np
from diver_trt.runtime.backends.openvino import import_openvino

core = import_openvino().Core()
network = core.import_model(sys.stdin.buffer.read(), "CPU")
request = network.create_infer_request()
latent = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)
sys.stdout.buffer.write(request.infer({"latent": latent})["image"].tobytes())
"""


def test_openvino_itself_would_compute_with_a_damaged_network(digits: Bundle, cache: Path) -> None:
    """Why what is kept has a hash: without this, the next test would prove nothing.

    In a process of its own, which the damage may crash.
    """
    expected = output_of(OpenVinoSession(digits, 1))
    (path,) = cache.iterdir()
    payload = bytearray(path.read_bytes()[32:])
    middle = len(payload) // 2
    payload[middle : middle + 2000] = bytes(byte ^ 0x55 for byte in payload[middle : middle + 2000])
    command = [sys.executable, "-c", _DAMAGED_NETWORK]
    done = subprocess.run(command, input=payload, capture_output=True, check=False)
    refused = done.returncode > 0
    assert not refused, done.stderr.decode()
    assert done.stdout != expected.tobytes()


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda content: content[: len(content) // 2], lambda content: b""],
    ids=["flipped", "cut", "empty"],
)
def test_a_damaged_file_is_compiled_again(digits: Bundle, cache: Path, damage: Any) -> None:
    session = OpenVinoSession(digits, 1)
    expected = output_of(session)
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(output_of(session), expected)
    assert read_cached(path) is not None
    np.testing.assert_array_equal(output_of(session), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such permissions")
@pytest.mark.parametrize("place", ["writable by others", "a FIFO", "a folder", "not a network"])
def test_what_is_not_the_users_own_file_is_not_read(
    digits: Bundle, cache: Path, place: str
) -> None:
    from hashlib import sha256

    session = OpenVinoSession(digits, 1)
    expected = output_of(session)
    (path,) = cache.iterdir()
    if place == "writable by others":
        path.chmod(0o666)
    elif place == "not a network":  # as after a new driver: whole, and OpenVINO refuses it
        path.write_bytes(sha256(b"x" * 1000).digest() + b"x" * 1000)
    else:
        path.unlink()
        os.mkfifo(path) if place == "a FIFO" else path.mkdir()
    np.testing.assert_array_equal(output_of(session), expected)
    if place != "a folder":
        assert path.is_file()
        assert not path.stat().st_mode & 0o022


def test_without_a_place_to_write_nothing_is_kept(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    output_of(OpenVinoSession(digits, 1))
    assert (tmp_path / "file").read_text() == ""


def test_a_large_network_is_not_kept_on_the_cpu(
    digits: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "CACHED_ON_CPU_BYTES", 1000)
    output_of(OpenVinoSession(digits, 1))
    assert not cache.exists()


def test_another_version_or_setting_is_another_file(
    digits: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_of(OpenVinoSession(digits, 1))
    monkeypatch.setattr(openvino_engine, "available_cores", lambda: 7)
    output_of(OpenVinoSession(digits, 1))
    monkeypatch.setattr(import_openvino(), "__version__", "2027.1")
    output_of(OpenVinoSession(digits, 1))
    assert len(list(cache.iterdir())) == 3


def test_the_telemetry_is_never_imported(tmp_path: Path) -> None:
    code = """
import sys
from diver_trt.runtime.backends.openvino import import_openvino
import_openvino()
assert "openvino" in sys.modules
found = [name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"]
assert not found, found
import openvino_telemetry  # a program that wants it can still have it
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert list(tmp_path.rglob("*")) == []


def test_without_openvino_the_message_is_the_install_line(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingExtraError,
        match=r"needs openvino, which is not installed; run `pip install 'diver-trt\[openvino\]'`",
    ):
        OpenVinoSession(digits, 1)


def test_a_broken_package_is_named_with_the_way_out(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))
    with pytest.raises(EngineError, match=r"cannot be loaded \(it has no Core\); reinstall it"):
        OpenVinoSession(digits, 1)


_A_SIGNAL_AFTERWARDS = """
import gc, os, signal
from threading import Thread
from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.runtime.backends.openvino import OpenVinoSession

def opened():
    session = OpenVinoSession(Bundle.open(default_bundle()), 1)
    return [session, session.open("decoder")]

def free(part):
    part.pop().close()
    part.clear()
    gc.collect()

first, second = opened(), opened()
{free}
seen = []
signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
os.kill(os.getpid(), signal.SIGTERM)
assert seen == [signal.SIGTERM]
if os.fork() == 0:
    raise SystemExit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(
    "free",
    [
        "free(second); free(first)",
        "free(first); free(second)",
        "for part in (first, second): thread = Thread(target=free, args=[part]); thread.start(); "
        "thread.join()",
    ],
    ids=["in reverse order", "in order", "in other threads"],
)
def test_signals_and_forks_are_survived_once_sessions_are_freed(free: str) -> None:
    """A Core that is freed may unmap the stack of signal handlers while it is in use."""
    done = run_python(_A_SIGNAL_AFTERWARDS.format(free=free))
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_auto_takes_it_on_the_cpu_alone(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "available", AVAILABLE)
    with Recoverer(digits, QUICK, engine="auto") as recoverer:
        assert recoverer.engine == "openvino"
    assert engine_names("auto", digits) == ["onnx-cuda", "openvino", "onnx"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert engine_names("auto", digits) == ["onnx-cuda", "onnx"]


@pytest.mark.parametrize("name", ["openvino-gpu", "openvino-npu"])
def test_a_device_that_is_not_here_is_named(digits: Bundle, name: str) -> None:
    devices = openvino_engine._core(import_openvino())[0].available_devices
    if any(found.startswith(openvino_engine.DEVICES[name]) for found in devices):
        pytest.skip("it is here")
    with pytest.raises(
        EngineError, match=rf"finds no {openvino_engine.DEVICES[name]} here \(only .*CPU"
    ):
        Recoverer(digits, QUICK, engine=name)


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (MemoryError(), DeviceMemoryError, r"out of memory: OpenVINO failed in the decoder"),
        (
            RuntimeError(
                "Exception from src/inference/src/cpp/infer_request.cpp:75:\n"
                "Check 'x' failed at src/y.cpp:1:\nthe tensor is \x1b[2J wrong\n\n"
            ),
            EngineError,
            r"OpenVINO failed in the decoder: the tensor is \\x1b\[2J wrong$",
        ),
        (
            RuntimeError("[GPU] Exceeded max size of memory object allocation"),
            DeviceMemoryError,
            "out of memory: OpenVINO failed in the decoder",
        ),
    ],
)
def test_whatever_fails_is_one_line(
    digits: Bundle, failure: Exception, kind: type[EngineError], message: str
) -> None:
    def fail(**_: object) -> None:
        raise failure

    engine = OpenVinoSession(digits, 1).open("decoder")
    engine._requests = [SimpleNamespace(infer=fail)]
    with pytest.raises(kind, match=message) as caught:
        engine.run()
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()


def test_a_run_allocates_no_outputs(digits: Bundle) -> None:
    """The output is written into the engine's own buffer, at the same address every time."""
    engine = OpenVinoSession(digits, 1).open("decoder")
    (request,) = engine._requests
    engine.run()
    address = engine.read("image").ctypes.data
    assert request.get_tensor("image").data.ctypes.data == address
    engine.close()


def test_a_folder_of_another_engine_is_resumed_and_each_image_names_its_own(
    digits: Bundle, tmp_path: Path
) -> None:
    command = (DISTILLED.parent / "ipc1", tmp_path / "out")
    batches = iter(range(3))
    first = recover(
        *command, recipe=QUICK, engine="onnx", batch=3, stopping=lambda: next(batches) > 0
    )
    assert (first.finished, first.done, first.engine) == (False, 3, "onnx")
    second = recover(*command, recipe=QUICK, engine="openvino")
    assert (second.finished, second.engine) == (True, "openvino")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["engine"] for entry in manifest["samples"]] == ["onnx"] * 3 + ["openvino"] * 7
