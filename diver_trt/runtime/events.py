"""What `Recoverer.events` yields: the recovered images, and what happens between them."""

from __future__ import annotations

from dataclasses import dataclass

from diver_trt.pixels import Pixels


@dataclass(frozen=True, slots=True)
class BatchStarts:
    """The next batch is about to be read. Stopping here wastes no denoising step.

    With all networks in memory, every image that was read has been yielded by now. With networks
    that are loaded phase by phase, up to a chunk of images has been read and not been begun.
    """


@dataclass(frozen=True, slots=True)
class StepDone:
    """A denoising step of a whole batch is done."""


@dataclass(frozen=True, slots=True)
class RecoveredSample:
    """One recovered image.

    Attributes:
        key: The sample's name, which its noise follows from: `"00003/00007"` is the eighth image of
            class 3.
        label: Its class in the model.
        image: Pixels, [H, W, 3] uint8.
        problem: Why the image is unusable (not finite, or of a single colour), or None. Only with
            `keep_bad`.
    """

    key: str
    label: int
    image: Pixels
    problem: str | None = None
