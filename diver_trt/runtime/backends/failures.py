"""An engine's exceptions as errors of this package, each on one line, from its import on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diver_trt.errors import (
    DeviceMemoryError,
    DiverError,
    EngineError,
    MissingExtraError,
    first_line,
    printable,
)
from diver_trt.packages import required

# Neither ONNX Runtime nor OpenVINO has a class for a lack of memory. These are the words of their
# allocators, of CUDA, OpenCL and Level Zero, of the dynamic linker and of C++.
OUT_OF_MEMORY = re.compile(
    "out of memory|failed to allocate|cannot allocate memory|failed to map segment|bad.?alloc"
    "|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|CL_MEM_OBJECT_ALLOCATION_FAILURE"
    "|OUT_OF_(HOST|DEVICE)_MEMORY|exceeded max size of memory",
    re.IGNORECASE,
)

# OpenVINO writes every source line that an exception passed through before what was wrong.
_WHERE = re.compile(r"Exception from .*:\d+:|Check '.*' failed at .*")

_REASON_CHARACTERS = 500


@contextmanager
def reported(runtime: str, deed: str) -> Iterator[None]:
    """Turn the exceptions of a runtime into one line.

    Args:
        runtime: Its name, such as `"ONNX Runtime"`.
        deed: What failed, such as `"cannot open the decoder"`.

    Raises:
        DeviceMemoryError: If there is not enough memory, on the device or on the host.
        EngineError: If anything else went wrong.
    """
    try:
        yield
    except DiverError:
        raise
    # ONNX Runtime has one class per status code, with Exception as their only common base, and the
    # Python bindings of both raise TypeError and ValueError too.
    except Exception as cause:
        reason = _reason(cause)
        if isinstance(cause, MemoryError) or OUT_OF_MEMORY.search(str(cause)):
            raise DeviceMemoryError(
                f"out of memory: {runtime} {deed} ({reason}); use a smaller --batch"
            ) from cause
        raise EngineError(f"{runtime} {deed}: {reason}") from cause


def imported(package: str, extra: str, purpose: str, remedy: str) -> Any:
    """Import an engine's package.

    Args:
        package: The package, whose module has the same name.
        extra: The extra that installs it.
        purpose: What needs it, as the message begins.
        remedy: What repairs it where it is installed and cannot be loaded.

    Raises:
        MissingExtraError: If it is not installed.
        EngineError: If it cannot be loaded.
    """
    try:
        return required(package, extra, purpose)
    except MissingExtraError as missing:
        if missing.problem is None:
            raise
        if OUT_OF_MEMORY.search(missing.problem):
            raise EngineError(
                f"there is too little memory to load {package} ({missing.problem}); close other "
                "programs, or raise `ulimit -v`"
            ) from missing
        raise EngineError(
            f"{package} is installed but cannot be loaded ({missing.problem}); {remedy}"
        ) from missing


def _reason(cause: Exception) -> str:
    lines = (line for line in str(cause).splitlines() if line and not _WHERE.fullmatch(line))
    return printable(next(lines, first_line(cause))[:_REASON_CHARACTERS])
