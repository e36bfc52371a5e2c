"""What this machine can run, found by trying it, and the command that mends what it cannot.

A package that is listed may not import, and a provider that is listed may not load: importing and opening a session are the only
proofs, so that is what happens here.
"""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Literal

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.errors import DiverError, MissingExtraError
from diver_trt.runtime.backends.onnx import OnnxSession, import_onnxruntime
from diver_trt.runtime.backends.tensorrt.cuda import Gpu, find_gpu, import_cuda
from diver_trt.runtime.backends.tensorrt.module import import_tensorrt, this_machine
from diver_trt.runtime.backends.tensorrt.sidecar import (
    BACKENDS,
    Backend,
    Machine,
    Plan,
    StrayFoldersError,
    read_plans,
)

State = Literal["works", "missing", "broken", "note"]

JETSON_RELEASE = Path("/etc/nv_tegra_release")
SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Attributes:
        subject: What it is about: `"ONNX Runtime, CPU"`.
        state: `"works"`; `"missing"`, not installed or not there, which is fine unless it is wanted; `"broken"`, there but unusable;
            `"note"`.
        detail: What was seen.
        remedy: The command or step that mends it, if there is one.
    """

    subject: str
    state: State
    detail: str
    remedy: str | None = None


def examine(bundle: Bundle) -> Iterator[Finding]:
    """Try everything that a recovery may need, one finding at a time.

    Args:
        bundle: A bundle whose smallest network is opened, and whose engines are held against this machine.
    """
    yield Finding(
        "diver-trt",
        "note",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    on_gpu = list(_gpu())
    gpu = next((found for _, found in on_gpu if found), None)
    yield from _onnxruntime(bundle, gpu)
    yield from (finding for finding, _ in on_gpu)
    machines: dict[Backend, Machine] = {}
    for backend in BACKENDS:
        finding, machine = _tensorrt(backend, gpu)
        if machine:
            machines[backend] = machine
        yield finding
    yield from _jetson()
    yield from _engines(bundle, machines)


def usable(findings: list[Finding]) -> bool:
    """Return whether at least one engine can recover images here."""
    return any(
        finding.state == "works" and finding.subject.startswith(("ONNX Runtime", "engines"))
        for finding in findings
    )


def _onnxruntime(bundle: Bundle, gpu: Gpu | None) -> Iterator[Finding]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runtime = import_onnxruntime()
    except DiverError as error:
        yield _unusable("ONNX Runtime, CPU", error)
        return
    for warning in caught:
        if issubclass(warning.category, RuntimeWarning):
            yield Finding(
                "ONNX Runtime packages",
                "broken",
                str(warning.message).partition("; run ")[0],
                "pip uninstall -y onnxruntime onnxruntime-gpu, then install "
                + ("one of them" if gpu else "onnxruntime, as there is no NVIDIA GPU here"),
            )
    yield _session(OnnxSession(bundle, 1, "cpu"), "ONNX Runtime, CPU", runtime.__version__)
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        yield _session(OnnxSession(bundle, 1, "cuda"), "ONNX Runtime, CUDA", runtime.__version__)
    else:
        yield _no_cuda_provider(f"onnxruntime {runtime.__version__} has no CUDA provider", gpu)


def _no_cuda_provider(detail: str, gpu: Gpu | None) -> Finding:
    """Return the finding for a package without the provider, with a remedy only where the provider could run."""
    subject = "ONNX Runtime, CUDA"
    if gpu is None:
        return Finding(subject, "missing", f"{detail}, and no NVIDIA GPU was found that needs it")
    if JETSON_RELEASE.exists():
        detail += ", and no prebuilt onnxruntime-gpu has code for a Jetson's GPU"
        return Finding(subject, "missing", detail, "diver-trt build BUNDLE --backend trt")
    # Never an install on top of the CPU package, whose files the other one overwrites.
    remedy = "pip uninstall -y onnxruntime, then install onnxruntime-gpu in its place"
    return Finding(subject, "missing", detail, remedy)


def _session(session: OnnxSession, subject: str, version: str) -> Finding:
    remedy = (
        "install the CUDA and cuDNN libraries that this onnxruntime asks for"
        if session.device == "cuda"
        else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # both packages together are a finding of their own
        try:
            engine = session.open("encoder")
            try:
                engine.run()  # a provider may load and have no code for the GPU that is here
            finally:
                engine.close()
        except DiverError as error:
            return Finding(subject, "broken", str(error), remedy)
    return Finding(subject, "works", f"onnxruntime {version} ran a network")


def _gpu() -> Iterator[tuple[Finding, Gpu | None]]:
    try:
        api = import_cuda()
    except DiverError as error:
        remedy = "pip install cuda-bindings polygraphy, before 13 on JetPack 6"
        yield _unusable("CUDA", error, remedy if JETSON_RELEASE.exists() else ...), None
        return
    (_, driver), (_, bindings) = api.cudaDriverGetVersion(), api.cudaRuntimeGetVersion()
    if 0 < driver // 1000 < bindings // 1000:  # the bindings' runtime then finds no device at all
        detail = f"cuda-bindings is for CUDA {bindings // 1000}, the driver for {driver // 1000}.{driver % 1000 // 10}"
        yield (
            Finding(
                "CUDA driver",
                "broken",
                detail,
                f"update the driver, or pip install 'cuda-bindings<{driver // 1000 + 1}'",
            ),
            None,
        )
    gpu = find_gpu(api)
    if gpu is None:
        yield (
            Finding(
                "CUDA",
                "missing",
                "no NVIDIA GPU, or no driver that works; --engine onnx needs neither",
            ),
            None,
        )
    else:
        found = f"{gpu.name}, {gpu.compute_capability}, {gpu.total_bytes / 1e9:.1f} GB, driver for CUDA {gpu.driver}"
        yield Finding("CUDA", "works", found), gpu


def _tensorrt(backend: Backend, gpu: Gpu | None) -> tuple[Finding, Machine | None]:
    subject = "TensorRT-RTX" if backend == "rtx" else "TensorRT"
    try:
        module = import_tensorrt(backend)
    except DiverError as error:
        if JETSON_RELEASE.exists():  # where the packages of the index are not for its GPU
            remedy = "use JetPack's own, see docs/jetson.md" if backend == "trt" else None
            return _unusable(subject, error, remedy), None
        # TensorRT-RTX builds engines anywhere; TensorRT is of no use without a GPU.
        return _unusable(subject, error, None if backend == "trt" and gpu is None else ...), None
    try:
        module.Runtime(module.Logger(module.Logger.ERROR))
    except (
        Exception
    ) as cause:  # without a driver, some versions refuse to start, each in a way of its own
        return Finding(subject, "broken", f"{module.__version__} cannot start: {cause}"), None
    builds = "; builds engines, runs none without a GPU" if gpu is None and backend == "rtx" else ""
    return Finding(subject, "works", f"{module.__version__}{builds}"), this_machine(
        backend, module, gpu
    )


def _jetson() -> Iterator[Finding]:
    if not JETSON_RELEASE.exists():
        return
    yield Finding("Jetson", "note", JETSON_RELEASE.read_text(errors="replace").splitlines()[0])
    in_environment = sys.prefix != sys.base_prefix
    hidden = in_environment and not any(Path(entry) == SYSTEM_PACKAGES for entry in sys.path)
    if hidden and (SYSTEM_PACKAGES / "tensorrt").exists():
        yield Finding(
            "JetPack's TensorRT", "broken", f"is in {SYSTEM_PACKAGES}, which this virtual environment hides",
            "python3 -m venv --system-site-packages .venv",
        )  # fmt: skip


def _engines(bundle: Bundle, machines: dict[Backend, Machine]) -> Iterator[Finding]:
    for plan in read_plans(bundle):
        if isinstance(plan, StrayFoldersError):
            yield Finding("engines", "note", str(plan))
            continue
        if not isinstance(plan, Plan):
            yield Finding("engines", "broken", str(plan), f"diver-trt build {bundle.path}")
            continue
        subject = f"engines {plan.folder.name}"
        machine = machines.get(plan.backend)
        if machine is None:
            yield Finding(subject, "broken", f"are for {plan.backend}, which does not work here")
        elif misfit := plan.misfit(bundle, machine):
            yield Finding(subject, "broken", misfit.reason, misfit.command)
        elif reason := plan.distrusted():
            yield Finding(
                subject, "broken", reason, f"diver-trt recover … --bundle {bundle.path} --trust"
            )
        else:
            yield Finding(subject, "works", f"batch {plan.batches}")


def _unusable(subject: str, error: DiverError, remedy: str | EllipsisType | None = ...) -> Finding:
    """Return the finding for a package that does not import: missing if it is not installed, else broken.

    Args:
        subject: What was tried.
        error: What came of it.
        remedy: What to do where it is missing; by default, what the error says.
    """
    if isinstance(error, MissingExtraError):
        return Finding(
            subject, "missing", "not installed", error.command if remedy is ... else remedy
        )
    return Finding(subject, "broken", str(error))
