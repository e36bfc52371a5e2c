"""The open networks of a session: all four at once, or one at a time where memory is short."""

from __future__ import annotations

import gc
import shlex
import warnings
from collections.abc import Sequence

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DeviceMemoryError, EngineError, MissingExtraError
from diver_trt.method.schedule import Schedule
from diver_trt.runtime.backends import AUTO, BACKENDS
from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan
from diver_trt.runtime.engine import Denoiser, Engine, Placement, Session
from diver_trt.runtime.session import engine_names, open_session


class Networks:
    """The open networks of a session: all four, or in phases, only the last one requested.

    Args:
        session: The session; closed with the networks.
        schedule: The steps that the denoiser runs.
        resident: Whether all networks stay loaded.
        first: Networks to open now, all by default; in phases one after the other.
    """

    def __init__(
        self,
        session: Session,
        schedule: Schedule,
        *,
        resident: bool,
        first: Sequence[NetworkName] = NETWORKS,
    ) -> None:
        self._session: Session | None = session
        self.engine, self.batch, self.resident = session.name, session.batch, resident
        self._schedule = schedule
        self._engines: dict[NetworkName, Engine] = {}
        self._denoiser: Denoiser | None = None
        try:
            # In phases, too: whether an engine works and there is room only shows when it opens a
            # network, and then `auto` can fall back, or the batch be halved.
            for name in first:
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
            return _open(name, bundle, schedule, placement)
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
    return _open(last, bundle, schedule, placement)


def _open(
    name: str, bundle: Bundle, schedule: Schedule, placement: Placement
) -> tuple[Networks, MemoryPlan | None]:
    """Open a bundle on one engine, its networks one at a time where memory is short."""
    opened = open_session(name, bundle, placement)
    phased = opened.memory is not None and not opened.resident
    # A plan has counted what fits, so the first network is enough to see that it works.
    first = NETWORKS[:1] if phased else NETWORKS
    try:
        networks = Networks(opened.session, schedule, resident=opened.resident, first=first)
        return networks, opened.memory
    except DeviceMemoryError:
        if opened.memory is not None:
            raise
    # Not in the handler, since the error's traceback keeps alive what its frames have opened.
    gc.collect()
    session = open_session(name, bundle, placement).session
    networks = Networks(session, schedule, resident=False)
    warnings.warn("out of memory: loading one network at a time", RuntimeWarning, stacklevel=4)
    return networks, None


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
