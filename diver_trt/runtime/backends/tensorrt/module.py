"""TensorRT under either name: `tensorrt_rtx` 1.x or `tensorrt` 10.3 to 11.x.

Their Python APIs are nearly the same.
"""

from __future__ import annotations

import sys
from typing import Any

from diver_trt.errors import EngineError
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.backends.failures import imported
from diver_trt.runtime.backends.tensorrt.cuda import Gpu
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Machine

MODULES: dict[Backend, str] = {"rtx": "tensorrt_rtx", "trt": "tensorrt"}
SUPPORTED: dict[Backend, tuple[tuple[int, int], tuple[int, int]]] = {
    "rtx": ((1, 0), (2, 0)),
    # JetPack 6.2 has 10.3.
    "trt": ((10, 3), (12, 0)),
}
"""First supported version and the first that is not."""


def import_tensorrt(backend: Backend) -> Any:
    """Import a backend's module.

    Raises:
        MissingExtraError: If it is not installed.
        EngineError: If its version is not supported, it is a placeholder without its libraries, or
            this is Windows.
    """
    # The list of trusted engines is protected by POSIX ownership and modes (`trust`).
    if sys.platform == "win32":
        raise EngineError(
            "TensorRT engines are built and run on Linux alone; on Windows use --engine onnx"
        )
    name, extra = MODULES[backend], BACKENDS[backend].extra
    reinstall = f"reinstall it with `pip install --force-reinstall {name}`"
    module = imported(name, extra, f"backend {backend}", reinstall)
    # A placeholder without the libraries imports all the same, and has neither.
    version = getattr(module, "__version__", None)
    if version is None or not hasattr(module, "Runtime"):
        raise EngineError(f"{name} is installed but holds no TensorRT; {reinstall}")
    first, beyond = SUPPORTED[backend]
    if not first <= _major_minor(version) < beyond:
        raise EngineError(
            f"{name} {version} is installed; expected {_dotted(first)} or later, before "
            f"{_dotted(beyond)}"
        )
    return module


def dtype_name(module: Any, dtype: Any) -> str:
    """Return numpy's name of one of TensorRT's types, or `other`."""
    names = ("float32", "float16", "int64", "int32", "bool")
    return next((name for name in names if dtype == getattr(module, name)), "other")


def declared_shape(dims: Any) -> tuple[int, ...]:
    """Return TensorRT's dimensions as a tuple: -1 for a dynamic size, () for an unknown rank."""
    try:
        return tuple(dims)
    except ValueError:  # the bindings have no length for it
        return ()


def logger(module: Any) -> Any:
    """Return a logger that keeps every line, and the errors apart.

    TensorRT reports the reason of a failure, the compiler's memory and the tactics that it skips
    nowhere else.
    """

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        @property
        def last(self) -> str:
            return self.errors[-1] if self.errors else "no reason given"

        # TensorRT calls it from threads of its own too; appending to a list needs no lock:
        # https://docs.nvidia.com/deeplearning/tensorrt/latest/architecture/how-trt-works.html
        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


def this_machine(backend: Backend, module: Any, gpu: Gpu | None) -> Machine:
    """Return what an engine may depend on here."""
    return Machine(
        backend=backend,
        version=str(module.__version__),
        compute_capability=gpu.compute_capability if gpu else None,
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=gpu.cuda if gpu else None,
        multiprocessors=gpu.multiprocessors if gpu else None,
        total_bytes=gpu.total_bytes if gpu else None,
    )


def _major_minor(version: str) -> tuple[int, int]:
    major, minor, *_ = [*version.split("."), "0"]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
