"""The limit of this machine, measured in the same run: a matrix product and a copy.

The ceiling for arithmetic is NumPy's float32 matrix product of 2,048 by 2,048, on as many threads
as its BLAS uses. It is the rate of a good implementation and not of the hardware. A better one, or
one that multiplies in eight bits, may exceed it; a percentage is then above 100.

The ceiling for memory is a copy of as many bytes as a network has to move, half of them read and
half written. It is measured for each network's own size, because a small one stays in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from diver_trt.bench.cost import FLOPS_PER_MULTIPLY_ADD, Cost
from diver_trt.runtime.cores import available_cores

MATRIX_SIDE = 2048
COPY_SECONDS, PRODUCT_SECONDS = 0.03, 0.5
"""How long one copy or product is repeated; the fastest one counts."""
LEAST_REPEATS = 3
MAX_COPY_BYTES = 512 * 1024**2
"""The time of a larger copy is extrapolated from this one: no cache holds it, so its rate is the
memory's.
"""

Bound = Literal["compute", "memory"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The rates of a processor: `host_ceiling`, or `torch_side.gpu_ceiling` for a GPU.

    Attributes:
        description: How the product was measured, and its rate.
        flops_per_second: Rate of the matrix product.
        measure_copy: Returns the seconds of a copy that reads and writes so many bytes in all.
    """

    description: str
    flops_per_second: float
    measure_copy: Callable[[int], float]
    _copies: dict[int, float] = field(default_factory=dict)

    def copy_seconds(self, moved_bytes: int) -> float:
        """Return the time of a copy that reads and writes so many bytes in all."""
        size = min(moved_bytes, MAX_COPY_BYTES)
        if size not in self._copies:
            self._copies[size] = self.measure_copy(size)
        return self._copies[size] * moved_bytes / size


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time that some work takes at the ceilings.

    Attributes:
        compute_s: Time of its FLOPs at the rate of the matrix product.
        memory_s: Time of a copy of its weights, inputs and outputs.
        seconds: The limit: of one network the larger of the two, because arithmetic and memory
            work at the same time; of several, the sum of theirs.
    """

    compute_s: float
    memory_s: float
    seconds: float

    @property
    def bound(self) -> Bound:
        """Which of the two takes longer."""
        return "compute" if self.compute_s >= self.memory_s else "memory"

    def times(self, factor: float) -> Limit:
        """Return the limit of the work done several times."""
        return Limit(self.compute_s * factor, self.memory_s * factor, self.seconds * factor)


def limit_of(cost: Cost, ceiling: Ceiling) -> Limit:
    """Return the limit of one run of a network.

    Args:
        cost: The work of the run.
        ceiling: The processor that it runs on.
    """
    compute_s = cost.flops / ceiling.flops_per_second
    memory_s = ceiling.copy_seconds(cost.least_bytes)
    return Limit(compute_s, memory_s, max(compute_s, memory_s))


def sum_of_limits(parts: Sequence[Limit]) -> Limit:
    """Return the limit of several pieces of work, one after the other."""
    return Limit(
        sum(part.compute_s for part in parts),
        sum(part.memory_s for part in parts),
        sum(part.seconds for part in parts),
    )


def host_ceiling() -> Ceiling:
    """Measure the processor's matrix product, and return its ceilings."""
    rate = measure_product()
    return Ceiling(
        f"NumPy's float32 product of {MATRIX_SIDE:,} x {MATRIX_SIDE:,}: {rate / 1e9:.0f} GFLOP/s",
        rate,
        partial(measure_copy, threads=available_cores()),
    )


def measure_product() -> float:
    """Return the rate of NumPy's float32 matrix product, in FLOP/s."""
    left, right = np.random.default_rng(0).standard_normal(
        (2, MATRIX_SIDE, MATRIX_SIDE), dtype=np.float32
    )
    # Allocated once: pages that are new to the process would cost time that is not the product's.
    result = np.empty_like(left)
    seconds = fastest(lambda: np.matmul(left, right, out=result), PRODUCT_SECONDS)
    return FLOPS_PER_MULTIPLY_ADD * MATRIX_SIDE**3 / seconds


def measure_copy(moved_bytes: int, threads: int) -> float:
    """Return the time of a copy, on one thread or on all, whichever is faster.

    Args:
        moved_bytes: What is read and written in all.
        threads: How many threads share it.
    """
    half = max(1, moved_bytes // 2)
    # Ones, not zeros: the system maps zeros that were never written to one page, which stays in the
    # cache.
    source, target = np.ones(half, np.uint8), np.empty(half, np.uint8)
    alone = fastest(lambda: np.copyto(target, source), COPY_SECONDS)
    # One core of a server cannot use the whole bandwidth of its memory; for a few kilobytes the
    # hand-over to other threads takes longer than the copy.
    edges = np.linspace(0, half, threads + 1, dtype=np.int64)
    parts = [slice(first, last) for first, last in pairwise(edges)]

    def copy(part: slice) -> None:
        # np.copyto releases the GIL, so that the parts are copied at the same time.
        np.copyto(target[part], source[part])

    with ThreadPoolExecutor(threads) as pool:
        shared = fastest(lambda: list(pool.map(copy, parts)), COPY_SECONDS)
    return min(alone, shared)


def fastest(work: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of a piece of work that is repeated for so many seconds."""
    # The first run touches the pages and starts the threads.
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_REPEATS or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    # The fastest: other processes can only make a run slower
    # (https://docs.python.org/3/library/timeit.html#timeit.Timer.repeat).
    return min(times)
