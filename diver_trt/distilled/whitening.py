"""ZCA whitening: how to see that images are whitened, and how to undo it with the images it was fitted on.

Methods of the MTT family optimise whitened CIFAR images and keep no transform; it can only be fitted again, on the training images.
`z = (x - mean) W` with `W = U (S + r)^(-1/2) U^T`, `U S U^T` the images' covariance; to undo it, `x = z U (S + r)^(1/2) U^T + mean`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.methods.base import Kind
from diver_trt.errors import DatasetError

SIDE = 64
"""Largest side of a square that is whitened as a whole: its transform is a matrix of 12,288 x 12,288."""

REGULARISATION = 0.1
_BLOCK = 1024
_WHITENED = 0.05
"""Share of the energy in the brightness of images below which they look whitened."""

_GREY = 0.95
"""Least correlation between the channels of grey images, whatever was done to each channel; of whitened photographs it is below 0.5."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """A transform, to be undone.

    Attributes:
        rows: Which values of an image are whitened together (`whitened_rows`), [rows, D].
        mean: Of the images, [rows, D] float32.
        inverse: Of the transform of each row, [D, D] float32.
    """

    rows: NDArray[np.intp]
    mean: NDArray[np.float32]
    inverse: NDArray[np.float32]

    @property
    def sha256(self) -> str:
        """A hash of the transform: another one makes other images of the same values."""
        return hashlib.sha256(self.inverse.tobytes() + self.mean.tobytes()).hexdigest()

    def undo(self, image: NDArray[Any]) -> NDArray[np.float32]:  # [3, H, W] => [3, H, W] float32
        """Return an image as it was before whitening."""
        flat = image.reshape(-1).astype(np.float32)
        values = np.empty_like(flat)
        values[self.rows] = flat[self.rows] @ self.inverse + self.mean
        return values.reshape(image.shape)


def whitened_rows(kind: Kind, shape: tuple[int, ...]) -> NDArray[np.intp] | None:  # => [rows, D]
    """Return which values of an image [3, H, W], numbered as stored, make a row that is whitened; None for a size that nobody whitens.

    Up to 64 x 64 pixels an image is one row, FRePo's with the channels last. FRePo's 128 x 128 pixels are four: of every second pixel in
    both directions, all whitened with the mean of their covariances (its `lib/dataset/ops.py`: `checkboardshaped`, `use_mean_block`).
    """
    _, height, width = shape
    step = 2 if kind is Kind.FREPO and (height, width) == (2 * SIDE, 2 * SIDE) else 1
    if height * width > (step * SIDE) ** 2:
        return None
    numbers = np.arange(3 * height * width).reshape(shape)
    ordered = numbers.transpose(1, 2, 0) if kind is Kind.FREPO else numbers
    return np.stack(
        [
            ordered[row::step, column::step].reshape(-1)
            for row in range(step)
            for column in range(step)
        ]
    )


def fit_whitening(
    images: Iterable[NDArray[np.float32]], kind: Kind, rows: NDArray[np.intp]
) -> tuple[Whitening, int]:
    """Fit the transform to training images.

    Args:
        images: [3, H, W] each, prepared as `kind` says.
        kind: Whose transform.
        rows: Which values are whitened together (`whitened_rows`).

    Returns:
        The transform, and how many images it was fitted to.

    Raises:
        DatasetError: There are fewer than two images.
    """
    count, total, square = (
        0,
        np.zeros(rows.shape),
        np.zeros((rows.shape[1], rows.shape[1]), np.float32),
    )
    block: list[NDArray[np.float32]] = []
    for image in images:
        values = image.reshape(-1).astype(np.float32)[rows]
        count += 1
        total += values
        block.append(values)
        if len(block) * len(rows) >= _BLOCK:
            square += _products(block)
    if count < 2:
        raise DatasetError(
            f"--zca-reference: holds {count} images; expected those the method whitened, for CIFAR all 50,000 of the training set"
        )
    if block:
        square += _products(block)
    mean = np.zeros_like(total) if kind is Kind.KIP else total / count
    covariance = (square.astype(np.float64) - count * (mean.T @ mean)) / (
        count - 1 if kind is Kind.KORNIA else count * len(rows)
    )
    amount = (
        REGULARISATION
        if kind is Kind.KORNIA
        else REGULARISATION * float(np.trace(covariance)) / len(covariance)
    )
    values, vectors = np.linalg.eigh(covariance.astype(np.float32))
    scale = np.sqrt(np.maximum(values, 0) + np.float32(amount))
    if kind is Kind.FREPO:
        scale[: max(0, len(scale) - count)] = 1
    inverse = (vectors * scale) @ vectors.T
    return Whitening(rows, mean.astype(np.float32), inverse.astype(np.float32)), count


def _products(block: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the sum of `x x^T` over a block of rows, and empty it."""
    rows = np.concatenate(block)
    block.clear()
    products: NDArray[np.float32] = rows.T @ rows
    return products


def looks_whitened(images: NDArray[Any]) -> bool:
    """Return whether images [n, C, H, W] have lost their brightness, as whitening makes them.

    In natural and distilled images a fifth of the energy and more is in the means of the channels. Whitening makes all
    directions alike, and those three are then among many hundreds: a hundredth of the energy, measured on DM's
    CIFAR-10 images and on photographs. Handwritten digits are all equally bright before anything is done to them (a
    hundredth, too), and are recognised by being grey; no method whitens those.
    """
    if images.shape[1] != 3 or not brightness_share(images) < _WHITENED:
        return False
    with np.errstate(all="ignore"):  # absurd values are found when their range is looked at
        values = images.astype(np.float32)
        return not float(np.corrcoef(values.transpose(1, 0, 2, 3).reshape(3, -1)).min()) > _GREY


def brightness_share(images: NDArray[Any]) -> float:
    """Return the share of the energy of images [n, C, H, W] that is in the means of their channels; NaN without energy."""
    with np.errstate(all="ignore"):
        values = images.astype(np.float32)
        means = np.mean(np.square(values.mean(axis=(2, 3))))
        return float(means / np.mean(np.square(values)))
