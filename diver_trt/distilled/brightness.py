"""The brightness of images, by which whitened ones are recognised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.value_range import recognise

_WHITENED = 0.05
"""Share of the energy in the brightness of images below which they look whitened."""
# Natural and distilled images have a fifth and more of their energy in the means of the channels.
# Whitening makes all directions alike, and those three are then among many hundreds: a hundredth of
# the energy, measured on DM's CIFAR-10 images and on photographs.

_GREY = 0.95
"""Least correlation between the channels of grey images, whatever was done to each channel."""
# Handwritten digits are equally bright before anything is done to them, so they have a hundredth of
# their energy there, too; no method whitens those. Whitened photographs correlate below 0.5.


def looks_whitened(images: NDArray[Any]) -> bool:
    """Return whether images [n, C, H, W] have lost their brightness, as whitening makes them."""
    # `not <`, so that NaN, the share of images without energy, counts as not whitened.
    if images.shape[1] != 3 or not brightness_share(images) < _WHITENED:
        return False
    # Dark pictures on -1 to 1 also have little brightness. Whitened values are unbounded.
    if recognise(images) is not None:
        return False
    with np.errstate(all="ignore"):  # huge values are reported when their range is checked
        values = images.astype(np.float32)
        # [n, 3, H, W] => [3, n * H * W] => correlations [3, 3]
        return not float(np.corrcoef(values.transpose(1, 0, 2, 3).reshape(3, -1)).min()) > _GREY


def brightness_share(images: NDArray[Any]) -> float:
    """Return which share of the energy of images is in the means of their channels.

    Args:
        images: [n, C, H, W].

    Returns:
        A fraction; NaN for images without energy.
    """
    with np.errstate(all="ignore"):
        values = images.astype(np.float32)
        means = np.mean(np.square(values.mean(axis=(2, 3))))
        return float(means / np.mean(np.square(values)))


def brightness(images: NDArray[Any]) -> str:
    """Return the share of the energy that is brightness, as messages print it."""
    share = brightness_share(images)
    return f"brightness is {share:.1%} of their energy; in photographs it is 20% or more"
