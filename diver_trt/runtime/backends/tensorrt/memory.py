"""The memory plan: what is on the device in each phase, decided before anything loads.

Figures come from the sidecars: weights, persistent memory and activations as the compiler reported
them, inputs and outputs by their shapes. They are engine memory; the CUDA context that the driver
makes for the process comes on top.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DeviceMemoryError, UsageError, shown
from diver_trt.runtime.backends.tensorrt.plans import Plan

MEGABYTE = 10**6
TENTH = MEGABYTE // 10
LIMIT_BYTES = 10**18
"""Beyond any device, and within 64 bits, which TensorRT takes."""

RUN_IMAGES = 0.3
"""What a run costs beside its images, in images."""
# Estimated for the smallest card that we aim at, not measured: an RTX 3050 reads the 1.35 GB of
# DiT-XL/2's fp16 weights in 6 ms (224 GB/s) and computes an image in some 20 ms (0.5 TFLOP, with
# guidance). Without it, a thousand images and one would run one by one instead of in eights.

Residency = Literal["resident", "phased"]
RESIDENCIES: tuple[Residency, ...] = get_args(Residency)


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """Device memory while one network runs, in bytes: its own, and whatever else stays alive."""

    network: NetworkName
    weights_bytes: int
    persistent_bytes: int
    scratch_bytes: int
    io_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.persistent_bytes + self.scratch_bytes + self.io_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a recovery uses the device.

    Attributes:
        plan: The engines.
        batch: Images per batch.
        residency: `"resident"`: all networks stay loaded and share one scratch block. `"phased"`:
            each is loaded for its phase and freed after it, so that only one is there at a time;
            chunks of many images keep the loading rare.
        phases: Memory in each phase.
    """

    plan: Plan
    batch: int
    residency: Residency
    phases: tuple[PhaseMemory, ...]

    @property
    def peak_bytes(self) -> int:
        """The largest phase."""
        return max(phase.total_bytes for phase in self.phases)


def plan_memory(plan: Plan, residency: Residency) -> MemoryPlan:
    """Return the memory of a plan's engines under one residency."""
    phases = []
    for name in NETWORKS:
        alive = NETWORKS if residency == "resident" else (name,)
        memories = [plan.sidecars[network].memory for network in alive]
        phases.append(
            PhaseMemory(
                name,
                weights_bytes=sum(memory.weights_bytes for memory in memories),
                persistent_bytes=sum(memory.persistent_bytes for memory in memories),
                # One block for all: only one network runs at a time.
                scratch_bytes=max(memory.activation_bytes for memory in memories),
                # Not shared, unlike scratch memory: every network keeps its own buffers.
                io_bytes=sum(memory.io_bytes for memory in memories),
            )
        )
    # The sidecars' figures are those of the largest batch.
    return MemoryPlan(plan, plan.batches.maximum, residency, tuple(phases))


def choose_memory_plan(
    plans: Iterable[Plan],
    budget_bytes: int | None,
    images: int | None = None,
    free_bytes: int | None = None,
) -> MemoryPlan:
    """Return the best plan within the budget: the largest useful batch, resident if it fits.

    Args:
        plans: Plans that fit this machine.
        budget_bytes: Limit on engine memory in bytes, or None for no limit.
        images: How many images there are, if that is known: a batch that is larger than needed only
            wastes work.
        free_bytes: What is free on the device, or None if that is unknown.

    Raises:
        DeviceMemoryError: If no plan fits both; the message names the smallest that would.
    """
    candidates = [plan_memory(plan, residency) for plan in plans for residency in RESIDENCIES]
    limit, what, remedy = budget_bytes, "a memory budget of", "Raise the budget"
    if free_bytes is not None and (limit is None or free_bytes < limit):
        limit, what, remedy = free_bytes, "the device's free memory,", "Free some of it"
    fitting = [plan for plan in candidates if limit is None or plan.peak_bytes <= limit]
    if not fitting:
        smallest = min(candidates, key=lambda plan: plan.peak_bytes)
        raise DeviceMemoryError(
            f"nothing fits {what} {format_bytes(limit or 0)}: the smallest that would do is "
            f"{format_bytes(smallest.peak_bytes)} (batch {smallest.batch}, {smallest.residency}). "
            f"{remedy}{_smaller(smallest)}"
        )

    def preference(plan: MemoryPlan) -> tuple[float, bool]:
        resident = plan.residency == "resident"
        if images is None:
            return plan.batch, resident
        # All slots run, filled or not: ten images in batches of eight cost sixteen.
        runs = -(-images // plan.batch)
        return -runs * (plan.batch + RUN_IMAGES), resident

    return max(fitting, key=preference)


def _smaller(smallest: MemoryPlan) -> str:
    """Return the command that builds engines which need less memory, as a clause."""
    if smallest.batch == 1:
        return ", or export the model in fewer bits, with --precision fp16, int8 or int8-fp16"
    # BUNDLE/plans/TARGET => BUNDLE
    bundle = shlex.quote(str(smallest.plan.folder.parent.parent))
    backend = " --backend trt" if smallest.plan.backend == "trt" else ""
    return f", or build for a smaller batch with `diver-trt build {bundle}{backend} --batch 1`"


def parse_bytes(text: str, name: str = "the size") -> int:
    """Read a size such as `2GB`, `512MB` or `1.5GiB`.

    Args:
        text: The size.
        name: What it is, such as `"--workspace"`, as a message names it.

    Raises:
        UsageError: If the text is not a size.
    """
    units = {
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "tb": 10**12,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
        "tib": 2**40,
    }
    # The letters of all units, taken off the end, leave the number.
    number = text.strip().lower().rstrip("bgikmt ")
    unit = text.strip().lower()[len(number) :].strip()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        size = -1.0
    # NaN fails the comparison too.
    if not 1 <= size < LIMIT_BYTES:
        raise UsageError(
            f"{name} is {shown(repr(text))}; expected a size with its unit, such as 512MB, 4GB or "
            "1.5GiB, of 1B or more and less than 1,000,000TB"
        )
    return int(size)


def format_bytes(size: int) -> str:
    """Return a size in MB, rounded up so that it is enough as a budget."""
    return f"{-(-size // MEGABYTE):,} MB"


def format_sum(sizes: Sequence[int]) -> tuple[str, list[str]]:
    """Return a sum of sizes, rounded up, and the sizes in tenths of a MB that add up to it.

    Of the sizes, those with the largest remainders are rounded up and the others down.
    """
    total = -(-sum(sizes) // TENTH)
    rounded = [size // TENTH for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: sizes[i] % TENTH, reverse=True)
    for i in by_remainder[: total - sum(rounded)]:
        rounded[i] += 1
    return _tenths(total), [_tenths(size) for size in rounded]


def _tenths(size: int) -> str:
    return f"{size // 10:,}.{size % 10} MB"
