"""The facts that a user states about a distilled dataset, where its files do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.errors import DatasetError, UsageError, shown
from diver_trt.whole_number import whole_number

# A file may state any factor, and each tile becomes a sample.
MAX_COLLAGE = 16

MAX_IMAGES = 1_000_000
"""Maximum number of images of a dataset, each tile of a collage counted."""
# ImageNet-21K with 50 images per class has 522,500.


def require_count(path: Path, images: int) -> None:
    """Refuse a dataset of more than `MAX_IMAGES` images.

    Raises:
        DatasetError: If there are more.
    """
    if images > MAX_IMAGES:
        raise DatasetError(f"{path}: holds {images:,} images; expected at most {MAX_IMAGES:,}")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The facts that a user states; None leaves a fact to the files.

    Attributes:
        classes: A class map (`load_class_map`), or else the subset that the path names, or the
            model's own classes.
        method: A name of `METHODS`, or else the method that the files look like.
        normalisation: The normalisation of the values (`find_normalisation`), or else the method's.
        collage: Images along a side of each stored one, or else the method's documented factor.

    Raises:
        UsageError: If `method` or `normalisation` does not exist, or `collage` is out of range.
    """

    classes: str | None = None
    method: str | None = None
    normalisation: str | None = None
    collage: int | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise UsageError(
                f"--format {shown(str(self.method))}: no such format; expected one of "
                f"{', '.join(METHODS)}"
            )
        if self.normalisation is not None:
            try:
                find_normalisation(self.normalisation)
            # A file may state it, too, and then the file is at fault: hence two classes.
            except DatasetError as cause:
                raise UsageError(str(cause)) from cause
        if self.collage is not None:
            factor = whole_number(self.collage)
            if factor is None or not 1 <= factor <= MAX_COLLAGE:
                raise UsageError(
                    f"--collage {self.collage}: expected a whole number from 1 to {MAX_COLLAGE}"
                )
            object.__setattr__(self, "collage", factor)
