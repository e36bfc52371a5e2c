"""ONNX Runtime as an engine: I/O bound once, to buffers that live as long as the engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName, run_size
from diver_trt.errors import DiverError, EngineError, MissingExtraError
from diver_trt.graph_file import require_tensors, require_utf8
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.failures import reported
from diver_trt.runtime.backends.onnx_cuda import CUDA_OPTIONS, UNFIT_OPTIMIZERS, with_fused_nodes
from diver_trt.runtime.backends.onnx_package import import_onnxruntime, read_weights_from
from diver_trt.runtime.backends.tensorrt.cuda import on_jetson, present_gpu
from diver_trt.runtime.cores import available_cores, cores_are_idle
from diver_trt.runtime.engine import (
    DEFAULT_BATCH,
    Denoiser,
    Opened,
    Placement,
    copy_checked,
    require_fit,
)
from diver_trt.runtime.microbatches import MicrobatchedDenoiser, microbatch_size
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, Carry, SteppedDenoiser, turns
from diver_trt.tensors import TensorSpec

Device = Literal["cpu", "cuda"]

_DEVICES: dict[str, Device] = {"onnx": "cpu", "onnx-cuda": "cuda"}

SMALL_BYTES = 64 << 20
"""For networks with fewer bytes of weights it matters how the cores wait for each other.

A larger one computes so long between two waits that waking a thread costs next to nothing, and
every core with images of its own would need room for activations of its own.
"""


def available(name: str, bundle: Bundle) -> bool:  # noqa: ARG001
    """Return True: whether it works is only known once a session is open."""
    return True


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open a bundle for the placement's batch, at most as many as there are images."""
    device = _DEVICES[name]
    # Where each core takes images of its own, give every core at least one.
    least = available_cores() if _takes_microbatches(bundle, device) else 1
    batch = placement.balanced_batch(max(DEFAULT_BATCH, least))
    return Opened(OnnxSession(bundle, batch, device), None)


def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
    """Import ONNX Runtime and open a session, which is the only proof that it works."""
    title = BACKENDS[name].title
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runtime = import_onnxruntime()
    except MissingExtraError as error:
        if name == "onnx":  # one finding is enough for a package that is not installed
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
            with closing(session.open("encoder")) as engine:
                engine.run()  # a provider may load and have no code for this GPU
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
        """Open a network for what it takes in one run."""
        return OnnxEngine(self.bundle, network, run_size(network, self.batch), device=self.device)

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> Denoiser:
        """Open the denoiser for the steps from `steps` down to 1."""
        size, cores = self.batch, available_cores()
        if _takes_microbatches(self.bundle, self.device):
            size = microbatch_size(self.batch, cores)
        if size == self.batch:
            engine = OnnxEngine(self.bundle, "denoiser", self.batch, CARRY, self.device)
            return SteppedDenoiser(engine, self.bundle.condition_pair, table, steps)
        # One session for all cores, which is safe to run from several threads, so that weights are
        # loaded once. One thread each: a core runs its images on the thread that calls it.
        network = _open_session(import_onnxruntime(), self.bundle, "denoiser", "cpu", threads=1)
        # Closed if a buffer does not fit: a smaller batch is tried next.
        with ExitStack() as on_failure:
            engines = []
            # No engine for a core that gets no images.
            for _ in range(min(cores, math.ceil(self.batch / size))):
                engines.append(OnnxEngine(self.bundle, "denoiser", size, session=network))
                on_failure.callback(engines[-1].close)
            with reported("ONNX Runtime", "cannot give the denoiser its buffers"):
                denoiser = MicrobatchedDenoiser(engines, self.bundle, self.batch, table, steps)
            on_failure.pop_all()
        return denoiser

    def close(self) -> None:
        """Nothing is shared."""


class OnnxEngine:
    """One network in ONNX Runtime; see `diver_trt.runtime.engine.Engine` for the contract.

    On the CPU the buffers are numpy arrays that ONNX Runtime reads and writes in place. On CUDA
    they lie on the device: inputs are uploaded by `write`, outputs come back in `read`. With a
    carry the engine alternates two buffers: each run's output is the next run's input in place, and
    never leaves the device.

    Args:
        bundle: The bundle.
        network: The network.
        batch: Size of its dynamic axis.
        carry: An output and the input that the next run reads it as, or None.
        device: `"cpu"` or `"cuda"`.
        session: ONNX Runtime's session of the network, which several engines may share, or None to
            open one with all cores.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: NetworkName,
        batch: int,
        carry: Carry | None = None,
        device: Device = "cpu",
        session: Any = None,
    ) -> None:
        runtime = import_onnxruntime("gpu" if device == "cuda" else "cpu")
        self.batch = batch
        self._name = network
        declared = bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        self._session: Any = session or _open_session(
            runtime, bundle, network, device, available_cores()
        )
        with reported("ONNX Runtime", f"cannot give the {network} its buffers"):
            buffers = {
                spec.name: _Buffer(runtime, spec, batch, device)
                for spec in self._ports.all.values()
            }
            self._turns = turns(buffers, carry)
            self._bindings = [self._bind(turn) for turn in self._turns]
        self._next = 0
        self._run_options = [_run_options(runtime, turn) for turn in range(len(self._bindings))]
        if device == "cuda":
            # The first run takes memory for activations and captures the CUDA graph. Now, so that a
            # shortage shows before any image is read, and not in the middle of a batch.
            for _ in self._bindings:
                self.run()

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._ports.require_input(name)
        with reported("ONNX Runtime", f"cannot hand {name} to the {self._name}"):
            self._turns[self._next][name].write(name, values)

    def run(self) -> None:
        """Run the network; with a carry, swap the two buffers it alternates between."""
        self._ports.require_open()
        with reported("ONNX Runtime", f"failed in the {self._name}"):
            self._session.run_with_iobinding(
                self._bindings[self._next], self._run_options[self._next]
            )
        self._next = (self._next + 1) % len(self._bindings)

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        with reported("ONNX Runtime", f"cannot fetch {name} from the {self._name}"):
            # The turn before the next one ran last; index -1 is the other one, or the only one.
            return self._turns[self._next - 1][name].read()

    def close(self) -> None:
        """Free the session and the buffers."""
        self._ports.close()
        self._session = None
        # The bindings before the buffers that they refer to.
        self._bindings.clear()
        self._turns.clear()

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
            # Refers to the array's memory, and keeps the array alive.
            runtime.OrtValue.ortvalue_from_numpy(self._host)
            if self._on_host
            # Zeros on the first GPU: labels have to be classes in the run that takes the memory.
            else runtime.OrtValue.ortvalue_from_numpy(self._host, device, 0)
        )

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        if self._on_host:
            copy_checked(name, values, self._host)
        else:
            require_fit(name, values, self._host)
            self.value.update_inplace(np.ascontiguousarray(values))

    def read(self) -> NDArray[np.generic]:
        if not self._on_host:
            np.copyto(self._host, self.value.numpy())
        return self._host


def _open_session(
    runtime: Any, bundle: Bundle, network: NetworkName, device: Device, threads: int
) -> Any:
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        raise EngineError(
            f"ONNX Runtime {runtime.__version__} has no {provider} here (only "
            f"{', '.join(runtime.get_available_providers())}); "
            "uninstall onnxruntime and run `pip install 'diver-trt[gpu]'`"
        )
    if device == "cuda":
        # cuDNN's frontend reports every plan that it rejects as an error before it finds the one it
        # takes. What fails in the end is an exception.
        runtime.set_default_logger_severity(4)  # fatal errors only
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    # A node of a small network takes less time than waking a thread, so threads that spin between
    # nodes make a step faster on idle cores; on shared ones they take the core from the thread
    # that they wait for, and the step takes several times as long (benchmarks/spinning.py).
    spin = device == "cpu" and _is_small(bundle, network) and cores_are_idle()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # Between two runs the cores are free for reading and writing images.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = bundle.verified(network)
    require_utf8(graph, "ONNX Runtime")
    model: Path | bytes = graph
    if device == "cuda":
        model = with_fused_nodes(graph, bundle.precision)
        read_weights_from(options, graph.parent)
    with reported("ONNX Runtime", f"cannot open the {network}"):
        session = runtime.InferenceSession(
            model,
            options,
            [provider],
            [CUDA_OPTIONS if device == "cuda" else {}],
            disabled_optimizers=UNFIT_OPTIMIZERS if device == "cuda" else None,
        )
    reads, writes = (
        [(value.name, _dtype(value.type), value.shape) for value in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    declared = bundle.networks[network]
    require_tensors(graph, reads, writes, declared.inputs, declared.outputs)
    # Where the provider's libraries do not load, ONNX Runtime continues on the CPU.
    if provider not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime lists {provider} but cannot load it (CUDA or cuDNN libraries missing?)"
        )
    return session


def _run_options(runtime: Any, turn: int) -> Any:
    """Return what a run on the bindings of this turn is given."""
    options = runtime.RunOptions()
    # A CUDA graph holds the addresses of its buffers, so each turn has a graph of its own.
    options.add_run_config_entry("gpu_graph_id", str(turn + 1))
    return options


def _is_small(bundle: Bundle, network: NetworkName) -> bool:
    return sum(file.size_bytes for file in bundle.networks[network].files) < SMALL_BYTES


def _takes_microbatches(bundle: Bundle, device: Device) -> bool:
    return device == "cpu" and _is_small(bundle, "denoiser")


def _dtype(kind: str) -> str:
    """Return numpy's name of an ONNX Runtime type: `tensor(float16)` is `float16`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
