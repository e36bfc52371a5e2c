"""ONNX Runtime as an engine: I/O bound once, to buffers that live as long as the engine."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import MANIFEST, Bundle, NetworkName, run_size
from diver_trt.errors import (
    BundleError,
    DeviceMemoryError,
    DiverError,
    EngineError,
    MissingExtraError,
    printable,
    shown,
)
from diver_trt.runtime.engine import EngineName, copy_checked
from diver_trt.runtime.stepping import CARRY, SteppedDenoiser
from diver_trt.tensors import TensorSpec

Device = Literal["cpu", "cuda"]

Carry = tuple[str, str]
"""An output and the input that the next run reads it as."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|cannot allocate memory|failed to map segment|bad.?alloc|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""ONNX Runtime has no class of its own for want of memory; these are the words of its arenas, of CUDA and of C++."""

_REASON_CHARACTERS = 500


class OnnxSession:
    """A bundle on ONNX Runtime; see `diver_trt.runtime.engine.Session` for the contract.

    Args:
        bundle: The bundle; each network's files are hashed before they are loaded.
        batch: Images per batch.
        device: `"cpu"` or `"cuda"`.
    """

    def __init__(self, bundle: Bundle, batch: int, device: Device = "cpu") -> None:
        self.bundle, self.batch, self.device = bundle, batch, device
        self.name: EngineName = "onnx" if device == "cpu" else "onnx-cuda"

    def open(self, network: NetworkName) -> OnnxEngine:
        """Open a network for what it takes in one run.

        Raises:
            BundleError: The network's files have changed since the export, or are not of the network that the bundle says.
            EngineError: ONNX Runtime cannot run it here.
            DeviceMemoryError: There is no room for it, on the device or on the host.
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

    On the CPU the buffers are numpy arrays that ONNX Runtime reads and writes in place. On CUDA they lie on the device: inputs are
    uploaded by `write`, outputs come back in `read`. With a carry the engine alternates two buffers: each run's output is the next run's
    input in place, and never leaves the device.
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
        self._inputs = {spec.name: spec for spec in bundle.networks[network].inputs}
        self._outputs = {spec.name: spec for spec in bundle.networks[network].outputs}
        self._session: Any = _open_session(runtime, bundle, network, device)
        self._carry = carry
        specs = [*self._inputs.values(), *self._outputs.values()]
        with _reported(f"cannot give the {network} its buffers"):
            self._buffers = {spec.name: _Buffer(runtime, spec, batch, device) for spec in specs}
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
        self._require_open()
        if name not in self._inputs:
            raise EngineError(
                f"the {self._name} has no input {name!r}; expected {', '.join(self._inputs)}"
            )
        with _reported(f"cannot hand {name} to the {self._name}"):
            self._buffer(name).write(name, values)

    def run(self) -> None:
        """Run the network; with a carry, swap the two buffers it alternates between."""
        self._require_open()
        with _reported(f"failed in the {self._name}"):
            self._session.run_with_iobinding(self._bindings[self._turn])
        self._turn = (self._turn + 1) % len(self._bindings)

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._require_open()
        if name not in self._outputs:
            raise EngineError(
                f"the {self._name} has no output {name!r}; expected {', '.join(self._outputs)}"
            )
        # After the swap, what the last run wrote is what the next one reads.
        with _reported(f"cannot fetch {name} from the {self._name}"):
            return self._buffer(
                self._carry[1] if self._carry and name == self._carry[0] else name
            ).read()

    def close(self) -> None:
        """Free the session and the buffers."""
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
        for name in self._inputs:
            binding.bind_ortvalue_input(name, buffers[name].value)
        for name in self._outputs:
            binding.bind_ortvalue_output(name, buffers[name].value)
        return binding

    def _require_open(self) -> None:
        if self._session is None:
            raise EngineError(f"the {self._name} engine is closed; open a new one")


class _Buffer:
    """Memory for one tensor: a numpy array that ONNX Runtime uses in place, or a block on the CUDA device."""

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


_REINSTALL = "run `pip uninstall -y onnxruntime onnxruntime-gpu`, then install 'diver-trt[cpu]' or 'diver-trt[gpu]'"


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
                f"there is too little memory to load onnxruntime ({cause}); close other programs, or raise `ulimit -v`"
            ) from cause
        raise EngineError(
            f"onnxruntime is installed but cannot be loaded ({cause}); {_REINSTALL}"
        ) from cause
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError(
            f"onnxruntime is installed but half of it is missing, as after removing one of its two packages; {_REINSTALL}"
        )
    if len(found := _installed_packages()) > 1:
        warnings.warn(
            f"{' and '.join(found)} are both installed and overwrite each other's files, so the CUDA provider may be gone; {_REINSTALL}",
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
            f"ONNX Runtime {runtime.__version__} has no {provider} here (only {', '.join(runtime.get_available_providers())}); "
            "uninstall onnxruntime and run `pip install 'diver-trt[gpu]'`"
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = bundle.verified(network)
    with _reported(f"cannot open the {network}"):
        session = runtime.InferenceSession(graph, options, providers=[provider])
    declared = bundle.networks[network]
    for direction, values, specs in (
        ("reads", session.get_inputs(), declared.inputs),
        ("writes", session.get_outputs(), declared.outputs),
    ):
        found, expected = [value.name for value in values], [spec.name for spec in specs]
        if sorted(found) != sorted(expected):
            listed = shown(", ".join(found)) or "nothing"
            raise BundleError(
                f"{graph}: {direction} {listed}, but {MANIFEST} says {', '.join(expected)}; export the model again"
            )
    if provider not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime lists {provider} but cannot load it (CUDA or cuDNN libraries missing?)"
        )
    return session


@contextmanager
def _reported(deed: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises, one class per status code with RuntimeError as their only base, into one line.

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
    """Return how many cores this process may use: ONNX Runtime would otherwise count all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
