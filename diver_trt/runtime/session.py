"""Choosing a backend by name and opening a bundle on it, or saying why not."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.runtime.engine import ENGINES, EngineName, Session
from diver_trt.runtime.memory import MemoryPlan, choose_memory_plan
from diver_trt.sidecar import Backend, Plan, read_plans

DEFAULT_BATCH = 8


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and the memory plan it follows if its engines have one."""

    session: Session
    memory: MemoryPlan | None

    @property
    def resident(self) -> bool:
        """Whether all networks stay loaded."""
        return self.memory is None or self.memory.residency == "resident"


def open_session(
    engine: str, bundle: Bundle, batch: int | None = None, memory_budget: int | None = None, images: int | None = None
) -> Opened:
    """Open a bundle on a backend.

    Args:
        engine: `"auto"`, `"onnx"`, `"onnx-cuda"`, `"rtx"` or `"trt"`.
        bundle: The bundle.
        batch: Images per batch; None leaves it to the memory plan, or is eight where there is none.
        memory_budget: Limit on engine memory in bytes, for `"rtx"` and `"trt"`.
        images: How many images there are, if that is known.

    Raises:
        EngineError: There is no such engine, it cannot run here, or nothing fits the batch or the budget.
        MissingExtraError: The backend's package is not installed.
    """
    if batch is not None and batch < 1:
        raise EngineError(f"batch is {batch}; expected 1 or more")
    if engine == "auto":
        return _open_first(bundle, batch, memory_budget, images)
    for name in ENGINES:
        if engine == name:
            return _open(name, bundle, batch, memory_budget, images)
    raise EngineError(f"there is no engine {engine!r}; expected auto, {', '.join(ENGINES)}")


def balanced_batch(images: int | None) -> int:
    """Return the batch, at most eight, that wastes least on filling the last one: 10 images are two batches of 5, not 8 and 2."""
    return math.ceil(images / math.ceil(images / DEFAULT_BATCH)) if images else DEFAULT_BATCH


def _open_first(bundle: Bundle, batch: int | None, memory_budget: int | None, images: int | None) -> Opened:
    """Open the first engine that works; one whose plans are there but do not fit is passed over with a warning that says why."""
    backends = {plan.backend for plan in read_plans(bundle) if isinstance(plan, Plan)}
    for name in ("rtx", "trt"):
        if name in backends:
            try:
                return _open(name, bundle, batch, memory_budget, images)
            except EngineError as reason:
                warnings.warn(f"engine {name} is passed over: {reason}", RuntimeWarning, stacklevel=3)
            except MissingExtraError:
                continue
    if memory_budget is None:
        try:
            return _open("onnx-cuda", bundle, batch, None, images)
        except EngineError:
            pass
    return _open("onnx", bundle, batch, memory_budget, images)


def _open(name: EngineName, bundle: Bundle, batch: int | None, memory_budget: int | None, images: int | None) -> Opened:
    if name in ("rtx", "trt"):
        return _open_tensorrt(name, bundle, batch, memory_budget, images)
    if memory_budget is not None:
        raise EngineError(f"a memory budget needs engines whose sidecars say what they take; engine {name} has none. Build some with `diver-trt build`")
    from diver_trt.runtime.onnx_engine import OnnxSession

    session = OnnxSession(bundle, batch or balanced_batch(images), "cuda" if name == "onnx-cuda" else "cpu")
    session.probe()
    return Opened(session, None)


def _open_tensorrt(backend: Backend, bundle: Bundle, batch: int | None, memory_budget: int | None, images: int | None) -> Opened:
    from diver_trt.runtime.cuda import Cuda, find_gpu, import_cuda
    from diver_trt.runtime.trt_engine import TrtSession
    from diver_trt.runtime.trt_module import import_tensorrt, this_machine

    module, api = import_tensorrt(backend), import_cuda()
    machine = this_machine(backend, module, find_gpu(api))
    plans = [plan for plan in read_plans(bundle) if isinstance(plan, Plan) and plan.backend == backend]
    if not plans:
        raise EngineError(f"{bundle.path}: has no engines for {backend}; build them with `diver-trt build {bundle.path} --backend {backend}`")
    misfits = [plan.misfit(bundle, machine) for plan in plans]
    usable = [plan for plan, misfit in zip(plans, misfits, strict=True) if misfit is None]
    if not usable:
        raise EngineError("; ".join(misfit for misfit in misfits if misfit))
    if batch is not None and not (usable := [plan for plan in usable if batch in plan.batches]):
        raise EngineError(f"no engine takes batch {batch}; build one with `diver-trt build {bundle.path} --backend {backend} --batch {batch}`")
    memory = choose_memory_plan(usable, memory_budget, images)
    session = TrtSession(bundle, memory.plan, batch or memory.batch, module, Cuda(api), shared_scratch=memory.residency == "resident")
    return Opened(session, memory)
