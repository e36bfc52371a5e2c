"""The normalisation of values, as far as their range shows it.

Three conventions are recognised by the range that values fill: pixels in 0 to 1, in -1 to 1 (as in
VAEs and GANs), and in 0 to 255. Two datasets' statistics cannot be distinguished by it, so those
come from the method or the user, and are only checked here. Every conclusion is reported with the
statistics that led to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.methods.base import Method
from diver_trt.distilled.normalisation import Normalisation, find_normalisation
from diver_trt.errors import DatasetError

_RANGES = {"none": (0.0, 1.0), "minus1to1": (-1.0, 1.0), "0to255": (0.0, 255.0)}
"""The conventions that are recognised, and their ranges."""

_TOLERANCE = 0.01
"""Distance by which a value may lie outside its range, as a fraction of the range."""
# Rounding and resizing cause it.

_FILLED = 0.25
"""Fraction of a range that may be empty at each end."""
# Normalised photographs have a quarter and more of their values beyond -1 and 1, so a set that
# fills -1 to 1 and never leaves it is not normalised.

_BYTE_SCALE = 0.4
"""Fraction of 0 to 255 that values have to reach, to be pixels of this scale."""
# Lower ones may be on a scale of 0 to 16, as scikit-learn's digits are, or of percentages.

_FEW, _MANY, _MOST = 0.1, 0.25, 0.5
"""Fractions of values outside the range of pixels."""
# Unclamped optimisation leaves up to a tenth there: 6.8 % in DM's CIFAR-10 images.

_FLAT, _BLANK = 0.08, 0.02
"""Standard deviations of pixels in 0 to 1."""
# Photographs and distilled images have 0.2 and more. Pixels in 0 to 1 that are read as normalised
# have less than `_FLAT`.

_NARROW = 0.15
"""The same limit for pixels in -1 to 1 that are read as normalised."""


def statistics(values: NDArray[Any]) -> str:
    """Return the range, mean and standard deviation of values as messages print them."""
    low, high = float(values.min()), float(values.max())
    mean, std = float(np.mean(values, dtype=np.float64)), float(np.std(values, dtype=np.float64))
    return f"values lie in {low:.2f} to {high:.2f} with mean {mean:.2f} and deviation {std:.2f}"


def recognise(values: NDArray[Any]) -> Normalisation | None:
    """Return the convention whose range values fill and do not leave.

    Args:
        values: Some images as stored, floats [n, c, H, W].

    Returns:
        The convention, or None if the range does not match any.
    """
    low, high = float(values.min()), float(values.max())
    # A range must be filled as well: normalised values may lie in 0 to 255, pixels in -1 to 1.
    for name, (first, last) in _RANGES.items():
        slack, empty = _TOLERANCE * (last - first), _FILLED * (last - first)
        # Exclusive: -0.5 to 0.5 is a convention of its own, which is not recognised.
        if first - slack <= low < first + empty and last - empty < high <= last + slack:
            return find_normalisation(name)
    return None


def contradiction(values: NDArray[Any], normalisation: Normalisation) -> str | None:
    """Return why values can hardly have this normalisation, or None if they can.

    Args:
        values: Some images as stored, [n, c, H, W].
        normalisation: The normalisation to undo.

    Returns:
        The reason, with the statistics of the values.
    """
    if values.dtype == np.uint8:
        if normalisation.name != "none":
            return f"holds 8-bit pixels, which are not {normalisation.name}-normalised"
        # Floats in 0 to 1 that were cast to uint8 are only zeros and ones.
        return f"{statistics(values)}; 8-bit pixels lie in 0 to 255" if values.max() <= 1 else None
    seen = recognise(values)
    if seen and not _alike(seen, normalisation):
        first, last = _RANGES[seen.name]
        return f"{statistics(values)}, as pixels scaled to {first:.0f} to {last:.0f} have"
    low, high = _expected_range(normalisation)
    kind = f"{normalisation.name}-normalised values"
    if normalisation.name == "none":
        kind = "values that are not normalised"
    if outside(values, normalisation) > _MANY:
        return f"{statistics(values)}; most {kind} should lie in {low:.3g} to {high:.3g}"
    scaled = any(_alike(normalisation, find_normalisation(name)) for name in _RANGES)
    if _deviation(values, normalisation) < (_BLANK if scaled else _FLAT):
        return f"{statistics(values)}; {kind} should spread over {low:.3g} to {high:.3g}"
    return None


def read_range(
    path: Path, method: Method, values: NDArray[Any], default: Normalisation
) -> tuple[Normalisation, str | None]:
    """Return the normalisation of values for which neither the user nor the file states one.

    It is the default, or the convention that the values plainly show instead.

    Args:
        path: The file, for messages.
        method: The method that wrote it.
        values: Some of its images as stored, [n, c, H, W].
        default: The method's normalisation.

    Returns:
        The normalisation, and the convention that was recognised with the statistics that show it,
        or a doubt; None where nothing contradicts the default.

    Raises:
        DatasetError: If the values contradict the default and show no other convention.
    """
    problem = contradiction(values, default)
    if values.dtype == np.uint8:
        return default, problem and f"{problem}: were pixels in 0 to 1 cast to integers?"
    if problem is None:
        return default, _narrow(values, default)
    # By the exact range first, then by most values, as unclamped optimisation leaves them.
    if seen := recognise(values) or _fitting(values, default):
        first, last = _RANGES[seen.name]
        usual = "not normalised" if default.name == "none" else f"{default.name}-normalised"
        return seen, (
            f"{statistics(values)}, so they are read as pixels scaled to {first:.0f} to "
            f"{last:.0f}, while those of {method.title} tensors are {usual}: if that is wrong, "
            f"--normalisation {default.name}"
        )
    # Which data set's statistics were used cannot be seen, so nothing is taken for granted.
    if method.guesses or outside(values, default) > _MOST:
        raise DatasetError(
            f"{path}: {problem}, and the file does not state their normalisation. Set "
            "--normalisation, such as cifar10, imagenet or minus1to1, or --format if another "
            "method wrote it."
        )
    return default, f"{problem}: is --normalisation {default.name} right?"


def is_mostly_outside(values: NDArray[Any], normalisation: Normalisation) -> bool:
    """Return whether most values are outside the range of pixels once a normalisation is undone."""
    return values.dtype != np.uint8 and outside(values, normalisation) > _MOST


def outside(values: NDArray[Any], normalisation: Normalisation) -> float:
    """Return the fraction of values outside the range of pixels once a normalisation is undone."""
    mean, std = _of_channels(normalisation, values.shape[1])
    low, high = (
        ((end - mean) / std).astype(np.float32)[:, None, None]
        for end in (-2 * _TOLERANCE, 1 + 2 * _TOLERANCE)
    )
    return float(np.count_nonzero((values < low) | (values > high)) / values.size)


def _narrow(values: NDArray[Any], default: Normalisation) -> str | None:
    """Return a doubt about low-contrast images that would have normal contrast in -1 to 1."""
    half = find_normalisation("minus1to1")
    if default.name in _RANGES or _deviation(values, default) >= _NARROW:
        return None
    if outside(values, half) > _MANY:
        return None
    return (
        f"{statistics(values)}, which is little for {default.name}-normalised values: if they are "
        "pixels scaled to -1 to 1, --normalisation minus1to1"
    )


def _fitting(values: NDArray[Any], default: Normalisation) -> Normalisation | None:
    """Return the convention in which unclamped values are pixels of normal contrast."""
    # Not -1 to 1: normalised values of little contrast look the same. No other convention has
    # values of 0 to 255, so a low contrast is enough there.
    for name, contrast, least in (("none", _NARROW, 0.0), ("0to255", _BLANK, _BYTE_SCALE * 255)):
        convention = find_normalisation(name)
        if (
            not _alike(convention, default)
            and values.max() >= least
            and outside(values, convention) <= _FEW
            and _deviation(values, convention) >= contrast
        ):
            return convention
    return None


def _deviation(values: NDArray[Any], normalisation: Normalisation) -> float:
    """Return the standard deviation of all pixels once a normalisation is undone."""
    # From the channels' moments, so that the pixels need not be computed.
    mean, std = _of_channels(normalisation, values.shape[1])
    # values [n, c, H, W] => means, variances [c]
    means = np.mean(values, axis=(0, 2, 3), dtype=np.float64) * std + mean
    variances = np.var(values, axis=(0, 2, 3), dtype=np.float64) * std**2
    return float(np.sqrt(np.mean(variances) + np.var(means)))


def _of_channels(
    normalisation: Normalisation, channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array(normalisation.mean[:channels]), np.array(normalisation.std[:channels])


def _expected_range(normalisation: Normalisation) -> tuple[float, float]:
    ends = [
        ((end - mean) / std)
        for mean, std in zip(normalisation.mean, normalisation.std, strict=True)
        for end in (0, 1)
    ]
    return min(ends), max(ends)


def _alike(first: Normalisation, second: Normalisation) -> bool:
    return np.allclose((*first.mean, *first.std), (*second.mean, *second.std), rtol=1e-3, atol=0)
