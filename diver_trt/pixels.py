"""Images as files have them, uint8 [H, W, 3], and as networks, float32 [3, H, W] in [-1, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import DatasetError
from diver_trt.tensors import describe

Pixels = NDArray[np.uint8]


def square(
    image: Pixels, size: int, name: str = "image"
) -> Pixels:  # [H, W, 3] uint8 => [size, size, 3] uint8
    """Crop an image to its central square and resize it bicubically.

    An image of the target size is returned unchanged.

    Raises:
        DatasetError: If the array is not uint8 [H, W, 3]; the message begins with `name`.
    """
    # DiT's training resizes first and then crops (center_crop_arr in
    # https://github.com/facebookresearch/DiT/blob/main/train.py).
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DatasetError(f"{name}: got {describe(image)}, expected uint8[H, W, 3]")
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    from PIL import Image

    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    middle = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(middle.resize((size, size), Image.Resampling.BICUBIC))


def to_network(
    image: Pixels,
) -> NDArray[np.float32]:  # [H, W, 3] uint8 => [3, H, W] float32 in [-1, 1]
    """Return an image in the encoder's form."""
    values: NDArray[np.float32] = image.transpose(2, 0, 1).astype(np.float32) / np.float32(
        127.5
    ) - np.float32(1)
    return values


def from_network(
    image: NDArray[np.float32],
) -> Pixels:  # [3, H, W] float32 in [-1, 1] => [H, W, 3] uint8
    """Return a decoder's output as 8-bit pixels, rounded to the nearest level."""
    # The cast to uint8 truncates, which would darken the image by half a level on average.
    levels: NDArray[np.float32] = np.rint(
        (image.transpose(1, 2, 0) + np.float32(1)) * np.float32(127.5)
    )
    # Clipped first: C leaves the cast of a float beyond the integer's range undefined.
    return levels.clip(0, 255).astype(np.uint8)
