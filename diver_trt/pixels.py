"""Images between the world, uint8 [H, W, 3], and the networks, float32 [3, H, W] in [-1, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import DatasetError
from diver_trt.tensors import describe

Pixels = NDArray[np.uint8]


def square(image: Pixels, size: int) -> Pixels:  # [H, W, 3] uint8 => [size, size, 3] uint8
    """Resize an image so that its shorter side fits, bicubically, and crop the longer one to the middle, as DiT's training did.

    An image of that size is returned untouched.

    Raises:
        DatasetError: The array is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DatasetError(f"image: got {describe(image)}, expected uint8[H, W, 3]")
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    from PIL import Image

    scale = size / min(height, width)
    resized = Image.fromarray(image).resize((max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def to_network(image: Pixels) -> NDArray[np.float32]:  # [H, W, 3] uint8 => [3, H, W] float32 in [-1, 1]
    """Return an image as the encoder reads it."""
    values: NDArray[np.float32] = image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return values


def from_network(image: NDArray[np.float32]) -> Pixels:  # [3, H, W] float32 in [-1, 1] => [H, W, 3] uint8
    """Return what the decoder wrote as 8-bit pixels, rounded to the nearest."""
    levels: NDArray[np.float32] = np.rint((image.transpose(1, 2, 0) + np.float32(1)) * np.float32(127.5))
    return levels.clip(0, 255).astype(np.uint8)
