"""What this machine can run, found by trying, and the command that repairs what it cannot.

An installed package may fail to import, and a listed provider may fail to load. So every package is
imported, and a session is opened on every engine.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.errors import DiverError, MissingExtraError
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.tensorrt import cuda
from diver_trt.runtime.backends.tensorrt.plans import Plan, StrayFoldersError, read_plans

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
"""Where JetPack's Debian packages put their Python modules."""


def examine(bundle: Bundle) -> Iterator[Finding]:
    """Try everything that a recovery may need, one finding at a time.

    Args:
        bundle: A bundle whose smallest network is opened, and whose engines are checked against
            this machine.
    """
    yield Finding(
        "diver-trt",
        "note",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}",
    )
    yield from _gpu()
    for name, backend in BACKENDS.items():
        yield from backend.load().probe(name, bundle)
    yield from _jetson()
    for plan in read_plans(bundle):
        if isinstance(plan, StrayFoldersError):
            yield Finding("engines", "note", str(plan))
            continue
        command = f"diver-trt build {shlex.quote(str(bundle.path))}"
        for error in plan.check(bundle) if isinstance(plan, Plan) else [plan]:
            yield Finding("engines", "broken", str(error), command)


def usable(findings: list[Finding]) -> bool:
    """Return whether at least one engine can recover images here."""
    return any(finding.recovers for finding in findings)


def _gpu() -> Iterator[Finding]:
    try:
        api = cuda.import_cuda()
    except MissingExtraError as error:
        # Not the extra, whose `tensorrt` from PyPI is not for Jetson, and CUDA 12 is JetPack 6's:
        # docs/jetson.md.
        jetson = "pip install cuda-bindings polygraphy, before 13 on JetPack 6"
        remedy = jetson if cuda.on_jetson() else error.command if cuda.has_driver() else None
        if error.problem:
            yield Finding("CUDA", "broken", error.problem, remedy)
        else:
            yield Finding("CUDA", "missing", "not installed", remedy)
        return
    except DiverError as error:
        yield Finding("CUDA", "broken", str(error))
        return
    (_, driver), (_, bindings) = api.cudaDriverGetVersion(), api.cudaRuntimeGetVersion()
    # CUDA is compatible within a major version; beyond it, the bindings' runtime finds no device:
    # https://docs.nvidia.com/deploy/cuda-compatibility/. Without a driver, the version is 0.
    if 0 < driver // 1000 < bindings // 1000:
        # Versions are 1000 * major + 10 * minor, 12060 for CUDA 12.6:
        # https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART____VERSION.html
        found = f"the driver for {driver // 1000}.{driver % 1000 // 10}"
        yield Finding(
            "CUDA driver",
            "broken",
            f"cuda-bindings is for CUDA {bindings // 1000}, {found}",
            f"update the driver, or pip install 'cuda-bindings<{driver // 1000 + 1}'",
        )
    gpu = cuda.find_gpu(api)
    if gpu is None:
        detail = "no NVIDIA GPU, or no working driver; --engine onnx needs neither"
        yield Finding("CUDA", "missing", detail)
    else:
        memory = f"{gpu.total_bytes / 1e9:.1f} GB"
        detail = f"{gpu.name}, {gpu.compute_capability}, {memory}, driver for CUDA {gpu.driver}"
        yield Finding("CUDA", "works", detail)


def _jetson() -> Iterator[Finding]:
    if not cuda.on_jetson():
        return
    release = cuda.JETSON_RELEASE.read_text(errors="replace").splitlines()
    yield Finding("Jetson", "note", release[0] if release else f"{cuda.JETSON_RELEASE} is empty")
    # A virtual environment hides system packages unless it was made with --system-site-packages.
    in_environment = sys.prefix != sys.base_prefix
    hidden = in_environment and SYSTEM_PACKAGES not in map(Path, sys.path)
    if hidden and (SYSTEM_PACKAGES / "tensorrt").exists():
        yield Finding(
            "JetPack's TensorRT",
            "broken",
            f"is in {SYSTEM_PACKAGES}, which this virtual environment hides",
            "python3 -m venv --system-site-packages .venv",
        )
