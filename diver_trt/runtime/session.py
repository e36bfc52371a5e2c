"""Choosing an engine by name, and opening a bundle on it."""

from __future__ import annotations

import shlex

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, UsageError, shown
from diver_trt.runtime.backends import AUTO, BACKENDS, engine_choices
from diver_trt.runtime.engine import Opened, Placement


def engine_names(engine: str, bundle: Bundle) -> list[str]:
    """Return the engines to try, in order: one, or for `"auto"` all that are available.

    Raises:
        UsageError: If there is no such engine.
    """
    require_engine(engine)
    if engine == AUTO:
        return [
            name for name, backend in BACKENDS.items() if backend.load().available(name, bundle)
        ]
    return [engine]


def require_engine(engine: object) -> None:
    """Check that an engine of this name exists.

    Raises:
        UsageError: If it does not.
    """
    if not isinstance(engine, str) or engine not in (AUTO, *BACKENDS):
        raise UsageError(f"unknown engine {shown(repr(engine))}; expected {engine_choices()}")


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open a bundle on one engine.

    Args:
        name: The engine, a key of `BACKENDS`.
        bundle: The bundle.
        placement: The batch size and the limits; its `engine` is ignored.

    Raises:
        EngineError: If the engine cannot or must not run here, or nothing fits the batch or budget.
        MissingExtraError: If the backend's package is not installed.
    """
    backend = BACKENDS[name]
    if placement.memory_budget is not None and not backend.compiled:
        raise EngineError(
            f"engine {name} does not report its memory, so a memory budget cannot be enforced; "
            "omit the budget, or build TensorRT engines with "
            f"`diver-trt build {shlex.quote(str(bundle.path))}`"
        )
    return backend.load().open_session(name, bundle, placement)
