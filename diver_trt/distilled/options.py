"""What a user says about a distilled dataset, where its files do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.errors import DatasetError, UsageError, shown

MAX_COLLAGE = 16

MAX_IMAGES = 1_000_000
"""Images of a dataset, each tile of a collage counted. ImageNet-21K with 50 images per class has 522,500."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user says about a dataset; None leaves it to the files.

    Attributes:
        classes: A class map (`load_class_map`), or else the subset that the path names, or the model's own classes.
        method: A name of `METHODS`, or else what the files look like.
        normalisation: What values were normalised with (`find_normalisation`), or else what the method normalises with.
        collage: Images along a side of each stored one, or else the method's documented factor.
        zca_reference: Training images to fit a ZCA transform to again; needed if the values are whitened.

    Raises:
        UsageError: If `method` or `normalisation` does not exist, or `collage` is out of range.
    """

    classes: str | None = None
    method: str | None = None
    normalisation: str | None = None
    collage: int | None = None
    zca_reference: Path | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise UsageError(
                f"--format {shown(str(self.method))}: no such format; expected one of {', '.join(METHODS)}"
            )
        if self.normalisation is not None:
            try:
                find_normalisation(self.normalisation)
            except DatasetError as cause:  # a file may say it too, and is at fault then
                raise UsageError(str(cause)) from cause
        if self.collage is not None and not (
            type(self.collage) is int and 1 <= self.collage <= MAX_COLLAGE
        ):
            raise UsageError(
                f"--collage {self.collage}: expected a whole number from 1 to {MAX_COLLAGE}"
            )
