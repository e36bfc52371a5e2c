"""flax checkpoints, in which FRePo publishes its sets: a training state in msgpack.

The images are `state["params"]["x_proto"]`, the labels `["y_proto"]`. Nothing in such a file can
run.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from diver_trt.distilled.stored_array import MAX_LOADED_BYTES, InPlaceArray, row_major
from diver_trt.errors import DatasetError
from diver_trt.packages import required

_NDARRAY = 1
"""flax's code for an array among msgpack's extension types: packed `(shape, dtype, bytes)`.

https://github.com/google/flax/blob/main/flax/serialization.py (_MsgpackExtType)
"""

_ARRAYS = {"x_proto": "image", "y_proto": "label"}
# Far more than a training state has, whose keys are names of layers.
_MAX_KEYS, _MAX_KEY_BYTES = 1000, 200
_DTYPES = ("float16", "float32", "float64")


def open_flax_checkpoint(path: Path) -> dict[str, InPlaceArray]:
    """Find FRePo's images and labels, under the names of its `.npz` files, `image` and `label`.

    Raises:
        DatasetError: If the file cannot be read, is not a flax checkpoint, or lacks FRePo's arrays.
        MissingExtraError: If msgpack is not installed.
    """
    msgpack: Any = required("msgpack", "export", "reading flax checkpoints")
    found: dict[str, InPlaceArray] = {}
    try:
        with path.open("rb") as file:
            limit = min(path.stat().st_size, MAX_LOADED_BYTES) + 1
            # Without limits, a header of five bytes makes msgpack allocate for 2^32 entries.
            reader = msgpack.Unpacker(
                file,
                max_buffer_size=limit,
                max_str_len=_MAX_KEY_BYTES,
                max_array_len=_MAX_KEYS,
                max_map_len=_MAX_KEYS,
            )
            # The state is walked key by key, so that only the two arrays are ever built.
            for _ in range(reader.read_map_header()):
                if reader.unpack() != "params":
                    # Skipped, not built: the optimiser's state holds two more copies of the images.
                    reader.skip()
                    continue
                for _ in range(reader.read_map_header()):
                    if name := _ARRAYS.get(reader.unpack()):
                        found[name] = _array(path, reader.unpack(), reader.tell())
                    else:
                        reader.skip()
    except OSError as cause:
        raise DatasetError(f"{path}: cannot be read ({cause.strerror})") from cause
    except (ValueError, TypeError, msgpack.UnpackException) as cause:
        raise DatasetError(
            f"{path}: not a flax checkpoint, or a damaged one; expected FRePo's, with x_proto and "
            "y_proto in its params"
        ) from cause
    if len(found) != len(_ARRAYS):
        raise DatasetError(
            f"{path}: lacks {' or '.join(_ARRAYS)} in its params; expected a checkpoint of FRePo"
        )
    return found


def _array(path: Path, packed: Any, end: int) -> InPlaceArray:
    """Return the array whose packed form ends at byte `end` of the file."""
    import msgpack

    if not (isinstance(packed, msgpack.ExtType) and packed.code == _NDARRAY):
        raise ValueError("not an array")
    # (shape, dtype, bytes), which flax packs by itself: a msgpack within the msgpack.
    shape, name, values = msgpack.unpackb(packed.data)
    if not (
        isinstance(shape, list)
        # `type`, since True is an `int`.
        and all(type(size) is int and size > 0 for size in shape)
        and name in _DTYPES
    ):
        raise ValueError("not an array of numbers")
    dtype = np.dtype(name)
    if not isinstance(values, bytes) or len(values) != prod(shape) * dtype.itemsize:
        raise ValueError("the shape, type and size of an array contradict each other")
    # The values are the last entry of the extension, so they end where it does.
    start = end - len(values)
    return InPlaceArray(path, dtype.newbyteorder("<"), tuple(shape), row_major(shape), start)
