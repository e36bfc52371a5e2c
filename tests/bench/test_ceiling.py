"""Limits from known ceilings, and the ceilings of this machine."""

from __future__ import annotations

import pytest

from diver_trt.bench import ceiling
from diver_trt.bench.ceiling import MAX_COPY_BYTES, Ceiling, host_ceiling, limit_of, sum_of_limits
from diver_trt.bench.cost import Cost

# Ten FLOP/s and a hundred bytes per second
KNOWN = Ceiling("known", 10, lambda moved_bytes: moved_bytes / 100)


def test_the_slower_of_arithmetic_and_memory_is_the_limit() -> None:
    much_arithmetic = limit_of(Cost(50, 100, 900, {}), KNOWN)
    assert (much_arithmetic.compute_s, much_arithmetic.memory_s) == (5.0, 1.0)
    assert (much_arithmetic.seconds, much_arithmetic.bound) == (5.0, "compute")
    much_memory = limit_of(Cost(5, 300, 900, {}), KNOWN)
    assert (much_memory.seconds, much_memory.bound) == (3.0, "memory")


def test_limits_of_consecutive_work_add_up() -> None:
    whole = sum_of_limits(
        [limit_of(Cost(50, 100, 0, {}), KNOWN), limit_of(Cost(0, 300, 0, {}), KNOWN).times(2)]
    )
    assert (whole.compute_s, whole.memory_s, whole.seconds) == (5.0, 7.0, 11.0)
    assert whole.bound == "memory"


def test_the_host_is_measured_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "measure_product", lambda: 4e9)
    measured: list[int] = []

    def copy(moved_bytes: int, threads: int) -> float:
        measured.append(moved_bytes)
        return moved_bytes / 1e9

    monkeypatch.setattr(ceiling, "measure_copy", copy)
    host = host_ceiling()
    assert host.description.endswith("4 GFLOP/s")
    assert host.flops_per_second == 4e9
    assert host.copy_seconds(1000) == host.copy_seconds(1000) == pytest.approx(1e-6)
    assert host.copy_seconds(4 * MAX_COPY_BYTES) == pytest.approx(4 * MAX_COPY_BYTES / 1e9)
    assert measured == [1000, MAX_COPY_BYTES]


def test_this_machine_has_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "PRODUCT_SECONDS", 0.0)
    monkeypatch.setattr(ceiling, "MATRIX_SIDE", 64)
    assert ceiling.measure_product() > 0
    for moved_bytes in (1, 3, 1 << 20):
        assert ceiling.measure_copy(moved_bytes, threads=3) > 0
