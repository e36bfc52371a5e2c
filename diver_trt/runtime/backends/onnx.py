"""ONNX Runtime as an engine: I/O bound once, to buffers that live as long as the engine."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import MANIFEST, Bundle, Network, NetworkName, run_size
from diver_trt.errors import (
    BundleError,
    DeviceMemoryError,
    DiverError,
    EngineError,
    MissingExtraError,
    printable,
    shown,
)
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.tensorrt.cuda import on_jetson, present_gpu
from diver_trt.runtime.engine import Opened, Placement, copy_checked
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, SteppedDenoiser
from diver_trt.tensors import TensorSpec, describe_declared

Device = Literal["cpu", "cuda"]

_DEVICES: dict[str, Device] = {"onnx": "cpu", "onnx-cuda": "cuda"}

Carry = tuple[str, str]
"""An output and the input that the next run reads it as."""

_OUT_OF_MEMORY = re.compile(
    "out of memory|failed to allocate|cannot allocate memory|failed to map segment|bad.?alloc"
    "|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""ONNX Runtime has no class for a lack of memory; these are the words of its arenas, of
CUDA and of C++.
"""

_REASON_CHARACTERS = 500


def available(name: str, bundle: Bundle) -> bool:  # noqa: ARG001
    """Return True: whether it works is only known once a session is open."""
    return True


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open a bundle for the placement's batch, at most as many as there are images."""
    return Opened(OnnxSession(bundle, placement.balanced_batch, _DEVICES[name]), None)


def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
    """Import ONNX Runtime and open a session, which is the only proof that it works."""
    title = BACKENDS[name].title
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runtime = import_onnxruntime()
    except MissingExtraError as error:
        if name == "onnx":  # one finding says that the package is not installed
            yield Finding(title, "missing", "not installed", error.command)
        return
    except DiverError as error:
        if name == "onnx":
            yield Finding(title, "broken", str(error))
        return
    if name == "onnx":
        for warning in caught:
            if issubclass(warning.category, RuntimeWarning):
                keep = (
                    "one of them" if present_gpu() else "onnxruntime: there is no NVIDIA GPU here"
                )
                remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu, then install {keep}"
                detail = str(warning.message).partition("; run ")[0]
                yield Finding("ONNX Runtime packages", "broken", detail, remedy)
    elif "CUDAExecutionProvider" not in runtime.get_available_providers():
        yield _no_cuda_provider(title, f"onnxruntime {runtime.__version__} has no CUDA provider")
        return
    yield _probe_session(OnnxSession(bundle, 1, _DEVICES[name]), title, runtime.__version__)


def _no_cuda_provider(title: str, detail: str) -> Finding:
    """Return the finding, with a remedy only where the provider could run."""
    if on_jetson():
        detail += ", and no prebuilt onnxruntime-gpu has code for a Jetson's GPU"
        return Finding(title, "missing", detail, "diver-trt build BUNDLE --backend trt")
    if present_gpu() is None:
        return Finding(title, "missing", f"{detail}, and no NVIDIA GPU was found that needs it")
    # Installing the GPU package over the CPU package overwrites its files.
    remedy = "pip uninstall -y onnxruntime, then install onnxruntime-gpu in its place"
    return Finding(title, "missing", detail, remedy)


def _probe_session(session: OnnxSession, title: str, version: str) -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two packages are a finding of their own
        try:
            engine = session.open("encoder")
            try:
                engine.run()  # a provider may load and have no code for this GPU
            finally:
                engine.close()
        except DiverError as error:
            libraries = "install the CUDA and cuDNN libraries that this onnxruntime asks for"
            remedy = libraries if session.device == "cuda" else None
            return Finding(title, "broken", str(error), remedy)
    return Finding(title, "works", f"onnxruntime {version} ran a network", recovers=True)


class OnnxSession:
    """A bundle on ONNX Runtime; see `diver_trt.runtime.engine.Session` for the contract.

    Args:
        bundle: The bundle; each network's files are hashed before they are loaded.
        batch: Images per batch.
        device: `"cpu"` or `"cuda"`.
    """

    def __init__(self, bundle: Bundle, batch: int, device: Device = "cpu") -> None:
        self.bundle, self.batch, self.device = bundle, batch, device
        self.name = "onnx" if device == "cpu" else "onnx-cuda"

    def open(self, network: NetworkName) -> OnnxEngine:
        """Open a network for what it takes in one run.

        Raises:
            BundleError: The network's files have changed since the export, or are not of the
                network that the bundle says.
            EngineError: ONNX Runtime cannot run it here.
            DeviceMemoryError: If the device or the host has no room for it.
            MissingExtraError: ONNX Runtime is not installed.
        """
        return OnnxEngine(self.bundle, network, run_size(network, self.batch), device=self.device)

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        """Open the denoiser for the steps from `steps` down to 1."""
        engine = OnnxEngine(self.bundle, "denoiser", self.batch, carry=CARRY, device=self.device)
        return SteppedDenoiser(engine, self.bundle.networks["denoiser"].inputs[2], table, steps)

    def close(self) -> None:
        """Nothing is shared."""


class OnnxEngine:
    """One network in ONNX Runtime; see `diver_trt.runtime.engine.Engine` for the contract.

    On the CPU the buffers are numpy arrays that ONNX Runtime reads and writes in place. On CUDA
    they lie on the device: inputs are uploaded by `write`, outputs come back in `read`. With a
    carry the engine alternates two buffers: each run's output is the next run's input in place, and
    never leaves the device.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: NetworkName,
        batch: int,
        carry: Carry | None = None,
        device: Device = "cpu",
    ) -> None:
        runtime = import_onnxruntime()
        self.batch = batch
        self._name = network
        declared = bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        self._session: Any = _open_session(runtime, bundle, network, device)
        self._carry = carry
        with _reported(f"cannot give the {network} its buffers"):
            self._buffers = {
                spec.name: _Buffer(runtime, spec, batch, device)
                for spec in self._ports.all.values()
            }
            self._bindings = [self._bind(self._buffers)]
            if carry is not None:
                output, source = carry
                self._bindings.append(
                    self._bind(
                        {
                            **self._buffers,
                            output: self._buffers[source],
                            source: self._buffers[output],
                        }
                    )
                )
        self._turn = 0

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._ports.require_input(name)
        with _reported(f"cannot hand {name} to the {self._name}"):
            self._buffer(name).write(name, values)

    def run(self) -> None:
        """Run the network; with a carry, swap the two buffers it alternates between."""
        self._ports.require_open()
        with _reported(f"failed in the {self._name}"):
            self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = (self._turn + 1) % len(self._bindings)

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        # After the swap, what the last run wrote is what the next one reads.
        with _reported(f"cannot fetch {name} from the {self._name}"):
            return self._buffer(
                self._carry[1] if self._carry and name == self._carry[0] else name
            ).read()

    def close(self) -> None:
        """Free the session and the buffers."""
        self._ports.close()
        self._session = None
        self._bindings.clear()
        self._buffers.clear()

    def _buffer(self, name: str) -> _Buffer:
        if self._turn == 1 and self._carry is not None and name in self._carry:
            output, source = self._carry
            name = source if name == output else output
        return self._buffers[name]

    def _bind(self, buffers: dict[str, _Buffer]) -> Any:
        binding = self._session.io_binding()
        for name in self._ports.inputs:
            binding.bind_ortvalue_input(name, buffers[name].value)
        for name in self._ports.outputs:
            binding.bind_ortvalue_output(name, buffers[name].value)
        return binding


class _Buffer:
    """Memory for one tensor: a numpy array used in place, or a block on the CUDA device."""

    def __init__(self, runtime: Any, spec: TensorSpec, batch: int, device: Device) -> None:
        self._host = spec.allocate(batch)
        self._on_host = device == "cpu"
        self.value = (
            runtime.OrtValue.ortvalue_from_numpy(self._host)
            if self._on_host
            else runtime.OrtValue.ortvalue_from_shape_and_type(
                list(self._host.shape), self._host.dtype.type, device, 0
            )
        )

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        copy_checked(name, values, self._host)
        if not self._on_host:
            self.value.update_inplace(self._host)

    def read(self) -> NDArray[np.generic]:
        if not self._on_host:
            np.copyto(self._host, self.value.numpy())
        return self._host


_REINSTALL = (
    "run `pip uninstall -y onnxruntime onnxruntime-gpu`, "
    "then install 'diver-trt[cpu]' or 'diver-trt[gpu]'"
)


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, and warn where both of its packages are installed over each other.

    Raises:
        MissingExtraError: Neither package is installed.
        EngineError: What is installed is not whole.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as cause:
        raise MissingExtraError("onnxruntime", "cpu", "running a bundle") from cause
    except ImportError as cause:
        if _OUT_OF_MEMORY.search(str(cause)):
            raise EngineError(
                f"there is too little memory to load onnxruntime ({cause}); close other programs, "
                "or raise `ulimit -v`"
            ) from cause
        raise EngineError(
            f"onnxruntime is installed but cannot be loaded ({cause}); {_REINSTALL}"
        ) from cause
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError(
            "onnxruntime is installed but half of it is missing, as after removing one of its "
            f"two packages; {_REINSTALL}"
        )
    if len(found := _installed_packages()) > 1:
        warnings.warn(
            f"{' and '.join(found)} are both installed and overwrite each other's files, so the "
            f"CUDA provider may be gone; {_REINSTALL}",
            RuntimeWarning,
            stacklevel=2,
        )
    return onnxruntime


def _installed_packages() -> list[str]:
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _open_session(runtime: Any, bundle: Bundle, network: NetworkName, device: Device) -> Any:
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} has no {provider} here (only "
            f"{', '.join(runtime.get_available_providers())}); "
            "uninstall onnxruntime and run `pip install 'diver-trt[gpu]'`"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = bundle.verified(network)
    with _reported(f"cannot open the {network}"):
        session = runtime.InferenceSession(graph, options, providers=[provider])
    _check_inferred(session, graph, bundle.networks[network])
    if provider not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime lists {provider} but cannot load it (CUDA or cuDNN libraries missing?)"
        )
    return session


def _check_inferred(session: Any, graph: Path, network: Network) -> None:
    """Compare a graph's inputs and outputs in ONNX Runtime with the manifest's.

    What the graph itself declares was compared before; this is what its nodes give.

    Raises:
        BundleError: If a name, a type or a shape differs.
    """
    for direction, values, specs in (
        ("reads", session.get_inputs(), network.inputs),
        ("writes", session.get_outputs(), network.outputs),
    ):
        found, expected = (
            [value.name for value in values],
            [spec.name for spec in specs],
        )
        if sorted(found) != sorted(expected):
            listed = shown(", ".join(found)) or "nothing"
            raise BundleError(
                f"{graph}: {direction} {listed}, but {MANIFEST} says {', '.join(expected)}; "
                "export the model again"
            )
        declared = {value.name: (_dtype(value.type), value.shape) for value in values}
        for spec in specs:
            dtype, shape = declared[spec.name]
            if not spec.agrees_with(dtype, shape):
                raise BundleError(
                    f"{graph}: {direction} {shown(describe_declared(spec.name, dtype, shape))}, "
                    f"but {MANIFEST} says {spec}; "
                    "export the model again"
                )


def _dtype(kind: str) -> str:
    """Return numpy's name of an ONNX Runtime type: `tensor(float16)` is `float16`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


@contextmanager
def _reported(deed: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions into one line.

    It has one class per status code, with RuntimeError as their only common base.

    Raises:
        DeviceMemoryError: There is not enough memory, on the device or on the host.
        EngineError: Anything else went wrong.
    """
    try:
        yield
    except DiverError:
        raise
    except Exception as cause:
        reason = printable(
            (str(cause).splitlines() or [type(cause).__name__])[0][:_REASON_CHARACTERS]
        )
        if isinstance(cause, MemoryError) or _OUT_OF_MEMORY.search(str(cause)):
            raise DeviceMemoryError(
                f"out of memory: ONNX Runtime {deed} ({reason}); use a smaller --batch"
            ) from cause
        raise EngineError(f"ONNX Runtime {deed}: {reason}") from cause


def available_cores() -> int:
    """Return how many cores this process may use.

    ONNX Runtime would otherwise count all cores of the machine.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
