"""ZCA whitening: how to see that images are whitened, and how to undo it with the images it was fitted on.

Methods of the MTT family optimise whitened CIFAR images and keep no transform; it can only be fitted again, on the training images.
`z = (x - mean) W` with `W = U (S + r)^(-1/2) U^T`, `U S U^T` the images' covariance; to undo it, `x = z U (S + r)^(1/2) U^T + mean`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import DatasetError

MAX_PIXELS = 64 * 64
"""Largest image the transform is fitted for; at 64 pixels a side it is a matrix of 12,288 x 12,288."""

REGULARISATION = 0.1
_BLOCK = 1024


class Kind(Enum):
    """Whose whitening: what is added to the eigenvalues, and what the images are before.

    KORNIA is MTT's, TESLA's, DATM's and SeqMatch's: 0.1 is added; images are [3, H, W] in [0, 1]. FREPO adds a tenth of the mean
    eigenvalue; images are [H, W, 3], each channel normalised. KIP does the same to images [3, H, W] of mean 0 and length 1, without taking
    off the mean of all: what an image's own brightness and contrast were, nothing tells.
    """

    KORNIA = "kornia"
    FREPO = "FRePo"
    KIP = "KIP"


@dataclass(frozen=True, slots=True)
class Whitening:
    """A fitted transform, to be undone.

    Attributes:
        mean: Of the images, [D] float32.
        inverse: [D, D] float32.
        channels_last: Whether D runs over [H, W, 3] instead of [3, H, W].
    """

    mean: NDArray[np.float32]
    inverse: NDArray[np.float32]
    channels_last: bool

    @property
    def sha256(self) -> str:
        """A hash of the transform: another one makes other images of the same values."""
        return hashlib.sha256(self.inverse.tobytes() + self.mean.tobytes()).hexdigest()

    def undo(self, image: NDArray[Any]) -> NDArray[np.float32]:  # [3, H, W] => [3, H, W] float32
        """Return an image as it was before whitening."""
        ordered = image.transpose(1, 2, 0) if self.channels_last else image
        values: NDArray[np.float32] = (ordered.reshape(-1).astype(np.float32) @ self.inverse + self.mean).reshape(ordered.shape)
        return values.transpose(2, 0, 1) if self.channels_last else values


def fit_whitening(images: Iterable[NDArray[np.float32]], kind: Kind) -> Whitening:
    """Fit the transform to training images, all of the same shape and prepared as `kind` says.

    Raises:
        DatasetError: The images are too large, too few, or not all of the same shape.
    """
    count, total, square = 0, np.zeros(0), np.zeros((0, 0), np.float32)
    block: list[NDArray[np.float32]] = []
    for image in images:
        row = image.reshape(-1).astype(np.float32)
        if not count:
            if row.size > 3 * MAX_PIXELS:
                raise DatasetError(
                    f"--zca-reference: images of {list(image.shape)} are too large to fit a transform for; use the un-whitened file"
                )
            total, square = np.zeros(row.size), np.zeros((row.size, row.size), np.float32)
        if row.size != total.size:
            raise DatasetError(
                f"--zca-reference: image {count} is {list(image.shape)}, others have {total.size} values; expected equal shapes"
            )
        count += 1
        total += row
        block.append(row)
        if len(block) == _BLOCK:
            square += _products(block)
    if count < 2:
        raise DatasetError(
            f"--zca-reference: holds {count} images; expected those the method whitened, for CIFAR all 50,000 of the training set"
        )
    if block:
        square += _products(block)
    mean = np.zeros_like(total) if kind is Kind.KIP else total / count
    covariance = (square.astype(np.float64) - count * np.outer(mean, mean)) / (count - 1 if kind is Kind.KORNIA else count)
    amount = REGULARISATION if kind is Kind.KORNIA else REGULARISATION * float(np.trace(covariance)) / len(mean)
    values, vectors = np.linalg.eigh(covariance.astype(np.float32))
    inverse = (vectors * np.sqrt(np.maximum(values, 0) + np.float32(amount))) @ vectors.T
    return Whitening(mean.astype(np.float32), inverse.astype(np.float32), kind is Kind.FREPO)


def _products(block: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the sum of `x x^T` over a block of rows, and empty it."""
    rows = np.stack(block)
    block.clear()
    products: NDArray[np.float32] = rows.T @ rows
    return products


def looks_whitened(images: NDArray[Any]) -> bool:
    """Say whether images [n, C, H, W] have lost their brightness, as whitening makes them.

    In natural and distilled images a fifth of the energy and more is in the means of the channels; whitening makes all directions alike,
    and those three are then among many hundreds (a hundredth of the energy, for DM's CIFAR-10 images and for photographs).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values are told from the range of pixels later
        values = images.astype(np.float32)
        energy = float(np.mean(np.square(values)))
        return energy > 0 and float(np.mean(np.square(values.mean(axis=(2, 3))))) < 0.05 * energy
