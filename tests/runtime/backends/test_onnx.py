"""The engine contract, on ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from diver_trt import packages
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.errors import (
    BundleError,
    DeviceMemoryError,
    EngineError,
    MissingExtraError,
)
from diver_trt.method.schedule import Schedule
from diver_trt.runtime.backends import onnx as onnx_backend
from diver_trt.runtime.backends import onnx_package
from diver_trt.runtime.backends.onnx import Device, OnnxEngine, OnnxSession
from diver_trt.runtime.backends.onnx_cuda import CUDA_OPTIONS, UNFIT_OPTIMIZERS
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.stepping import CARRY
from tests.runtime.swapped_graph import list_again


def test_a_carry_feeds_each_output_to_the_next_run(digits: Bundle) -> None:
    generator = np.random.default_rng(0)
    values = {
        "latent": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "anchor": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "noise": generator.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "condition": (0.1 * generator.standard_normal((2, 2, digits.condition_width))).astype(
            np.float32
        ),
        "coefficients": np.array(
            [4, 4, 4, 1, 0.9, 0.1, 0.1, 0.02, -0.1, -0.05, -3, -2], dtype=np.float32
        ),
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


def test_the_cuda_provider_is_given_its_options(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def open_network(
        model: Path,
        options: Any,
        providers: list[str],
        settings: list[Any],
        disabled_optimizers: list[str],
    ) -> None:
        given.extend([providers, settings, disabled_optimizers])
        raise RuntimeError("CUDA failure 100")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", given.append)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_network)
    with pytest.raises(EngineError, match="cannot open the decoder: CUDA failure 100"):
        OnnxSession(digits, 1, "cuda").open("decoder")
    assert given == [4, ["CUDAExecutionProvider"], [CUDA_OPTIONS], UNFIT_OPTIMIZERS]


def test_each_of_the_alternating_buffers_has_a_cuda_graph_of_its_own(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[str] = []
    run = onnxruntime.InferenceSession.run_with_iobinding

    def record(session: Any, binding: Any, options: Any) -> None:
        graphs.append(options.get_run_config_entry("gpu_graph_id"))
        run(session, binding, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", record)
    engine = OnnxEngine(digits, "denoiser", 1, CARRY)
    for _ in range(4):
        engine.run()
    engine.close()
    assert graphs == ["1", "2", "1", "2"]


def test_on_cuda_a_network_takes_its_memory_when_it_is_opened(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would take it in the first run, and capture a CUDA graph for each buffer."""
    session = OnnxEngine(digits, "denoiser", 1)._session
    buffer, runs = onnx_backend._Buffer, []
    monkeypatch.setattr(
        onnx_backend,
        "_Buffer",
        lambda runtime, spec, batch, device: buffer(runtime, spec, batch, "cpu"),
    )
    monkeypatch.setattr(OnnxEngine, "run", lambda self: runs.append(self._name))
    OnnxEngine(digits, "denoiser", 1, CARRY, "cuda", session)
    assert runs == ["denoiser", "denoiser"]


def test_the_libraries_of_cuda_are_loaded_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where pip installed them, the dynamic linker does not find them."""
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load"))
    onnx_package.import_onnxruntime("gpu")
    assert capsys.readouterr().out == ""
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    onnx_package.import_onnxruntime("cpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA may work here"
)
def test_auto_falls_back_to_the_cpu_where_cuda_does_not_work(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Recoverer(digits, engine="auto") as recoverer:
        assert recoverer.engine == "onnx"
    with pytest.raises(
        EngineError, match=r"has no CUDAExecutionProvider here .*pip install 'diver-trt\[gpu\]'"
    ):
        Recoverer(digits, engine="onnx-cuda")


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_without_onnxruntime_the_message_is_the_install_line(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, device: Device, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    needs = rf"needs onnxruntime, which is not installed; run `pip install 'diver-trt\[{extra}\]'`"
    with pytest.raises(MissingExtraError, match=needs):
        OnnxSession(digits, 1, device).open("decoder")
    with pytest.raises(MissingExtraError, match=needs):
        OnnxSession(digits, 1, device).open_denoiser(np.zeros((2, 12), np.float32), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_is_not_utf8_is_refused_plainly(
    edited: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(edited(lambda manifest: None), folder)
    with pytest.raises(EngineError, match=r"caf\\udce9.*the path is not UTF-8, and O.*Rename"):
        Recoverer(Bundle.open(folder), engine="onnx")


def test_both_packages_together_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda package: "1.30.0")
    with pytest.warns(
        RuntimeWarning,
        match=(
            r"onnxruntime 1\.30\.0 and onnxruntime-gpu 1\.30\.0 "
            r"are both installed .*pip uninstall"
        ),
    ):
        onnx_package.import_onnxruntime()


def test_a_half_removed_package_names_the_remedy(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(
        EngineError,
        match=(
            "half of it is missing, as after removing one of its two packages; run `pip uninstall"
        ),
    ):
        OnnxSession(digits, 1).open("decoder")


def test_a_changed_file_is_the_bundles_fault_not_onnxruntimes(
    digits: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(digits.path, tmp_path / "copy")
    bundle = Bundle.open(tmp_path / "copy")
    data = bytearray((bundle.path / "decoder.onnx").read_bytes())
    data[-1000] ^= 255
    (bundle.path / "decoder.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx: SHA-256 is"):
        OnnxSession(bundle, 1).open("decoder")


def declare(folder: Path, network: str, change: Callable[[Any], None]) -> Bundle:
    """Change what a graph declares and its hash in the manifest, as whoever makes a bundle can."""
    path = folder / f"{network}.onnx"
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    list_again(folder, network)
    return Bundle.open(folder)


def channels(graph: Any) -> None:
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def fixed_batch(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def rank(graph: Any) -> None:
    graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1


def element_type(graph: Any) -> None:
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def no_shape(graph: Any) -> None:
    graph.output[0].type.tensor_type.ClearField("shape")


def twice(graph: Any) -> None:
    graph.output.append(graph.output[0])


def nodes_give_more(graph: Any) -> None:
    """The graph declares what the manifest says, and computes twice the channels."""
    for node in graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = "half" if name == "image" else name
    graph.node.append(onnx.helper.make_node("Concat", ["half", "half"], ["image"], axis=1))


def size_left_open(graph: Any) -> None:
    graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (channels, r"writes image: float32\[n, 7, 32, 32\]"),
        (fixed_batch, r"reads latent: float32\[1, 4, 8, 8\]"),
        (rank, r"writes image: float32\[n, 3, 32, 32, 1\]"),
        (element_type, r"writes image: float16\[n, 3, 32, 32\]"),
        (no_shape, r"writes image: float32 of no shape\[\]"),
        (twice, r"writes image: float32\[n, 3, 32, 32\], image: float32\[n, 3, 32, 32\]"),
        (nodes_give_more, r"writes image: float32\[n, 6, 32, 32\]"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_shapes_and_types_of_graph_and_manifest_are_compared(
    digits: Bundle, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    folder = Path(shutil.copytree(digits.path, tmp_path / "changed"))
    bundle = declare(folder, "decoder", change)
    with pytest.raises(
        BundleError,
        match=(
            rf"decoder\.onnx: {message}, "
            r"but bundle\.json lists \w+: float32\[n, .*; export the model"
        ),
    ):
        OnnxSession(bundle, 1).open("decoder")


def test_a_size_that_a_graph_leaves_open_contradicts_nothing(
    digits: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(digits.path, tmp_path / "changed"))
    bundle = declare(folder, "decoder", size_left_open)
    engine, original = (OnnxSession(each, 1).open("decoder") for each in (bundle, digits))
    for each in (engine, original):
        each.write("latent", np.full((1, 4, 8, 8), 0.5, np.float32))
        each.run()
    np.testing.assert_array_equal(engine.read("image"), original.read("image"))


def test_no_batch_is_larger_than_there_are_images(digits: Bundle) -> None:
    with Recoverer(digits, batch=10**12, images=3) as recoverer:
        assert recoverer.batch == 3


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


FAILURES = [
    (
        MemoryError(),
        DeviceMemoryError,
        r"out of memory: ONNX Runtime .* \(MemoryError\); use a smaller --batch",
    ),
    (
        RuntimeError("Failed to allocate memory for requested buffer of size 9"),
        DeviceMemoryError,
        "out of memory: .* of size 9",
    ),
    (
        RuntimeError("CUDA failure 2: out of memory ; GPU=0\nat line 9"),
        DeviceMemoryError,
        r"CUDA failure 2: out of memory ; GPU=0\);",
    ),
    (
        RuntimeError("CUDA failure 700: an illegal memory access"),
        EngineError,
        "ONNX Runtime .*: CUDA failure 700: an illegal memory access",
    ),
    (
        RuntimeError("in node \x1b[2J" + "x" * 5000),
        EngineError,
        r"ONNX Runtime .*: in node \\x1b\[2Jx{488}$",
    ),
    (RuntimeError(), EngineError, "ONNX Runtime .*: RuntimeError"),
]


@pytest.mark.parametrize(("failure", "kind", "message"), FAILURES)
@pytest.mark.parametrize("where", ["run", "write", "read", "allocate", "bind"])
def test_whatever_fails_is_one_line(
    digits: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    kind: type[EngineError],
    message: str,
    where: str,
) -> None:
    session = OnnxSession(digits, 1)
    engine = session.open("decoder")
    on_the_device: Any = SimpleNamespace(update_inplace=raising(failure), numpy=raising(failure))
    uses: dict[str, Callable[[], object]] = {
        "run": engine.run,
        "write": lambda: engine.write("latent", np.zeros((1, 4, 8, 8), np.float32)),
        "read": lambda: engine.read("image"),
        "allocate": lambda: session.open("decoder"),
        "bind": lambda: session.open("decoder"),
    }
    if where == "run":
        engine._session = SimpleNamespace(run_with_iobinding=raising(failure))
    elif where in ("write", "read"):
        for buffer in engine._turns[0].values():
            buffer._on_host, buffer.value = False, on_the_device
    elif where == "allocate":
        monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", raising(failure))
    else:
        monkeypatch.setattr(onnxruntime.InferenceSession, "io_binding", raising(failure))
    with pytest.raises(kind, match=message) as caught:
        uses[where]()
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("cores", "message", "opened"),
    [
        (1, "out of memory on the host", [*NETWORKS]),
        (
            2,  # the batch is cut into microbatches
            "out of memory: ONNX Runtime cannot give the denoiser its buffers",
            # All networks together, and then one at a time.
            2 * ["conditioner", "denoiser", "denoiser", "encoder"],
        ),
    ],
)
def test_want_of_host_memory_outside_the_engine_counts_too(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, cores: int, message: str, opened: list[str]
) -> None:
    monkeypatch.setattr(onnx_backend, "available_cores", lambda: cores)
    zeros, close, closed = np.zeros, OnnxEngine.close, []

    def short(shape: Any, *arguments: Any, **options: Any) -> Any:
        if len(np.atleast_1d(shape)) == 5:
            raise MemoryError("Unable to allocate 9 GiB")
        return zeros(shape, *arguments, **options)

    def closing(self: OnnxEngine) -> None:
        closed.append(self._name)
        close(self)

    monkeypatch.setattr(OnnxEngine, "close", closing)
    with monkeypatch.context() as patched:
        patched.setattr(np, "zeros", short)
        with pytest.raises(
            DeviceMemoryError,
            match=rf"{message} \(Unable to allocate 9 GiB\); use a smaller --batch",
        ):
            Recoverer(digits, batch=2)
    assert sorted(closed) == sorted(opened)
    with Recoverer(digits, batch=2) as recoverer:
        monkeypatch.setattr(Schedule, "start", raising(MemoryError()))
        with pytest.raises(
            DeviceMemoryError, match=r"out of memory on the host \(no size is known\)"
        ):
            list(recoverer(zeros((2, 32, 32, 3), np.uint8), [0, 1]))
