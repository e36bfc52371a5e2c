"""What a benchmark measures, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from diver_trt.bench.ceiling import Limit
from diver_trt.bench.contestants import Contestant
from diver_trt.bench.cost import Cost
from diver_trt.bench.machine import Machine
from diver_trt.bench.timing import Ratio, Timing
from diver_trt.bundle import Bundle
from diver_trt.recipe import Recipe

RECOVERY = "recovery"
"""The whole recovery, beside the names of the networks."""
LEAST_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network, or the whole recovery, on one contestant at one batch size.

    Attributes:
        subject: A network's name, or `"recovery"`.
        batch: Images per batch.
        contestant: Its name.
        timing: Times of a job: a batch through the encoder or decoder, the conditions of as many
            classes, one step of the denoiser, or a recovery after its networks are open.
        images: Images in one job; of a step, those of the batch.
        cost: The work of one job, or None for torch.
        limit: The least time for it, or None where no ceiling was measured.
        ratio: How many times faster it is than the first contestant; None for the first itself,
            and where the first was not measured.
        python_s: For a denoiser's step, seconds that the package's own loop takes of it; None where
            that loop does not run.
        host_bytes: Peak memory of a process that does only this, or None if unknown.
        device_bytes: Peak memory on the device, or None without one.
        phases: For a recovery, seconds by phase of its median run, `"opening"` included.
        largest_difference: For a recovery, the largest difference of a pixel value from the first
            contestant's images, in levels of 255; None as for `ratio`.
    """

    subject: str
    batch: int
    contestant: str
    timing: Timing
    images: int
    cost: Cost | None = None
    limit: Limit | None = None
    ratio: Ratio | None = None
    python_s: float | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    phases: dict[str, float] | None = None
    largest_difference: int | None = None

    @property
    def images_per_second(self) -> float:
        """Images of a job over the median of its times."""
        return self.images / self.timing.median

    @property
    def of_limit(self) -> float | None:
        """The limit over the median of the times, 1 at the limit."""
        return None if self.limit is None else self.limit.seconds / self.timing.median


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a benchmark measures.

    Attributes:
        bundle: The bundle.
        recipe: The method's settings.
        contestants: One or more; the others are compared with the first.
        batches: Batch sizes.
        seconds: Time to measure for in all, warm-up and memory excluded.
        images: Images of a whole recovery; None is eight, or one batch where that is more.
    """

    bundle: Bundle
    recipe: Recipe
    contestants: Sequence[Contestant]
    batches: Sequence[int]
    seconds: float
    images: int | None = None

    def images_in(self, batch: int) -> int:
        """Return how many images a recovery in batches of this size has."""
        return self.images or -(-LEAST_IMAGES // batch) * batch


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found.

    Attributes:
        plan: What was measured.
        machine: Where and when.
        ceilings: The ceilings of the limits, in words.
        rows: Every row.
        notes: What casts doubt on the figures, a sentence each.
        absent: What could not be measured, with the reason.
        interrupted: Whether it was interrupted before everything was measured.
    """

    plan: Plan
    machine: Machine
    ceilings: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    interrupted: bool = False
