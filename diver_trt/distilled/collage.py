"""Recognising collages: grids of smaller images, as IDC, DREAM, NCFM, RDED and EDC store them.

The files do not state the factor, but the pixels show it: where two unrelated images meet,
neighbouring lines of pixels differ more than elsewhere, in every collage at the same places.
"""

# Measured with 20 images of a set: real photographs and distilled images (MTT, DM) have a seam
# strength of 1.1 or less at their halves and thirds, 2 x 2 and 3 x 3 collages of them 2 and more,
# those of photographs under noise of 60 levels 1.4. Collages of digits on a plain ground (1.1) and
# of noise (1.0) show no seams.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.options import MAX_COLLAGE
from diver_trt.distilled.source import ImageSource
from diver_trt.errors import DatasetError
from diver_trt.pixels import Pixels

VISIBLE = 1.3
"""Seam strength above which images are taken for collages."""

INVISIBLE = 1.0
"""Seam strength below which images are taken for whole; between the two, pixels do not decide."""

_LARGEST = 4
"""Largest factor that is recognised."""
# Seams of larger factors are the pixel blocks of an enlarged picture.

_QUANTILE = 0.95
"""Quantile of the other lines that a seam is compared with."""
# Not the strongest line, since a few images have edges of their own.

_SAMPLED, _SAMPLED_BYTES = 48, 1 << 25
"""Maximum numbers of images, and of their bytes, that are examined."""


def seen_factor(images: Pixels) -> int | None:
    """Return the tiles along a side of the grid that images [n, H, W, 3] show, or None."""
    lines = _differences(images)
    # The finest grid first: a 4 x 4 collage has seams at the halves, too.
    for factor in range(MAX_COLLAGE, 1, -1):
        if _strength(lines, factor) > VISIBLE:
            # Larger factors are still tried first: their lines include those of their divisors.
            return factor if factor <= _LARGEST else None
    return None


def seam_strength(images: Pixels, factor: int) -> float:
    """Return how much images differ across the seams of a `factor` by `factor` collage.

    Args:
        images: [n, H, W, 3].
        factor: Tiles along a side.

    Returns:
        The difference across the weakest seam, divided by that across nearly the strongest of all
        other lines, both as the mean over all images; 0 for images that cannot be such a collage.
    """
    return _strength(_differences(images), factor)


def collage_note(sample: Pixels, factor: int, *, stated: bool) -> str | None:
    """Return a doubt about a collage factor that the images contradict, or None.

    Args:
        sample: Some images as stored, uncut (`sample_pixels`), [n, H, W, 3].
        factor: Images along a side of each.
        stated: Whether the user, the file or its folder states the factor. Only the seams of
            another grid contradict it then.
    """
    seen = seen_factor(sample)
    # A stated factor of 1 means that collages stay whole, whatever seams they have.
    if seen and seen != factor and not (stated and factor == 1):
        return (
            f"its images look like {seen} x {seen} collages: the lines where their tiles would "
            f"meet are {seam_strength(sample, seen):.1f} times as strong as others; to cut them, "
            f"--collage {seen}"
        )
    if seen or stated or factor == 1 or (strength := seam_strength(sample, factor)) >= INVISIBLE:
        return None
    return (
        f"its images do not look like {factor} x {factor} collages: the lines where their tiles "
        f"would meet are {strength:.1f} times as strong as others; to leave them whole, --collage 1"
    )


def sample_pixels(images: ImageSource) -> Pixels | None:  # => [n, H, W, 3] uint8
    """Return some images of the same size from all over a set, or None if all are unreadable."""
    found: list[Pixels] = []
    for position in np.unique(np.linspace(0, len(images) - 1, _SAMPLED).astype(int)):
        try:
            image = images.read(int(position))
        except DatasetError:  # reported when every image is checked
            continue
        # Seams lie at the same places only in images of one size.
        if not found or image.shape == found[0].shape:
            found.append(image)
        if sum(image.nbytes for image in found) > _SAMPLED_BYTES:
            break
    return np.stack(found) if found else None


def _differences(images: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean difference of each line of pixels from the next, over all images.

    Returns:
        Rows, [H - 1], and columns, [W - 1].
    """
    rows, columns = np.zeros(images.shape[1] - 1), np.zeros(images.shape[2] - 1)
    for image in images:
        # Differences of uint8 would wrap around.
        # image [H, W, 3] uint8 => rows [H - 1], columns [W - 1]
        values = image.astype(np.int16)
        rows += np.abs(np.diff(values, axis=0)).mean(axis=(1, 2))
        columns += np.abs(np.diff(values, axis=1)).mean(axis=(0, 2))
    return rows / len(images), columns / len(images)


def _strength(lines: tuple[NDArray[np.float64], ...], factor: int) -> float:
    strengths = []
    for differences in lines:
        tile = -(-(len(differences) + 1) // factor)  # rounded up, as `Tiles` cuts
        seams = tile * np.arange(1, factor) - 1
        # In tiles of one pixel every line is a seam, and there is nothing to compare with.
        if tile < 2 or seams[-1] >= len(differences):
            return 0.0
        others = np.delete(differences, seams)
        # One level at least: in flat images, rounding alone would look like seams.
        level = max(float(np.quantile(others, _QUANTILE)), 1.0)
        strengths.append(float(differences[seams].min()) / level)
    # A grid has seams in both directions; stripes and horizons have them in one.
    return min(strengths)
