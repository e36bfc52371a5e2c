"""A stand-in for the GPU: the runtime's calls of cuda-bindings and TensorRT, executed on the host.

Device memory is host memory, kernels are ONNX Runtime on the same graph, and a captured stream
records its calls. This tests the adapter's logic: lifetimes, addresses, order, error paths. It does
not test TensorRT, and never counts as having run it.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from diver_trt.bundle import Bundle
from diver_trt.contract import run_size
from diver_trt.files import FileRecord
from diver_trt.runtime.backends.tensorrt.compiler import io_bytes
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.plans import PLANS, Plan, read_plan
from diver_trt.runtime.backends.tensorrt.session import TrtSession
from diver_trt.runtime.backends.tensorrt.sidecar import Machine, Memory, Profile, Sidecar

MACHINE = Machine(
    backend="rtx",
    version="1.7.1.116",
    compute_capability="sm86",
    gpu="Stand-in 4 GB",
    driver="13.0",
)


def _move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900


class StandInCuda:
    """`cuda.bindings.runtime` on the host."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, limit_bytes: int = 2**32) -> None:
        self.limit_bytes = limit_bytes
        self.device: dict[int, int] = {}
        self.host: dict[int, int] = {}
        self.graphs: list[Any] = []
        self.recording: list[Callable[[], None]] | None = None
        self.refuse_capture = False
        self.no_driver = False
        self.launches = 0
        self._memory: dict[int, Any] = {}

    def enqueue(self, operation: Callable[[], None]) -> None:
        """Carry out an operation, or record it while the stream is captured."""
        if self.recording is None:
            operation()
        else:
            self.recording.append(operation)

    def _allocate(self, size: int, owners: dict[int, int]) -> int:
        block = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        self._memory[address], owners[address] = block, size
        return address

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (Error.cudaErrorInsufficientDriver if self.no_driver else Error.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (
            (Error.cudaErrorInsufficientDriver, None) if self.no_driver else (Error.cudaSuccess, 1)
        )

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, SimpleNamespace(
            name=b"Stand-in 4 GB\0\0",
            major=8,
            minor=6,
            totalGlobalMem=self.limit_bytes,
            multiProcessorCount=20,
        )

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, 13000

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, 13050

    def cudaGetErrorName(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, error.name.encode()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return (
            Error.cudaErrorStreamCaptureUnsupported
            if self.recording is not None
            else Error.cudaSuccess,
        )

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if sum(self.device.values()) + size > self.limit_bytes:
            return Error.cudaErrorMemoryAllocation, None
        return Error.cudaSuccess, self._allocate(size, self.device)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.device[address], self._memory[address]
        return (Error.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, self._allocate(size, self.host)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        del self.host[address], self._memory[address]
        return (Error.cudaSuccess,)

    def _inside(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + held
            for start, held in (self.device | self.host).items()
        )

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[Any, ...]:
        if not (self._inside(target, size) and self._inside(source, size)):
            return (Error.cudaErrorIllegalAddress,)
        self.enqueue(partial(_move, target, source, size))
        return (Error.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> tuple[Any, ...]:
        for row in range(height):
            (error,) = self.cudaMemcpyAsync(
                target + row * target_pitch, source + row * source_pitch, width, kind, stream
            )
            if error:
                return (error,)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded, self.recording = self.recording, None
        return (
            (Error.cudaErrorStreamCaptureUnsupported, None)
            if self.refuse_capture
            else (Error.cudaSuccess, recorded)
        )

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        executable = SimpleNamespace(operations=list(graph))
        self.graphs.append(executable)
        return Error.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[Any, ...]:
        self.graphs.remove(executable)
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, executable: Any, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for operation in executable.operations:
            operation()
        return (Error.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, self.limit_bytes - sum(self.device.values()), self.limit_bytes


DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class Log:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    ERROR = Severity.ERROR

    def __init__(self, *_: object) -> None:
        pass


class StandInContext:
    def __init__(self, cuda: StandInCuda, session: onnxruntime.InferenceSession) -> None:
        self.cuda, self.session = cuda, session
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.scratch: tuple[int, int] | None = None
        self.fail = False

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None, "TensorRT needs its scratch memory before it runs"
        if self.fail:
            return False
        # A captured launch keeps the addresses it was captured with.
        addresses = dict(self.addresses)
        self.cuda.enqueue(lambda: self._execute(addresses))
        return True

    def _execute(self, addresses: dict[str, int]) -> None:
        inputs = {
            value.name: self._array(addresses[value.name], self.shapes[value.name], value.type)
            for value in self.session.get_inputs()
        }
        for value, result in zip(
            self.session.get_outputs(), self.session.run(None, inputs), strict=True
        ):
            self._array(addresses[value.name], result.shape, value.type)[:] = result

    def _array(self, address: int, shape: tuple[int, ...], kind: str) -> np.ndarray:
        dtype = np.dtype(DTYPES[kind])
        size = int(np.prod(shape)) * dtype.itemsize
        assert self.cuda._inside(address, size), (
            "TensorRT was given memory that is freed or too small"
        )
        memory = memoryview((ctypes.c_byte * size).from_address(address)).cast("B")
        array: np.ndarray = np.frombuffer(memory, dtype).reshape(shape)
        return array


class StandInRuntimeCache:
    """Holds the names of the graphs whose kernels are compiled."""

    VERSION = MACHINE.version

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def serialize(self) -> bytes:
        return json.dumps([self.VERSION, self.kernels]).encode()

    def deserialize(self, blob: bytes) -> bool:
        version, kernels = json.loads(blob)
        if version == self.VERSION:
            self.kernels = kernels
        return bool(version == self.VERSION)


class StandInRuntimeConfig:
    strategy: str | None = None
    cache: StandInRuntimeCache | None = None

    def create_runtime_cache(self) -> StandInRuntimeCache:
        return StandInRuntimeCache()

    def set_runtime_cache(self, cache: StandInRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class StandInEngine:
    compiled: ClassVar[list[str]] = []
    """The graphs whose kernels were compiled, as often as they were."""

    def __init__(self, cuda: StandInCuda, onnx: str, scratch_bytes: int) -> None:
        self.cuda, self.onnx = cuda, onnx
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.device_memory_size_v2 = scratch_bytes

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in [value.name for value in self.session.get_inputs()] else "out"

    def _declared(self, name: str) -> Any:
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        return next(value for value in values if value.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._declared(name).shape)

    def get_tensor_dtype(self, name: str) -> str:
        return DTYPES[self._declared(name).type]

    def create_execution_context(self, config: StandInRuntimeConfig) -> StandInContext:
        assert config.strategy == "user managed"
        if config.cache is not None and self.onnx not in config.cache.kernels:
            self.compiled.append(self.onnx)
            config.cache.kernels.append(self.onnx)
        return StandInContext(self.cuda, self.session)

    def create_runtime_config(self) -> StandInRuntimeConfig:
        return StandInRuntimeConfig()


def stand_in_tensorrt(cuda: StandInCuda) -> Any:
    """Return a module like `tensorrt_rtx` whose engines are descriptions of ONNX files."""

    def deserialize(engine: bytes) -> StandInEngine | None:
        try:
            described = json.loads(engine)
        except ValueError:
            return None
        return StandInEngine(cuda, described["onnx"], described["scratch_bytes"])

    return SimpleNamespace(
        __version__=MACHINE.version,
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=deserialize),
        ILogger=Log,
        Logger=Log,
        **{name: name for name in ("float32", "float16", "int64", "int32", "bool")},
        IRuntimeCache=StandInRuntimeCache,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )


def stand_in_session(
    bundle: Bundle, plan: Plan, api: StandInCuda | None = None, module: Any = None
) -> TrtSession:
    """Open a plan of `write_stand_in_plan`."""
    api = api or StandInCuda()
    module = module or stand_in_tensorrt(api)
    return TrtSession(bundle, plan, plan.batches.maximum, module, Cuda(api))


def install_stand_in(patch: pytest.MonkeyPatch) -> tuple[StandInCuda, Any]:
    """Let the stand-in be the CUDA and the TensorRT of this process, and return both."""
    api = StandInCuda()
    module = stand_in_tensorrt(api)
    patch.setattr("diver_trt.runtime.backends.tensorrt.cuda.import_cuda", lambda: api)
    patch.setattr(
        "diver_trt.runtime.backends.tensorrt.module.import_tensorrt", lambda backend: module
    )
    return api, module


def write_stand_in_plan(
    bundle: Bundle, batch: int, folder: Path | None = None, scratch_bytes: int = 4096
) -> Plan:
    """Write engines that the stand-in runs, with sidecars and trust entries as the builder does."""
    folder = folder or bundle.path / PLANS / f"rtx-{MACHINE.version}-sm86-b{batch}"
    folder.mkdir(parents=True)
    for name, network in bundle.networks.items():
        size = run_size(name, batch)
        path = folder / f"{name}.engine"
        path.write_text(
            json.dumps(
                {
                    "onnx": str((bundle.path / network.graph.name).resolve()),
                    "scratch_bytes": scratch_bytes,
                }
            )
        )
        Sidecar(
            network=name,
            precision=bundle.precision,
            onnx_sha256=network.graph.sha256,
            weights_sha256=None,
            engine=FileRecord.of(path),
            built_on=MACHINE,
            compute_capabilities=("sm75", "sm86"),
            profile=Profile(size, size, size),
            memory=Memory(
                weights_bytes=4 * network.parameters,
                persistent_bytes=0,
                activation_bytes=scratch_bytes,
                io_bytes=io_bytes(network, size),
            ),
            dtypes={"float32": 1},
            workspace_bytes=None,
            build_seconds=0.1,
            skipped_tactics=0,
            tool_version="0",
        ).write(folder / f"{name}.json")
    plan = read_plan(folder)
    plan.trust()
    return plan
