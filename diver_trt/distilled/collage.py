"""Whether images are collages: grids of smaller images, as IDC, DREAM, NCFM, RDED and EDC store them.

The factor is in no file. It shows in the pixels: where two unrelated images meet, neighbouring lines of pixels
differ more than anywhere else, in every collage at the same places. Measured with 20 images of a set: real
photographs and distilled images (MTT, DM) have a seam strength of 1.1 or less at their halves and thirds, 2 x 2 and
3 x 3 collages of them 2 and more, of photographs under noise of 60 levels 1.4. Collages of digits on a plain ground
(1.1) and of noise (1.0) have no seams to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.options import MAX_COLLAGE
from diver_trt.distilled.source import ImageSource
from diver_trt.errors import DatasetError
from diver_trt.pixels import Pixels

SEEN = 1.3
"""Seam strength from which images are taken for collages."""

UNSEEN = 1.0
"""Seam strength below which nothing is seen of a collage; between the two, pixels do not tell."""

_LARGEST = 4
"""Largest factor that is looked for. Seams of more are the blocks of an enlarged picture, not collages."""

_QUANTILE = 0.95
"""Which of the other lines a seam is compared with: not the strongest, since a few images have edges of their own."""

_LOOKED_AT, _LOOKED_AT_BYTES = 48, 1 << 25
"""Images, and bytes of them, that are looked at."""


@dataclass(frozen=True, slots=True)
class Seams:
    """The grid that images show.

    Attributes:
        factor: Tiles along a side.
        strength: As `seam_strength` measures it.
    """

    factor: int
    strength: float


def find_seams(images: Pixels) -> Seams | None:
    """Return the grid that images [n, H, W, 3] show; None if they show none.

    Of several grids the finest counts: a 4 x 4 collage has seams at the halves, too.
    """
    lines = _differences(images)
    for factor in range(MAX_COLLAGE, 1, -1):
        if (strength := _strength(lines, factor)) > SEEN:
            return Seams(factor, strength) if factor <= _LARGEST else None
    return None


def seam_strength(images: Pixels, factor: int) -> float:
    """Return how much images [n, H, W, 3] differ across the seams of a `factor` by `factor` collage.

    The figure is the difference across the weakest seam over that across nearly the strongest of all other lines,
    both as the mean over all images; 0 for images that cannot be such a collage.
    """
    return _strength(_differences(images), factor)


def collage_note(images: ImageSource, factor: int, *, stated: bool) -> str | None:
    """Return a doubt about a collage factor that the images contradict; None if they do not.

    Args:
        images: The images as stored, uncut.
        factor: Images along a side that each is taken for.
        stated: Whether the user, the file or its folder says so. Only seams of another grid contradict that.
    """
    sample = _sample(images)
    if sample is None:
        return None
    seen = find_seams(sample)
    if seen and seen.factor != factor and not (stated and factor == 1):
        return (
            f"its images look like {seen.factor} x {seen.factor} collages: the lines where their tiles would meet are "
            f"{seen.strength:.1f} times as strong as others; to cut them, --collage {seen.factor}"
        )
    if seen or stated or factor == 1 or (strength := seam_strength(sample, factor)) >= UNSEEN:
        return None
    return (
        f"its images do not look like {factor} x {factor} collages: the lines where their tiles would meet are "
        f"{strength:.1f} times as strong as others; to leave them whole, --collage 1"
    )


def _sample(images: ImageSource) -> Pixels | None:
    """Return some images from all over a set, those of the first one's size, as many as fit; None if none can be read.

    What is wrong with an image that cannot be read is found when every image is looked at.
    """
    found: list[Pixels] = []
    for position in np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int)):
        try:
            image = images.read(int(position))
        except DatasetError:
            continue
        if not found or image.shape == found[0].shape:
            found.append(image)
        if sum(image.nbytes for image in found) > _LOOKED_AT_BYTES:
            break
    return np.stack(found) if found else None


def _differences(images: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much each line of pixels differs from the next, rows [H - 1] and columns [W - 1], over all images."""
    rows, columns = np.zeros(images.shape[1] - 1), np.zeros(images.shape[2] - 1)
    for image in images:
        values = image.astype(np.int16)
        rows += np.abs(np.diff(values, axis=0)).mean(axis=(1, 2))
        columns += np.abs(np.diff(values, axis=1)).mean(axis=(0, 2))
    return rows / len(images), columns / len(images)


def _strength(lines: tuple[NDArray[np.float64], ...], factor: int) -> float:
    strengths = []
    for differences in lines:
        tile = -(-(len(differences) + 1) // factor)  # as Tiles cuts a side that it does not divide
        seams = tile * np.arange(1, factor) - 1
        if tile < 2 or seams[-1] >= len(differences):
            return 0.0
        others = np.delete(differences, seams)
        level = max(float(np.quantile(others, _QUANTILE)), 1.0)  # one level: rounding
        strengths.append(float(differences[seams].min()) / level)
    return min(strengths)
