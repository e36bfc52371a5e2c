"""What the figures depend on: the machine, its load, its threads, and versions of packages."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from diver_trt._version import __version__
from diver_trt.packages import installed
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.backends.tensorrt.cuda import present_gpu
from diver_trt.runtime.cores import available_cores

BUSY_PER_CORE = 0.25
"""Load average per core from which times are taken to be too long: a quarter of the machine."""

# NumPy's BLAS and torch follow these; ONNX Runtime and OpenVINO have settings of their own.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when something was measured.

    Attributes:
        date: Date and time in UTC, `"2026-11-25 19:40"`.
        system: Operating system, architecture and processor.
        gpu: The first CUDA device, or None.
        cores: Cores that this process may use.
        threads: What the environment sets the number of threads to, by variable.
        load_average: Processes that ran or waited over the minute before, or None where the
            system does not count them.
        versions: Versions of this package, of Python and of what it computes with.
    """

    date: str
    system: str
    gpu: str | None
    cores: int
    threads: dict[str, str]
    load_average: float | None
    versions: dict[str, str]

    @property
    def busy(self) -> bool:
        """Whether something else ran on the machine right before."""
        return self.load_average is not None and self.load_average > BUSY_PER_CORE * self.cores


def this_machine() -> Machine:
    """Return this machine, its load and its versions as they are now.

    Call it before the benchmark begins, whose own work would raise the load average.
    """
    gpu = present_gpu()
    return Machine(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        system=f"{platform.system()} {platform.machine()}, {_processor()}",
        gpu=None if gpu is None else f"{gpu.name}, driver for CUDA {gpu.driver}",
        cores=available_cores(),
        threads={name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        # The load average is not available on Windows.
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions=_versions(),
    )


def let_threads_sleep() -> None:
    """Make OpenMP's threads (torch uses them) sleep instead of spin; call it before torch loads.

    Threads that spin while they wait waste cores that others want: without this, torch's step took
    up to forty times as long. ONNX Runtime's threads sleep on a busy machine.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        # What the user has set stays:
        # https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
        os.environ.setdefault(name, value)


def _processor() -> str:
    """Return the processor's name, from Linux' list where there is one."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(errors="replace").splitlines():
            key, _, name = line.partition(":")
            # x86 has `model name`; the kernel of some ARM boards has `Model`, the board's name.
            if key.strip() in ("model name", "Model") and name.strip():
                return name.strip()
    return platform.processor() or "unknown processor"


def _versions() -> dict[str, str]:
    engines = [package for backend in BACKENDS.values() for package in backend.packages]
    return {
        "diver-trt": __version__,
        "Python": platform.python_version(),
        **installed(("numpy", *engines, "torch", "diffusers")),
    }
