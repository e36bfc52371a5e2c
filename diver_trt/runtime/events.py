"""What a `Recoverer` reports between two recovered images: `Recoverer.events` yields these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchStarts:
    """The next batch is about to be read. Stopping here wastes no denoising step.

    With all networks in memory, every image that was read has been yielded by now. With networks
    that are loaded phase by phase, up to a chunk of images has been read and not been begun.
    """


@dataclass(frozen=True, slots=True)
class StepDone:
    """A denoising step of a whole batch is done."""
