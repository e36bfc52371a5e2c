"""The open networks of a session: all four at once, or one at a time where memory is short."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DeviceMemoryError, EngineError, MissingExtraError
from diver_trt.method.schedule import Schedule
from diver_trt.runtime.backends import AUTO, BACKENDS
from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan
from diver_trt.runtime.engine import Denoiser, Engine, Opened, Placement, Session
from diver_trt.runtime.session import engine_names, open_session


class Networks:
    """The open networks of a session: all four, or in phases, only the last one requested."""

    def __init__(self, opened: Opened, schedule: Schedule) -> None:
        self._session: Session | None = opened.session
        self.engine, self.batch, self.resident = (
            opened.session.name,
            opened.session.batch,
            opened.resident,
        )
        self._schedule = schedule
        self._engines: dict[NetworkName, Engine] = {}
        self._denoiser: Denoiser | None = None
        try:
            # In phases at least the first, so that `auto` can fall back: whether an engine works
            # only shows when it opens a network.
            for name in NETWORKS if self.resident else ("encoder",):
                self.denoiser() if name == "denoiser" else self.open(name)
        except BaseException:
            self.close()
            raise

    def open(self, name: NetworkName) -> Engine:
        """Return the encoder, conditioner or decoder."""
        if name not in self._engines:
            self._engines[name] = self._prepared().open(name)
        return self._engines[name]

    def denoiser(self) -> Denoiser:
        """Return the denoiser."""
        if self._denoiser is None:
            table, steps = self._schedule.table, len(self._schedule.times)
            self._denoiser = self._prepared().open_denoiser(table, steps)
        return self._denoiser

    def close(self) -> None:
        """Close the networks and the session, also if closing a network fails."""
        session, self._session = self._session, None
        if session is not None:
            try:
                self._close_networks()
            finally:
                session.close()

    def _prepared(self) -> Session:
        """Return the session with room for one more network."""
        if self._session is None:
            raise EngineError("the recoverer is closed; open a new one")
        if not self.resident:
            self._close_networks()
        return self._session

    def _close_networks(self) -> None:
        # Forgotten first, so that a network whose close fails is not closed again.
        engines, self._engines = self._engines, {}
        denoiser, self._denoiser = self._denoiser, None
        for engine in engines.values():
            engine.close()
        if denoiser is not None:
            denoiser.close()


def open_networks(
    bundle: Bundle, schedule: Schedule, placement: Placement
) -> tuple[Networks, MemoryPlan | None]:
    """Open a bundle on the placement's engine, or on the first one that works for `"auto"`.

    Args:
        bundle: The bundle.
        schedule: The steps that the denoiser runs.
        placement: The engine, the batch size and the limits.

    Returns:
        The networks, and the memory plan that they follow, or None if the engine has none.

    Raises:
        BundleError: If a network's files have changed since the export.
        EngineError: If the engine cannot run here.
        DeviceMemoryError: If there is no room for the batch.
        UsageError: If there is no such engine.
    """
    names = engine_names(placement.engine, bundle)
    if placement.engine == AUTO and placement.memory_budget is not None:
        names = _reporting_memory(names, bundle)
    *others, last = names
    for name in others:
        try:
            opened = open_session(name, bundle, placement)
            return Networks(opened, schedule), opened.memory
        except DeviceMemoryError as shortage:
            # The engine works. A slower one, on the CPU perhaps, would take over in silence.
            shortage.engine = name
            raise
        except (EngineError, MissingExtraError) as reason:
            # Whoever built engines expects them to run; the other engines are simply not installed
            # on most machines.
            if BACKENDS[name].compiled:
                warnings.warn(f"engine {name} is skipped: {reason}", RuntimeWarning, stacklevel=3)
    # Not in the loop: where no engine works, the error of the last one is raised.
    opened = open_session(last, bundle, placement)
    return Networks(opened, schedule), opened.memory


def _reporting_memory(names: Sequence[str], bundle: Bundle) -> list[str]:
    """Return the engines that can keep to a memory budget.

    Raises:
        EngineError: If there is none.
    """
    if compiled := [name for name in names if BACKENDS[name].compiled]:
        return compiled
    raise EngineError(
        f"{bundle.path}: has no TensorRT engines, and other engines do not report their memory, so "
        "a memory budget cannot be enforced; omit the budget, or build engines with "
        f"`diver-trt build {shlex.quote(str(bundle.path))}`"
    )
