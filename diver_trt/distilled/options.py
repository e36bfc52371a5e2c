"""What a user says about a distilled dataset, where its files do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diver_trt.errors import DatasetError

MAX_COLLAGE = 16

MAX_IMAGES = 1_000_000
"""Images of a dataset, each tile of a collage counted. ImageNet-21K with 50 images per class has 522,500."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user says about a dataset; None leaves it to the files.

    Attributes:
        classes: A class map (`load_class_map`), or else the subset that the path names, or the model's own classes.
        method: A name of `FORMATS`, or else what the files look like.
        normalisation: What values were normalised with (`find_normalisation`), or else what the method normalises with.
        collage: Images along a side of each stored one, or else the method's documented factor.
        zca_reference: Training images to fit a ZCA transform to again; needed if the values are whitened.
    """

    classes: str | None = None
    method: str | None = None
    normalisation: str | None = None
    collage: int | None = None
    zca_reference: Path | None = None

    def __post_init__(self) -> None:
        if self.collage is not None and not 1 <= self.collage <= MAX_COLLAGE:
            raise DatasetError(f"--collage {self.collage}: expected 1 to {MAX_COLLAGE}")
