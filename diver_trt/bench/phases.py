"""The time of a recovery by phase, seen at the border of its engine.

A backend is one entry of a registry (`diver_trt.runtime.backends.BACKENDS`). While `timed` runs,
an engine's entry is wrapped, and so is what it opens: each call into a network is an interval on
one clock. The recovery itself is not changed, so its own work is what no interval covers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.runtime.backends import BACKENDS, Backend
from diver_trt.runtime.engine import Opened, Placement, Session

OPENING = "opening"
PHASES = ("denoiser", "decoder", "encoder", "conditioner", "reading", "writing", OPENING)
"""Where two overlap, as networks do that run in two threads, the earlier one gets the time."""

Interval = tuple[str, float, float]
"""A phase, and when it began and ended, in seconds of `time.perf_counter`."""


@dataclass(slots=True)
class Record:
    """Intervals of one recovery. Threads may add to it at once."""

    intervals: list[Interval] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the block as an interval."""
        started = time.perf_counter()
        try:
            yield
        finally:
            # list.append is atomic: https://docs.python.org/3/faq/library.html
            self.intervals.append((name, started, time.perf_counter()))


def seconds_by_phase(intervals: Sequence[Interval]) -> dict[str, float]:
    """Return how long each phase took; no moment is counted twice.

    Args:
        intervals: Intervals of phases in `PHASES`, which may overlap.
    """
    borders = sorted({border for _, start, end in intervals for border in (start, end)})
    edges: dict[float, list[tuple[str, int]]] = {border: [] for border in borders}
    for phase, start, end in intervals:
        edges[start].append((phase, 1))
        edges[end].append((phase, -1))
    running = dict.fromkeys(PHASES, 0)
    seconds = dict.fromkeys(PHASES, 0.0)
    # Between two borders the same phases run throughout: the first of them in `PHASES` gets the
    # time.
    for border, following in pairwise(borders):
        for phase, change in edges[border]:
            running[phase] += change
        first = next((phase for phase in PHASES if running[phase]), None)
        if first is not None:
            seconds[first] += following - border
    return {phase: taken for phase, taken in seconds.items() if taken}


@contextmanager
def timed(engine: str) -> Iterator[Record]:
    """Record what the networks of an engine do during the block.

    Args:
        engine: A name of `BACKENDS`.
    """
    original, record = BACKENDS[engine], Record()
    BACKENDS[engine] = cast("Backend", _TimedBackend(original, record))
    try:
        yield record
    finally:
        BACKENDS[engine] = original


class _Wrapped:
    """Another object, of which some methods are timed.

    Every other attribute is the object's own, so that a backend may have more than the protocol.
    """

    def __init__(self, inner: Any, record: Record) -> None:
        self._inner, self._record = inner, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _TimedBackend(_Wrapped):
    def load(self) -> Any:
        return _TimedModule(self._inner.load(), self._record)


class _TimedModule(_Wrapped):
    def open_session(self, name: str, bundle: Bundle, placement: Placement) -> Opened:
        with self._record.phase(OPENING):
            opened: Opened = self._inner.open_session(name, bundle, placement)
        return replace(opened, session=cast("Session", _TimedSession(opened.session, self._record)))


class _TimedSession(_Wrapped):
    def open(self, network: NetworkName) -> Any:
        with self._record.phase(OPENING):
            return _TimedEngine(network, self._inner.open(network), self._record)

    def open_denoiser(self, table: Any, steps: int) -> Any:
        with self._record.phase(OPENING):
            return _TimedDenoiser(self._inner.open_denoiser(table, steps), self._record)


class _TimedEngine(_Wrapped):
    def __init__(self, network: NetworkName, inner: Any, record: Record) -> None:
        super().__init__(inner, record)
        self._network = network

    def write(self, name: str, values: Any) -> None:
        with self._record.phase(self._network):
            self._inner.write(name, values)

    def run(self) -> None:
        with self._record.phase(self._network):
            self._inner.run()

    def read(self, name: str) -> Any:
        with self._record.phase(self._network):
            return self._inner.read(name)


class _TimedDenoiser(_Wrapped):
    def load(self, *batch: Any) -> None:
        with self._record.phase("denoiser"):
            self._inner.load(*batch)

    def run(self) -> Iterator[int]:
        steps = self._inner.run()
        while True:
            with self._record.phase("denoiser"):
                # The engine's own share of a step: what the caller does between two steps is
                # outside.
                k = next(steps, None)
            if k is None:
                return
            yield k

    def latent(self) -> Any:
        with self._record.phase("denoiser"):
            return self._inner.latent()
