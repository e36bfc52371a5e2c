"""The mathematics of whitening, against each method's own formula."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.conversion.zca import fit_whitening, whitened_rows
from diver_trt.distilled.methods.base import Kind
from tests.distilled.whitened import planar, tenth_of_the_mean


def test_frepo_fits_images_with_the_channels_last(photographs: NDArray[np.uint8]) -> None:
    rows = photographs.reshape(len(photographs), -1) / 255
    together = whitened_rows(Kind.FREPO, (3, 16, 16))
    whitening, _ = fit_whitening(planar(photographs), Kind.FREPO, together)
    centred = rows - rows.mean(axis=0)
    whitened = (centred @ tenth_of_the_mean(centred))[3].reshape(16, 16, 3)
    np.testing.assert_allclose(
        whitening.undo(whitened.transpose(2, 0, 1)), planar(photographs)[3], atol=2e-3
    )


def test_frepos_large_images_are_four_rows_of_every_second_pixel() -> None:
    rows = whitened_rows(Kind.FREPO, (3, 128, 128))
    image = np.arange(3 * 128 * 128).reshape(3, 128, 128)
    np.testing.assert_array_equal(
        image.reshape(-1)[rows],
        checkerboard(image.transpose(1, 2, 0)[None].astype(np.float64), 64)[0],
    )


def checkerboard(
    images: NDArray[np.float64], block: int
) -> NDArray[np.float64]:  # [n, H, W, 3] => [n, blocks, block * block * 3]
    """FRePo's `checkboardshaped`, with its loop."""
    count, height, width, channels = images.shape
    blocks = np.zeros((count, height // block, width // block, block, block, channels))
    for i in range(height // block):
        for j in range(width // block):
            blocks[:, i, j] = images[:, i :: height // block, j :: width // block]
    return blocks.reshape(count, -1, block * block * channels)


def uncheckerboard(blocks: NDArray[np.float64], side: int, block: int) -> NDArray[np.float64]:
    step = side // block
    images = np.zeros((len(blocks), side, side, 3))
    parts = blocks.reshape(-1, step, step, block, block, 3)
    for i in range(step):
        for j in range(step):
            images[:, i::step, j::step] = parts[:, i, j]
    return images


def frepos_blocks(
    values: NDArray[np.float64], block: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Whiten images [n, H, W, 3] as FRePo does its 128-pixel ones.

    Returns:
        The whitened images, the inverse and the mean, as FRePo saves these.
    """
    mean = values.reshape(len(values), -1).mean(axis=0)
    blocks = checkerboard(values - mean.reshape(values.shape[1:]), block)
    covariance = np.mean(np.einsum("ijk,ijl->jkl", blocks, blocks) / len(values), axis=0)
    u, s, _ = np.linalg.svd(
        covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    root = np.sqrt(s)
    root[len(values) :] = 1
    whitened = uncheckerboard(
        blocks @ np.einsum("ij,j,kj->ik", u, 1 / root, u), values.shape[1], block
    )
    return whitened, np.einsum("ij,j,kj->ik", u, root, u), mean
