"""Arrays in safetensors files, read in place.

The format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from diver_trt.distilled.array_damage import MAX_METADATA_BYTES, damage_reported
from diver_trt.distilled.stored_array import (
    Content,
    InPlaceArray,
    LoadBudget,
    readable,
    row_major,
)
from diver_trt.errors import DatasetError, shown

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def open_safetensors(path: Path) -> Content:
    """Open a safetensors file as a dictionary of its metadata and arrays.

    Raises:
        DatasetError: If it is damaged, or holds an array of a type that numpy lacks.
    """
    from safetensors import safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # safe_open itself accepts headers of up to 100 MB.
        if length > MAX_METADATA_BYTES:
            raise DatasetError(
                f"{path}: has a header of {length:,} bytes; expected at most {MAX_METADATA_BYTES:,}"
            )
        text = file.read(length)
    # This validates the header: no overlaps, no gaps, nothing beyond the file's end.
    with (
        damage_reported(f"{path}: not a safetensors file, or a damaged one"),
        safe_open(path, framework="numpy"),
    ):
        pass
    header = json.loads(text)
    budget = LoadBudget(path)
    # Some writers store null here.
    metadata = header.pop("__metadata__", None) or {}
    content: dict[str, Content] = {name: np.array(value) for name, value in metadata.items()}
    for name, entry in header.items():
        # NumPy lacks bfloat16 and 8-bit floats.
        if entry["dtype"] not in _DTYPES:
            raise DatasetError(
                f"{path}: {shown(name)} is of type {entry['dtype']}; expected {', '.join(_DTYPES)}"
            )
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]  # offsets count from the end of the header
        array = InPlaceArray(path, dtype, shape, row_major(shape), offset)
        content[name] = readable(array, budget)
    return content
