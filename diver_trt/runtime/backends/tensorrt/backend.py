"""TensorRT and TensorRT-RTX in the registry: finding and opening a bundle's engines."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import cast

from diver_trt.bundle import Bundle
from diver_trt.errors import DiverError, EngineError, MissingExtraError
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.tensorrt import cuda, module
from diver_trt.runtime.backends.tensorrt.memory import choose_memory_plan
from diver_trt.runtime.backends.tensorrt.plans import Plan, read_plans
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Machine
from diver_trt.runtime.engine import Opened, Placement


def available(name: str, bundle: Bundle) -> bool:
    """Return whether the bundle has engines of this backend, and they could run on this system."""
    return sys.platform != "win32" and bool(_plans(name, bundle))


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open the engines that fit this machine, the batch and the budget, and are trusted."""
    from diver_trt.runtime.backends.tensorrt.session import TrtSession

    tensorrt, api = module.import_tensorrt(cast("Backend", name)), cuda.import_cuda()
    machine = module.this_machine(cast("Backend", name), tensorrt, cuda.find_gpu(api))
    plans = _usable(name, bundle, machine, placement)
    device = cuda.Cuda(api)
    try:
        # What is free is always a limit: a plan that exceeds it would only fail while it is loaded.
        free, _ = device.memory()
        memory = choose_memory_plan(plans, placement.memory_budget, placement.images, free)
        # Before the session, which looks every engine up in the list again.
        if placement.trust:
            memory.plan.trust()
        # The plan is that of its largest batch, so a smaller one fits, too.
        batch = placement.batch or memory.batch
        if placement.images:
            batch = max(memory.plan.batches.minimum, min(batch, placement.images))
        session = TrtSession(
            bundle,
            memory.plan,
            batch,
            tensorrt,
            device,
            shared_scratch=memory.residency == "resident",
        )
    except BaseException:
        device.close()
        raise
    return Opened(session, memory)


def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
    """Start TensorRT, and hold the bundle's engines against this machine."""
    finding, machine = _start(cast("Backend", name))
    yield finding
    readable = (plan for plan in read_plans(bundle) if isinstance(plan, Plan))
    for plan in (plan for plan in readable if plan.backend == name):
        subject = f"engines {plan.folder.name}"
        if machine is None:
            untried = f"could not be tried: they are for {name}, which does not work here"
            yield Finding(subject, "note", untried)
        elif (misfit := plan.misfit(bundle, machine)) and misfit.without_gpu:
            yield Finding(subject, "note", "could not be tried: there is no NVIDIA GPU here")
        elif misfit:
            yield Finding(subject, "broken", misfit.reason, misfit.command)
        elif reason := plan.distrusted():
            remedy = f"diver-trt recover … --bundle {shlex.quote(str(bundle.path))} --trust"
            yield Finding(subject, "broken", reason, remedy)
        else:
            yield Finding(subject, "works", f"batch {plan.batches}", recovers=True)


def _plans(name: str, bundle: Bundle) -> list[Plan]:
    """Return the engines of this backend, and warn of folders that cannot be read."""
    plans = []
    for plan in read_plans(bundle):
        if not isinstance(plan, Plan):
            warnings.warn(f"engines are skipped: {plan}", RuntimeWarning, stacklevel=1)
        elif plan.backend == name:
            plans.append(plan)
    return plans


def _usable(name: str, bundle: Bundle, machine: Machine, placement: Placement) -> list[Plan]:
    """Return the plans that fit the machine and the batch and are trusted, at least one.

    Raises:
        EngineError: If no plan fits; the message names the condition that none met.
    """
    build = f"`diver-trt build {shlex.quote(str(bundle.path))} --backend {name}"
    plans = _plans(name, bundle)
    if not plans:
        raise EngineError(f"{bundle.path}: has no engines for {name}; build them with {build}`")
    # Machine, batch, trust: the error names the first condition that no plan meets.
    misfits = [plan.misfit(bundle, machine) for plan in plans]
    usable = [plan for plan, misfit in zip(plans, misfits, strict=True) if misfit is None]
    if not usable:
        raise EngineError("\n".join(str(misfit) for misfit in misfits if misfit))
    batch = placement.batch
    if batch is not None and not (usable := [plan for plan in usable if batch in plan.batches]):
        raise EngineError(f"no engine takes batch {batch}; build one with {build} --batch {batch}`")
    if placement.trust:
        return usable
    distrusted = [plan.distrusted() for plan in usable]
    trusted = [plan for plan, reason in zip(usable, distrusted, strict=True) if reason is None]
    if not trusted:
        raise EngineError(distrusted[0])
    return trusted


def _start(backend: Backend) -> tuple[Finding, Machine | None]:
    title = BACKENDS[backend].title
    try:
        tensorrt = module.import_tensorrt(backend)
    except MissingExtraError as error:
        return Finding(title, "missing", "not installed", _install(backend, error)), None
    except DiverError as error:
        return Finding(title, "broken", str(error)), None
    try:
        tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    except Exception as cause:  # without a driver, each version refuses to start in its own way
        return Finding(title, "broken", f"{tensorrt.__version__} cannot start: {cause}"), None
    gpu = cuda.present_gpu()
    builds = "; builds engines, runs none without a GPU" if gpu is None and backend == "rtx" else ""
    found = Finding(title, "works", f"{tensorrt.__version__}{builds}")
    return found, module.this_machine(backend, tensorrt, gpu)


def _install(backend: Backend, error: MissingExtraError) -> str | None:
    """Return how to install a backend's package, or None where it would be of no use."""
    if cuda.on_jetson():  # the package index has nothing for its GPU
        return "use JetPack's own, see docs/jetson.md" if backend == "trt" else None
    # TensorRT-RTX builds engines on any machine, TensorRT only where there is a GPU.
    return None if backend == "trt" and cuda.present_gpu() is None else error.command
