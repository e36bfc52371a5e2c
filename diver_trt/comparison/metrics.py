"""How far two arrays or two images are apart.

Arrays are compared in float64. Images are uint8 [H, W, 3]; PSNR and SSIM are scikit-image's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.packages import required
from diver_trt.pixels import Pixels

Values = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an array is from its reference.

    Attributes:
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        relative_l2: L2 norm of the difference over that of the expected array; infinite if a value
            is NaN or infinite, or all expected values are 0 and the found ones are not.
        cosine: Cosine of the angle between the two, -1 to 1.
        within_fp16: Share of the values, 0 to 1, that are at most one float16 spacing away from the
            expected value.
        finite: Whether no value is NaN or infinite.
    """

    max_abs: float
    mean_abs: float
    relative_l2: float
    cosine: float
    within_fp16: float
    finite: bool


def difference(found: Values, expected: Values) -> Difference:
    """Compare two arrays of one shape.

    Args:
        found: The array under test, of any floating type.
        expected: Its reference, finite.
    """
    assert found.shape == expected.shape, "the caller pairs arrays of one tensor"
    # The square of a float16 value beyond 256 overflows in float16.
    ours, theirs = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if not np.isfinite(ours).all():
        return Difference(math.inf, math.inf, math.inf, 0.0, 0.0, finite=False)
    gap = np.abs(ours - theirs)
    norm, own_norm = float(np.linalg.norm(theirs)), float(np.linalg.norm(ours))
    apart = float(np.linalg.norm(gap))
    return Difference(
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        relative_l2=apart / norm if norm else (math.inf if apart else 0.0),
        cosine=float(ours @ theirs / (norm * own_norm))
        if norm and own_norm
        # Two arrays of zeros agree; between zeros and other values the angle is undefined.
        else float(norm == own_norm),
        within_fp16=float((gap <= fp16_spacing(theirs)).mean()),
        finite=True,
    )


def fp16_spacing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spacing of float16 numbers around each value; 0 beyond their range, 65504."""
    # A value is f 2^exponent with f in [1/2, 1). float16 stores ten bits below the leading one, and
    # its smallest normal number is 2^-14 (IEEE 754 binary16).
    _, exponents = np.frexp(values)
    spacing: NDArray[np.float64] = np.ldexp(
        1.0, np.where(values == 0, -14, np.maximum(exponents - 1, -14)) - 10
    )
    return np.where(np.abs(values) <= float(np.finfo(np.float16).max), spacing, 0.0)


def worst_channel(found: Values, expected: Values) -> int:
    """Return the channel of [n, c, h, w] arrays with the largest L2 difference."""
    # A channel that overflows is the worst one.
    gap = found.astype(np.float64) - expected.astype(np.float64)
    squares = np.where(np.isfinite(gap), gap**2, np.inf)
    return int(np.argmax(squares.sum(axis=(0, 2, 3))))


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """How far an image is from its reference.

    Attributes:
        psnr_db: Peak signal-to-noise ratio in dB, infinite for equal images.
        ssim: Structural similarity, at most 1.
        max_levels: Largest difference of a value, in 8-bit levels.
    """

    psnr_db: float
    ssim: float
    max_levels: int


def image_difference(found: Pixels, expected: Pixels) -> ImageDifference:
    """Compare two images.

    Args:
        found: The image under test, uint8 [H, W, 3], at least 7 pixels a side.
        expected: Its reference, uint8 of the same shape.

    Raises:
        MissingExtraError: If scikit-image is not installed.
    """
    measure = import_image_metrics()
    # scikit-image divides by zero, with a warning, for the PSNR of equal images.
    same = np.array_equal(found, expected)
    # Differences of uint8 would wrap around.
    levels = np.abs(found.astype(np.int16) - expected.astype(np.int16))
    return ImageDifference(
        psnr_db=math.inf
        if same
        else float(measure.peak_signal_noise_ratio(expected, found, data_range=255)),
        ssim=float(measure.structural_similarity(expected, found, channel_axis=2, data_range=255)),
        max_levels=int(levels.max()),
    )


def import_image_metrics() -> Any:
    """Import scikit-image's metrics.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return required("skimage", "compare", "comparing images", "scikit-image").metrics
