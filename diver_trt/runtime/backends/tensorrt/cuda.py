"""The CUDA runtime calls that an engine needs, with every return code checked.

Pointers, streams and graphs are plain integers or the bindings' own handles; nothing here knows
TensorRT.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import DeviceMemoryError, DiverError, EngineError
from diver_trt.packages import required

JETSON_RELEASE = Path("/etc/nv_tegra_release")

ALIGNMENT_BYTES = 256
"""TensorRT requires tensor addresses aligned to this; cudaMalloc gives it, offsets in a block must
keep it.
"""


def aligned(size_bytes: int) -> int:
    """Return the size rounded up to `ALIGNMENT_BYTES`."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first CUDA device.

    Attributes:
        name: Such as `"NVIDIA GeForce RTX 3050"`.
        compute_capability: Such as `"sm86"`.
        total_bytes: Its memory.
        driver: Newest CUDA version that its driver supports, such as `"12.6"`.
        cuda: CUDA version of the runtime bindings.
        multiprocessors: Its number of multiprocessors.
    """

    name: str
    compute_capability: str
    total_bytes: int
    driver: str
    cuda: str
    multiprocessors: int


def import_cuda() -> Any:
    """Import the CUDA runtime bindings.

    Raises:
        MissingExtraError: If cuda-bindings is not installed.
    """
    return required("cuda.bindings.runtime", "rtx", "running a TensorRT engine", "cuda-bindings")


def find_gpu(api: Any) -> Gpu | None:
    """Return the first CUDA device, or None without a device or a working driver."""
    # Not through `_check`: that there is no GPU is an answer here, and not an error.
    error, count = api.cudaGetDeviceCount()
    if int(error) != 0 or count < 1:
        return None
    error, properties = api.cudaGetDeviceProperties(0)
    if int(error) != 0:
        return None
    driver, cuda = (
        # CUDA writes 12.6 as 12060.
        f"{version // 1000}.{version % 1000 // 10}"
        for _, version in (api.cudaDriverGetVersion(), api.cudaRuntimeGetVersion())
    )
    return Gpu(
        name=_text(properties.name),
        compute_capability=f"sm{properties.major}{properties.minor}",
        total_bytes=int(properties.totalGlobalMem),
        driver=driver,
        cuda=cuda,
        multiprocessors=int(properties.multiProcessorCount),
    )


def present_gpu() -> Gpu | None:
    """Return the first CUDA device, or None if there is none or the bindings are missing."""
    try:
        return find_gpu(import_cuda())
    except DiverError:
        return None


def has_driver() -> bool:
    """Return whether the driver of a GPU is installed, which may be known without the bindings."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def on_jetson() -> bool:
    """Return whether this is a Jetson."""
    return JETSON_RELEASE.exists()


class Cuda:
    """One stream on the first device, and what is allocated for it.

    Everything that was allocated and not freed is freed by `close`.

    Args:
        api: `cuda.bindings.runtime`, or something that answers like it.

    Raises:
        EngineError: If there is no CUDA device, or its driver is too old.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._releases: dict[int, tuple[str, Any]] = {}
        self._check("cudaSetDevice", api.cudaSetDevice(0))
        # Non-blocking: a stream that is not waits for whatever else uses the default stream.
        (self.stream,) = self._check(
            "cudaStreamCreateWithFlags", api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking)
        )

    def allocate(self, size_bytes: int) -> int:
        """Return a block of device memory, aligned to `ALIGNMENT_BYTES`.

        Raises:
            DeviceMemoryError: If the device has no room for it.
        """
        # Of 0 bytes it would give a null pointer, and two of those would be one key in `_releases`.
        (pointer,) = self._check("cudaMalloc", self._api.cudaMalloc(max(1, size_bytes)), size_bytes)
        self._releases[int(pointer)] = ("cudaFree", pointer)
        return int(pointer)

    def allocate_host(self, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
        """Return a zeroed array in page-locked host memory, from which copies need no staging.

        Raises:
            DeviceMemoryError: If the host has no room for it.
        """
        kind = np.dtype(dtype)
        size_bytes = max(1, math.prod(shape) * kind.itemsize)
        (pointer,) = self._check(
            "cudaHostAlloc",
            self._api.cudaHostAlloc(size_bytes, 0),  # cudaHostAllocDefault
            size_bytes,
        )
        self._releases[int(pointer)] = ("cudaFreeHost", pointer)
        # The array borrows the block: it must not be read after `free`.
        memory = memoryview((ctypes.c_byte * size_bytes).from_address(int(pointer))).cast("B")
        array: NDArray[np.generic] = np.frombuffer(
            memory, dtype=kind, count=math.prod(shape)
        ).reshape(shape)
        array.fill(0)
        return array

    def free(self, pointer: int) -> None:
        """Free one block."""
        self._release(*self._releases.pop(pointer))

    def upload(self, target: int, source: NDArray[np.generic]) -> None:
        """Enqueue a copy from page-locked host memory to the device."""
        self.copy_to_device(target, source.ctypes.data, source.nbytes)

    def copy_to_device(self, target: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy from a page-locked host address to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(
            "cudaMemcpyAsync",
            self._api.cudaMemcpyAsync(target, source, size_bytes, kind, self.stream),
        )

    def copy_rows_to_device(
        self, target: int, source: int, source_stride: int, row_bytes: int, rows: int
    ) -> None:
        """Enqueue a copy of strided rows in page-locked host memory to contiguous device memory."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(
            "cudaMemcpy2DAsync",
            self._api.cudaMemcpy2DAsync(
                target, row_bytes, source, source_stride, row_bytes, rows, kind, self.stream
            ),
        )

    def download(self, target: NDArray[np.generic], source: int) -> None:
        """Enqueue a copy from the device to page-locked host memory."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(
            "cudaMemcpyAsync",
            self._api.cudaMemcpyAsync(target.ctypes.data, source, target.nbytes, kind, self.stream),
        )

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""
        self._check("cudaStreamSynchronize", self._api.cudaStreamSynchronize(self.stream))

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what `enqueue` puts on the stream, without running it, as an executable graph.

        Only this thread's calls are watched, so other threads may use CUDA meanwhile.

        Raises:
            EngineError: If something on the stream cannot be captured; the stream is usable again.
        """
        api = self._api
        self._check(
            "cudaStreamBeginCapture",
            api.cudaStreamBeginCapture(
                self.stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            ),
        )
        try:
            enqueue()
        except BaseException:
            # The stream would otherwise go on capturing what is meant to run.
            api.cudaStreamEndCapture(self.stream)
            raise
        (graph,) = self._check("cudaStreamEndCapture", api.cudaStreamEndCapture(self.stream))
        try:
            (executable,) = self._check("cudaGraphInstantiate", api.cudaGraphInstantiate(graph, 0))
        finally:
            self._check("cudaGraphDestroy", api.cudaGraphDestroy(graph))
        # A graph has no address as a key; its id is unique while the dictionary keeps it alive.
        self._releases[id(executable)] = ("cudaGraphExecDestroy", executable)
        return executable

    def free_graph(self, graph: Any) -> None:
        """Destroy a captured graph."""
        self._release(*self._releases.pop(id(graph)))

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        self._check("cudaGraphLaunch", self._api.cudaGraphLaunch(graph, self.stream))

    def memory(self) -> tuple[int, int]:
        """Return free and total device memory in bytes."""
        free, total = self._check("cudaMemGetInfo", self._api.cudaMemGetInfo())
        return int(free), int(total)

    def close(self) -> None:
        """Free everything and destroy the stream; closing twice is allowed."""
        while self._releases:
            self._release(*self._releases.popitem()[1])
        if self.stream is not None:
            self._check("cudaStreamDestroy", self._api.cudaStreamDestroy(self.stream))
            self.stream = None

    def _release(self, call: str, handle: Any) -> None:
        self._check(call, getattr(self._api, call)(handle))

    def _check(
        self, call: str, result: tuple[Any, ...], size_bytes: int | None = None
    ) -> tuple[Any, ...]:
        # cuda-bindings return the error first, then the values.
        error, *values = result
        if int(error) == 0:
            return tuple(values)
        name = _text(self._api.cudaGetErrorName(error)[1])
        if name == "cudaErrorMemoryAllocation":
            raise DeviceMemoryError(
                f"out of memory: {call} of {size_bytes or 0:,} bytes failed; use a smaller "
                "--batch or --memory-budget"
            )
        if name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice"):
            raise EngineError(
                f"no GPU can be used ({name}); install an NVIDIA driver, or run with --engine onnx"
            )
        raise EngineError(f"{call} failed: {name}")


def _text(value: Any) -> str:
    """Return a C string, whose bytes may end in a NUL."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.strip("\0 ")
