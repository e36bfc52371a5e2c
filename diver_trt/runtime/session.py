"""Choosing a backend by name and opening a bundle on it, or saying why not."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, UsageError, shown
from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan, choose_memory_plan
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Plan, read_plans
from diver_trt.runtime.engine import ENGINES, EngineName, Session

DEFAULT_BATCH = 8
AUTO_ORDER: tuple[EngineName, ...] = ("rtx", "trt", "onnx-cuda", "onnx")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and the memory plan it follows if its engines have one."""

    session: Session
    memory: MemoryPlan | None

    @property
    def resident(self) -> bool:
        """Whether all networks stay loaded."""
        return self.memory is None or self.memory.residency == "resident"


def engine_names(engine: str, bundle: Bundle) -> list[EngineName]:
    """Return the engines to try, in order: one, or for `"auto"` those with engines in the bundle and then ONNX Runtime.

    Raises:
        UsageError: If there is no such engine.
    """
    require_engine(engine)
    if engine == "auto":
        built = {plan.backend for plan in read_plans(bundle) if isinstance(plan, Plan)}
        return [name for name in AUTO_ORDER if name in built or name.startswith("onnx")]
    return [name for name in ENGINES if name == engine]


def require_engine(engine: object) -> None:
    """Refuse what is not the name of an engine.

    Raises:
        UsageError: If it is neither `"auto"` nor one of `ENGINES`.
    """
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(
            f"there is no engine {shown(repr(engine))}; expected auto, {', '.join(ENGINES)}"
        )


def open_session(
    name: EngineName,
    bundle: Bundle,
    batch: int | None = None,
    memory_budget: int | None = None,
    images: int | None = None,
    trust: bool = False,
) -> Opened:
    """Open a bundle on one engine.

    Args:
        name: The engine.
        bundle: The bundle.
        batch: Images per batch; None leaves it to the memory plan, or is at most eight where there is none. Where engines take any batch,
            it is cut down to the number of images.
        memory_budget: Limit on engine memory in bytes, for `"rtx"` and `"trt"`; what is free on the device limits it in any case.
        images: How many images there are, if that is known.
        trust: Whether TensorRT engines that were not built on this machine may run; they are entered into the list of those that may.

    Raises:
        UsageError: If a number is out of range.
        EngineError: If the engine cannot or must not run here, or nothing fits the batch or the budget.
        MissingExtraError: The backend's package is not installed.
    """
    for option, value in (("batch", batch), ("memory_budget", memory_budget), ("images", images)):
        if value is not None and not (_is_whole(value) and value >= (option != "images")):
            raise UsageError(
                f"{option} is {shown(repr(value))}; expected a whole number, {int(option != 'images')} or more, or None"
            )
    if name in ("rtx", "trt"):
        return _open_tensorrt(name, bundle, batch, memory_budget, images, trust)
    if memory_budget is not None:
        raise EngineError(
            f"a memory budget needs engines whose sidecars say what they take; engine {name} has none. Build some with `diver-trt build`"
        )
    from diver_trt.runtime.backends.onnx import OnnxSession

    size = min(batch or balanced_batch(images), images or sys.maxsize)
    return Opened(OnnxSession(bundle, size, "cuda" if name == "onnx-cuda" else "cpu"), None)


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)  # numpy's integers too


def balanced_batch(images: int | None) -> int:
    """Return the batch, at most eight, that wastes least on filling the last one: 10 images are two batches of 5, not 8 and 2."""
    return math.ceil(images / math.ceil(images / DEFAULT_BATCH)) if images else DEFAULT_BATCH


def _open_tensorrt(
    backend: Backend,
    bundle: Bundle,
    batch: int | None,
    memory_budget: int | None,
    images: int | None,
    trust: bool,
) -> Opened:
    from diver_trt.runtime.backends.tensorrt.cuda import Cuda, find_gpu, import_cuda
    from diver_trt.runtime.backends.tensorrt.engine import TrtSession
    from diver_trt.runtime.backends.tensorrt.module import import_tensorrt, this_machine

    module, api = import_tensorrt(backend), import_cuda()
    machine = this_machine(backend, module, find_gpu(api))
    plans = [
        plan for plan in read_plans(bundle) if isinstance(plan, Plan) and plan.backend == backend
    ]
    if not plans:
        raise EngineError(
            f"{bundle.path}: has no engines for {backend}; build them with `diver-trt build {bundle.path} --backend {backend}`"
        )
    misfits = [plan.misfit(bundle, machine) for plan in plans]
    usable = [plan for plan, misfit in zip(plans, misfits, strict=True) if misfit is None]
    if not usable:
        raise EngineError("\n".join(str(misfit) for misfit in misfits if misfit))
    if batch is not None and not (usable := [plan for plan in usable if batch in plan.batches]):
        raise EngineError(
            f"no engine takes batch {batch}; build one with `diver-trt build {bundle.path} --backend {backend} --batch {batch}`"
        )
    if not trust:
        distrusted = [plan.distrusted() for plan in usable]
        usable = [plan for plan, reason in zip(usable, distrusted, strict=True) if reason is None]
        if not usable:
            raise EngineError(distrusted[0])
    cuda = Cuda(api)
    try:
        free, _ = cuda.memory()
        memory = choose_memory_plan(usable, min(memory_budget or free, free), images)
        if trust:
            memory.plan.trust()
        session = TrtSession(
            bundle,
            memory.plan,
            batch or memory.batch,
            module,
            cuda,
            shared_scratch=memory.residency == "resident",
        )
    except BaseException:
        cuda.close()
        raise
    return Opened(session, memory)
