"""The images by which a file of tensors is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.stored_array import Array

_MAX_IMAGES, _MAX_BYTES = 256, 1 << 26


def sample_images(images: Array, *, last: bool) -> NDArray[Any]:  # => [n, c, H, W]
    """Return images from all over an array, at most `_MAX_IMAGES` and `_MAX_BYTES`.

    Args:
        images: [n, c, H, W] or [n, H, W, c].
        last: Whether the channels are the last axis.
    """
    count = min(_MAX_IMAGES, max(1, _MAX_BYTES // max(1, images.nbytes // len(images))))
    # Evenly spaced: the first images of a sorted set are all of one class.
    positions = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    values = np.stack([images[int(position)] for position in positions])
    return values.transpose(0, 3, 1, 2) if last else values
