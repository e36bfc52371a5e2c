"""Distilled tensors in one file that says what it is: a method's files become an `.npz` or `.safetensors` file with the same values.

What the reader found out is written beside the arrays (`format`, `normalisation`, `collage`, and, where they are known, `whitening` and
`classes`), so that the device need not guess again.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diver_trt.distilled.arrays import Tensors
from diver_trt.distilled.stored_array import Array, StoredArray
from diver_trt.errors import OutputError
from diver_trt.files import replacing, reported

SUFFIXES = (".npz", ".safetensors")
_ROWS = 64


def convert_tensors(tensors: Tensors, collage: int, classes: str | None, output: Path) -> None:
    """Write distilled tensors as stored, with what is known of them.

    Args:
        tensors: What `read_tensors` found; whitened values are written as they are, and that they are.
        collage: Images along a side of each stored one.
        classes: The ImageNet subset that they are of, if it is known.
        output: A new `.npz` or `.safetensors` file.

    Raises:
        OutputError: The file exists, is to be of another kind, or cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if output.exists():
        raise OutputError(f"{output}: already exists; choose a new file")
    labels = tensors.labels.classes if tensors.labels.rows is None else tensors.labels.rows
    arrays = {"images": tensors.images, "labels": labels}
    said = {
        "format": tensors.format.name,
        "normalisation": tensors.normalisation.name,
        "collage": str(collage),
    }
    said |= {"whitening": tensors.whitened.value} if tensors.whitened else {}
    said |= {"classes": classes} if classes else {}
    with reported(output), replacing(output) as temporary, temporary.open("wb") as file:
        (_write_npz if suffix == ".npz" else _write_safetensors)(file, arrays, said)


def _write_npz(file: BinaryIO, arrays: dict[str, Array], said: dict[str, str]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in {
            **arrays,
            **{key: np.array(value) for key, value in said.items()},
        }.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(_little(array)),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                for rows in _rows(array):
                    member.write(rows)


def _write_safetensors(file: BinaryIO, arrays: dict[str, Array], said: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": said}
    offset = 0
    for name, array in arrays.items():
        kind = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        size = array.nbytes
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        for rows in _rows(array):
            file.write(rows)


def _rows(array: Array) -> Iterator[bytes]:
    if isinstance(array, StoredArray) or array.ndim:
        for first in range(0, len(array), _ROWS):
            yield np.ascontiguousarray(array[first : first + _ROWS], _little(array)).tobytes()
    else:
        yield array.tobytes()


def _little(array: Array) -> np.dtype[Any]:
    """Return an array's type with its bytes in the order that safetensors has, and that everybody expects of the other."""
    dtype: np.dtype[Any] = array.dtype.newbyteorder("<")
    return dtype
