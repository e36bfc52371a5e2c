"""From the normalised values that a distillation method optimised back to pixels.

The statistics are those of the methods' own code; some differ from those of the dataset, and so
have names of their own. Distilled values are not clamped while they are optimised: those outside
the range of pixels are clipped and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.methods.base import Colour
from diver_trt.errors import DatasetError, shown
from diver_trt.pixels import Pixels


@dataclass(frozen=True, slots=True)
class Normalisation:
    """`value = (pixel - mean) / std`, pixels in [0, 1].

    Attributes:
        name: The value of `--normalisation` for it.
        mean: Of each channel, red first.
        std: Of each channel.
    """

    name: str
    mean: Colour
    std: Colour

    def normalise(
        self, image: Pixels
    ) -> NDArray[np.float32]:  # [H, W, 3] uint8 => [3, H, W] float32
        """Return an image as trainers that load tensors expect it."""
        values = (image.astype(np.float32) / 255 - np.array(self.mean, np.float32)) / np.array(
            self.std, np.float32
        )
        # The transposed view has the channels last in memory; files are written in C order.
        return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)

    def denormalise(
        self, values: NDArray[Any]
    ) -> NDArray[np.float32]:  # [3, H, W] => [H, W, 3] float32, mostly in [0, 1]
        """Return the pixels of one image, unclipped."""
        pixels: NDArray[np.float32] = values.transpose(1, 2, 0).astype(np.float32)
        # Bytes are pixels from 0 to 255. Their normalisation is `none`, and leaves [0, 1] as it is.
        if values.dtype == np.uint8:
            pixels /= 255
        else:
            pixels = pixels * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        return pixels


def _grey(mean: float, std: float) -> tuple[Colour, Colour]:
    return (mean, mean, mean), (std, std, std)


_SHARED: dict[str, tuple[Colour, Colour]] = {
    "none": _grey(0.0, 1.0),
    "minus1to1": _grey(0.5, 0.5),
    "0to255": _grey(0.0, 1 / 255),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": _grey(0.1307, 0.3081),
    "fashionmnist": _grey(0.2861, 0.3530),
}
"""Statistics that several methods share.

`none`, `minus1to1` and `0to255` are pixels scaled to 0 to 1, -1 to 1 and 0 to 255. `cifar10` also
serves CIFAR-100 in MTT, TESLA, DATM, SeqMatch, IDC and NCFM, while DC, DSA and DM have their own.
"""
# The deviation of CIFAR-10's pixels is 0.247, 0.2435, 0.2616 (`frepo-cifar10`); the methods' code
# has these smaller values, and what it wrote is undone with them.


def _named() -> dict[str, tuple[Colour, Colour]]:
    """Return the shared statistics and those of each method, by name."""
    named = dict(_SHARED)
    for method in METHODS.values():
        named |= method.statistics
    return named


def normalisation_names() -> list[str]:
    """Return the names that `find_normalisation` knows."""
    return list(_named())


_MAX_STATISTIC = 1e6
_MAX_VALUE = 1e30
"""Limits on means and deviations of pixels in [0, 1], and on values as stored."""
# Their products, as in `denormalise`, then stay below 1e38, where float32 overflows.


def find_normalisation(name: str) -> Normalisation:
    """Return named statistics, or those of a text `MEAN:STD`.

    Args:
        name: A name, or one or three numbers on each side of the colon, such as `0.5:0.5`.

    Raises:
        DatasetError: If the text is neither.
    """
    if statistics := _named().get(name):
        return Normalisation(name, *statistics)
    parts = [part.split(",") for part in name.split(":")]
    try:
        mean, std = ([float(number) for number in part] for part in parts)
    except ValueError:
        mean, std = [], []
    sensible = (
        # NaN fails the comparison, and a deviation of 0 would lose the image.
        all(abs(value) < _MAX_STATISTIC for value in (*mean, *std)) and min(std, default=0) > 0
    )
    # The manifest records the text, and only holds printable ones.
    if not name.isprintable() or len(mean) not in (1, 3) or len(std) not in (1, 3) or not sensible:
        raise DatasetError(
            f"--normalisation {shown(name)}: expected {', '.join(_named())}, or MEAN:STD such as "
            "0.5,0.5,0.5:0.5,0.5,0.5"
        )
    red, green, blue = mean * (3 // len(mean))
    deviations = std * (3 // len(std))
    return Normalisation(name, (red, green, blue), (deviations[0], deviations[1], deviations[2]))


def pixels_from_values(
    values: NDArray[np.float32],
) -> tuple[Pixels, float]:  # [H, W, 3] => [H, W, 3] uint8 and the clipped fraction
    """Return 8-bit pixels of values that should lie in [0, 1], and the fraction that did not."""
    # Half a level of tolerance: such a value rounds to 0 or 255 without being clipped.
    outside = np.count_nonzero(np.abs(values - 0.5) > 0.5 + 0.5 / 255) / values.size
    # Rounded: a cast alone would darken every value that is not exactly a level.
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8), outside


def implausible(values: NDArray[Any]) -> str | None:
    """Return why stored values cannot be pixels under any normalisation, or None if they can."""
    # In float64, because the absolute value of float16's or float32's largest must not overflow.
    if values.dtype == np.uint8 or (np.abs(values, dtype=np.float64) < _MAX_VALUE).all():
        return None
    if not np.isfinite(values).all():
        return "holds NaN or infinite values"
    return (
        f"holds values up to {np.abs(values).max():.3g}, which cannot be pixels; is the file "
        "damaged?"
    )
