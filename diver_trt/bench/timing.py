"""Jobs measured in alternation, their percentiles, and ratios of pairs.

The speed of a machine changes while two jobs are measured: another process starts, or a clock
drops. So every round runs each job once, in an order that is reversed from round to round, and two
jobs are compared round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Job = Callable[[], float]
"""Runs once and returns the seconds that count.

These may be fewer than it takes: the mean of a batch's steps, or a recovery without its opening.
"""

LEAST_ROUNDS = 3
WARM_UP_RUNS, WARM_UP_SECONDS = 2, 1.0
"""Uncounted runs of each job before the first round; one is enough where it takes so long."""
BLOCK_SECONDS, MAX_BLOCK = 0.02, 50
"""A job that is shorter is run several times in a row, so that a round is not all switching."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The measured times of one job.

    Attributes:
        rounds: Seconds of every run, round by round.
        warm_up: How many runs before them were not counted.
    """

    rounds: tuple[tuple[float, ...], ...]
    warm_up: int

    @property
    def seconds(self) -> tuple[float, ...]:
        """Seconds of every run."""
        return tuple(second for block in self.rounds for second in block)

    @property
    def median(self) -> float:
        """Median of every run in seconds."""
        return self.percentile(50)

    def percentile(self, percent: float) -> float:
        """Return a percentile of the runs in seconds, interpolated between neighbours."""
        return float(np.percentile(self.seconds, percent))


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one job is than another, over the rounds.

    Attributes:
        median: Median of the rounds' ratios; above 1 the job is faster than the other.
        low: Their first quartile.
        high: Their third quartile.
    """

    median: float
    low: float
    high: float


def speed_ratio(timing: Timing, reference: Timing) -> Ratio:
    """Return how many times faster a job ran than a reference in the same rounds.

    A round's ratio is the median of the reference's runs over the median of the job's.
    """
    ratios = [
        statistics.median(theirs) / statistics.median(ours)
        for ours, theirs in zip(timing.rounds, reference.rounds, strict=True)
    ]
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return Ratio(float(median), float(low), float(high))


def alternate(
    jobs: Sequence[Job],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Measure jobs in alternation.

    Args:
        jobs: One or more.
        seconds: Rounds are begun until so much time has passed, warm-up excluded; there are at
            least `LEAST_ROUNDS`.
        clock: Returns the current time in seconds.

    Returns:
        The timing of each job, all with the same number of rounds.
    """
    warm_ups = [_warm_up(job, clock) for job in jobs]
    # At least 1e-9, since a coarse clock may have measured 0.
    blocks = [
        max(1, min(MAX_BLOCK, int(BLOCK_SECONDS / max(duration, 1e-9)))) for _, duration in warm_ups
    ]
    rounds: list[list[tuple[float, ...]]] = [[] for _ in jobs]
    # Of the clock and not of the jobs: a job may leave out much of what it does.
    end, done = clock() + seconds, 0
    while done < LEAST_ROUNDS or clock() < end:
        order = range(len(jobs)) if done % 2 == 0 else reversed(range(len(jobs)))
        for number in order:
            if len(jobs) > 1 and blocks[number] > 1:
                # The other job has left its own data in the caches.
                jobs[number]()
            rounds[number].append(tuple(jobs[number]() for _ in range(blocks[number])))
        done += 1
    return [
        Timing(tuple(blocks_of), runs)
        for blocks_of, (runs, _) in zip(rounds, warm_ups, strict=True)
    ]


def _warm_up(job: Job, clock: Callable[[], float]) -> tuple[int, float]:
    """Run a job uncounted; return how often, and how long its last run took."""
    runs, duration = 0, 0.0
    while runs < WARM_UP_RUNS and duration < WARM_UP_SECONDS:
        started = clock()
        # Not what it returns: of a run of all steps that is the time of one.
        job()
        duration = clock() - started
        runs += 1
    return runs, duration
