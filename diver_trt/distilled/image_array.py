"""Images in an array of a file: where their channels are, and some of them to judge the file by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.labels import describe_array
from diver_trt.distilled.stored_array import Array
from diver_trt.errors import DatasetError

_MAX_IMAGES, _MAX_BYTES = 256, 1 << 26


def channels_last(path: Path, array: Array) -> bool:
    """Return whether images are [n, H, W, c] instead of [n, c, H, W].

    Raises:
        DatasetError: If the array does not hold images, or the axis of its channels is ambiguous.
    """
    shape = array.shape
    plain = array.dtype == np.uint8 or (array.dtype.kind == "f" and array.dtype.itemsize <= 8)
    if len(shape) == 4 and 0 not in shape and plain:
        # The file does not state the order of axes, so the axis of one or three values is the
        # channels'.
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last:
            raise DatasetError(
                f"{path}: images are {describe_array(array)}, whose channels may come first or "
                "last; expected images of more than 3 pixels, [n, 3, H, W] or [n, H, W, 3]"
            )
        if first or last:
            return last
    raise DatasetError(
        f"{path}: images are {describe_array(array)}; expected float16, float32, float64 or uint8, "
        "[n, 3, H, W] or [n, H, W, 3]"
    )


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
