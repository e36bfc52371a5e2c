"""ZCA whitening, fitted again to the images that a method fitted it to, and undone.

`z = (x - mean) W` with `W = U (S + r)^(-1/2) U^T`, where `U S U^T` is the images' covariance. To
undo it: `x = z U (S + r)^(1/2) U^T + mean`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.counted import counted
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.whitening import SIDE
from diver_trt.errors import DatasetError

_REGULARISATION = 0.1
"""`eps` of kornia's `ZCAWhitening` as MTT sets it; of the mean variance, for FRePo and KIP."""
_BLOCK = 1024
"""Rows of one product: 50 MB of float32 for images of 64 x 64 pixels."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """A transform, to be undone.

    Attributes:
        rows: Which values of an image are whitened together (`whitened_rows`), [rows, D].
        mean: Mean of the images, [rows, D] float32.
        inverse: Inverse of the transform of each row, [D, D] float32.
    """

    rows: NDArray[np.intp]
    mean: NDArray[np.float32]
    inverse: NDArray[np.float32]

    @property
    def sha256(self) -> str:
        """A hash of the transform, in hex."""
        return hashlib.sha256(self.inverse.tobytes() + self.mean.tobytes()).hexdigest()

    def undo(self, image: NDArray[Any]) -> NDArray[np.float32]:  # [3, H, W] => [3, H, W] float32
        """Return an image as it was before whitening."""
        flat = image.reshape(-1).astype(np.float32)
        values = np.empty_like(flat)
        values[self.rows] = flat[self.rows] @ self.inverse + self.mean
        return values.reshape(image.shape)


def whitened_rows(kind: Kind, shape: tuple[int, ...]) -> NDArray[np.intp]:  # => [rows, D]
    """Return which values of an image are whitened together, numbered as stored.

    Args:
        kind: The method's whitening.
        shape: Of an image, (3, H, W), which `can_be_undone`.
    """
    _, height, width = shape
    # FRePo splits 128 x 128 pixels into four images of every second pixel in both directions, and
    # whitens all with the mean of their covariances.
    # https://github.com/yongchaoz/FRePo, lib/dataset/ops.py: checkboardshaped, use_mean_block
    step = 2 if height * width > SIDE**2 else 1
    numbers = np.arange(3 * height * width).reshape(shape)
    ordered = numbers.transpose(1, 2, 0) if kind is Kind.FREPO else numbers  # channels last
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
        images: [3, H, W] each, prepared as `kind` documents.
        kind: The method's whitening.
        rows: Which values are whitened together (`whitened_rows`).

    Returns:
        The transform, and how many images it was fitted to.

    Raises:
        DatasetError: If there are fewer than two images.
    """
    # Sums over the images: x in `total`, x x^T in `square`.
    count, total = 0, np.zeros(rows.shape)
    square = np.zeros((rows.shape[1], rows.shape[1]), np.float32)
    block: list[NDArray[np.float32]] = []
    for image in images:
        # image [3, H, W] => values [rows, D]
        values = image.reshape(-1).astype(np.float32)[rows]
        count += 1
        total += values
        block.append(values)
        # One matrix product per block, not per image: an outer product is limited by memory.
        if len(block) * len(rows) >= _BLOCK:
            square += _products(block)
    if count < 2:
        raise DatasetError(
            f"--zca-reference: holds {counted(count, 'image')}; expected those the method "
            "whitened, for CIFAR all 50,000 of the training set"
        )
    if block:
        square += _products(block)
    # The covariance from the sums, then its eigenvectors. KIP does not subtract the mean of all
    # images.
    mean = np.zeros_like(total) if kind is Kind.KIP else total / count
    # kornia divides by n - 1 (`unbiased`), the others by n:
    # https://kornia.readthedocs.io/en/latest/_modules/kornia/enhance/zca.html
    divisor = count - 1 if kind is Kind.KORNIA else count * len(rows)
    covariance = (square.astype(np.float64) - count * (mean.T @ mean)) / divisor
    amount = _REGULARISATION
    if kind is not Kind.KORNIA:
        # A tenth of the mean eigenvalue, which is the trace divided by its length.
        amount *= float(np.trace(covariance)) / len(covariance)
    values, vectors = np.linalg.eigh(covariance.astype(np.float32))
    # Rounding makes the smallest eigenvalues slightly negative.
    scale = np.sqrt(np.maximum(values, 0) + np.float32(amount))
    if kind is Kind.FREPO:
        # `count` images span that many directions, and FRePo leaves the others alone ("rank
        # control" in its lib/dataset/ops.py). `eigh` sorts the eigenvalues in ascending order.
        scale[: max(0, len(scale) - count)] = 1
    # The inverse of W = U (S + r)^(-1/2) U^T has the same vectors.
    inverse = (vectors * scale) @ vectors.T
    return Whitening(rows, mean.astype(np.float32), inverse.astype(np.float32)), count


def _products(block: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the sum of `x x^T` over a block of rows, and empty it."""
    rows = np.concatenate(block)
    block.clear()
    products: NDArray[np.float32] = rows.T @ rows
    return products
