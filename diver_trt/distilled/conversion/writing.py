"""Writing one self-describing file: an `.npz` or `.safetensors` file with facts beside its arrays.

The facts are the texts `format`, `normalisation`, `collage` and, where they are known, `whitening`,
`unwhitened` and `classes`, so that the device need not guess again.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diver_trt.distilled.arrays import Tensors
from diver_trt.distilled.stored_array import Array, StoredArray
from diver_trt.errors import OutputError
from diver_trt.files import replacing, reported

SUFFIXES = (".npz", ".safetensors")
_ROWS = 64


def write_converted(tensors: Tensors, collage: int, classes: str | None, output: Path) -> None:
    """Write distilled tensors with the facts about them.

    Args:
        tensors: The tensors.
        collage: Images along a side of each stored one.
        classes: Their ImageNet subset, if it is known.
        output: A new `.npz` or `.safetensors` file.

    Raises:
        OutputError: If the file exists, has another suffix, or cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if output.exists():
        raise OutputError(f"{output}: already exists; choose a new file")
    labels = tensors.labels.classes if tensors.labels.rows is None else tensors.labels.rows
    # `StoredArray`s are written by rows, so that a set larger than the memory can be converted.
    arrays = {"images": tensors.images, "labels": labels}
    facts = {
        "format": tensors.format.name,
        "normalisation": tensors.normalisation.name,
        "collage": str(collage),
        "whitening": tensors.whitened and tensors.whitened.value,
        "unwhitened": tensors.unwhitened,
        "classes": classes,
    }
    # An unknown fact is None, for which neither format has a text.
    texts = {key: value for key, value in facts.items() if value}
    with reported(output), replacing(output) as temporary, temporary.open("wb") as file:
        (_write_npz if suffix == ".npz" else _write_safetensors)(file, arrays, texts)


def _write_npz(file: BinaryIO, arrays: Mapping[str, Array], texts: Mapping[str, str]) -> None:
    members = {**arrays, **{key: np.array(value) for key, value in texts.items()}}
    # Not numpy.savez, which needs a whole array in memory. Uncompressed, so that rows can be read.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # force_zip64, since the size is not known in advance; ZipInfo's default date, 1980, so
            # that the same input gives the same bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(_little(array)),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(member, header)
                for rows in _rows(array):
                    member.write(rows)


def _write_safetensors(
    file: BinaryIO, arrays: Mapping[str, Array], texts: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": texts}
    offset = 0
    for name, array in arrays.items():
        size = array.nbytes
        header[name] = {
            # `F32`, `I64`, `U8`: safetensors' names of the types that occur here.
            "dtype": f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the values to eight bytes
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
    """Return an array's type in little-endian order, the only one that safetensors has."""
    dtype: np.dtype[Any] = array.dtype.newbyteorder("<")
    return dtype
