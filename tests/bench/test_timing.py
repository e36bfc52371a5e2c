"""Percentiles and ratios of known samples, the order of rounds, and phases that overlap."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from diver_trt.bench.phases import seconds_by_phase, timed
from diver_trt.bench.timing import LEAST_ROUNDS, Timing, alternate, speed_ratio
from diver_trt.errors import EngineError
from diver_trt.runtime.backends import BACKENDS


class FakeTime:
    """A clock that only jobs advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def job(self, name: str, seconds: float, parts: int = 1) -> Callable[[], float]:
        """Return a job that takes so long, and gives the time of one of its parts."""

        def run() -> float:
            self.now += seconds
            self.ran.append(name)
            return seconds / parts

        return run


def test_percentiles_of_known_samples() -> None:
    timing = Timing(tuple((float(second),) for second in range(101)), 2)
    assert [timing.percentile(percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert Timing(((1.0, 2.0), (4.0,)), 0).percentile(75) == 3.0  # between 2 and 4
    assert Timing(((3.0,),), 0).percentile(99) == 3.0


def test_ratios_are_those_of_each_round() -> None:
    ours = Timing(((1.0, 1.0, 9.0), (2.0,), (4.0,)), 0)
    reference = Timing(((2.0,), (8.0, 8.0), (4.0,)), 0)
    ratio = speed_ratio(ours, reference)  # of the rounds: 2, 4 and 1
    assert (ratio.low, ratio.median, ratio.high) == (1.5, 2.0, 3.0)


def test_a_drift_of_the_machine_leaves_ratios_alone() -> None:
    slowing = [1.0, 1.5, 3.0]
    ours = Timing(tuple((second,) for second in slowing), 0)
    reference = Timing(tuple((2 * second,) for second in slowing), 0)
    ratio = speed_ratio(ours, reference)
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_rounds_turn_around_after_a_warm_up() -> None:
    clock = FakeTime()
    jobs = [clock.job("a", 2.0), clock.job("b", 3.0)]
    timings = alternate(jobs, seconds=17.0, clock=clock)
    assert clock.ran == ["a", "b", *("a", "b"), *("b", "a"), *("a", "b"), *("b", "a")]
    assert [timing.warm_up for timing in timings] == [1, 1]  # as they take more than a second
    assert [timing.seconds for timing in timings] == [(2.0,) * 4, (3.0,) * 4]


def test_short_jobs_run_in_blocks_and_are_warmed_up_again_in_each() -> None:
    clock = FakeTime()
    timings = alternate([clock.job("a", 0.005), clock.job("b", 30.0)], seconds=0, clock=clock)
    assert [len(timing.rounds) for timing in timings] == [LEAST_ROUNDS] * 2
    assert {len(block) for block in timings[0].rounds} == {4}
    assert clock.ran.count("a") == 2 + LEAST_ROUNDS * (1 + 4)


def test_a_run_of_all_steps_is_as_long_as_it_takes_and_not_as_a_step() -> None:
    clock = FakeTime()
    jobs = [clock.job("a", 0.25, parts=50), clock.job("b", 2.0, parts=50)]
    timings = alternate(jobs, seconds=0, clock=clock)
    assert [timing.rounds for timing in timings] == [((0.005,),) * 3, ((0.04,),) * 3]
    assert [timing.warm_up for timing in timings] == [2, 1]


def test_phases_that_follow_each_other_are_added_up() -> None:
    intervals = [("encoder", 0.0, 1.0), ("denoiser", 1.0, 3.0), ("encoder", 5.0, 5.5)]
    assert seconds_by_phase(intervals) == {"encoder": 1.5, "denoiser": 2.0}


def test_no_moment_of_overlapping_phases_is_counted_twice() -> None:
    intervals = [("decoder", 0.0, 4.0), ("denoiser", 1.0, 3.0), ("opening", 3.5, 6.0)]
    assert seconds_by_phase(intervals) == {"denoiser": 2.0, "decoder": 2.0, "opening": 2.0}


@pytest.mark.parametrize("intervals", [[], [("encoder", 2.0, 2.0)]])
def test_nothing_takes_no_time(intervals: list[tuple[str, float, float]]) -> None:
    assert seconds_by_phase(intervals) == {}


def test_the_registry_is_as_it_was_when_a_timed_recovery_has_failed() -> None:
    before = list(BACKENDS.items())
    with pytest.raises(EngineError, match="on the way"), timed("onnx"):
        assert list(BACKENDS.items()) != before
        raise EngineError("on the way")
    assert list(BACKENDS.items()) == before
