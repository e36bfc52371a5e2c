"""Arrays in `.npz` files, read in place.

The formats: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.array_damage import damage_reported
from diver_trt.distilled.stored_array import (
    MAX_VALUE_BYTES,
    Array,
    Content,
    InPlaceArray,
    LoadBudget,
    Once,
    StoredArray,
    readable,
    row_major,
)
from diver_trt.distilled.zip_file import data_offset, open_zip
from diver_trt.errors import DatasetError, shown

# numpy refuses texts of more than 10,000 characters (`max_header_size`):
# https://numpy.org/doc/stable/reference/generated/numpy.lib.format.read_array.html
_HEADER_BYTES = 1 << 14
_CHUNK_BYTES = 1 << 20


def open_npz(path: Path) -> Content:
    """Open a file of `numpy.savez`.

    Raises:
        DatasetError: If it is damaged, holds Python objects, or uses an unusual compression.
    """
    problem = f"{path}: not an .npz file, or a damaged one"
    with damage_reported(problem), open_zip(path) as (file, archive):
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        # The dictionary holds the last of them; the others would be dropped in silence.
        if len(members) < len(archive.infolist()):
            raise DatasetError(
                f"{path}: holds an array twice under one name; save it again with numpy.savez"
            )
        budget = LoadBudget(path)
        return {name: _member(path, file, archive, info, budget) for name, info in members.items()}


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a `.npy` file, and leave the file at its values.

    Returns:
        The shape, whether the values are in Fortran order, and the dtype.

    Raises:
        ValueError, EOFError, SyntaxError and others: If the header is damaged; numpy's own.
    """
    # Version 3 differs from 2 in the encoding of the names of fields, which plain arrays lack.
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read_header(file)


def _member(
    path: Path, file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: LoadBudget
) -> Array:
    # zipfile bounds the output of deflate only; bzip2 and LZMA decompress a whole read at once:
    # https://github.com/python/cpython/blob/3.13/Lib/zipfile/__init__.py (ZipExtFile._read1)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DatasetError(
            f"{path}: {shown(info.filename)} is compressed in an unusual way; save it with "
            "numpy.savez"
        )
    with archive.open(info) as member:
        # A version 2 header may state 4 GiB; numpy reads as much as the buffer has, and no more.
        start = io.BytesIO(member.read(_HEADER_BYTES))
    shape, fortran, dtype = read_npy_header(start)
    header = start.tell()
    # An object array is stored as a pickle:
    # https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    if dtype.hasobject:
        raise DatasetError(
            f"{path}: {shown(info.filename)} holds Python objects, which are never loaded; save "
            "plain arrays"
        )
    if (
        # `math.prod`, since numpy's wraps around at 64 bits: a stated 2**32 x 2**32 would be 0
        # values.
        any(type(length) is not int or length < 0 for length in shape)
        or prod(shape) * dtype.itemsize != info.file_size - header
    ):
        raise DatasetError(
            f"{path}: {shown(info.filename)} states shape {list(shape)}, but has "
            f"{info.file_size:,} bytes; the file is damaged"
        )
    # The strides of Fortran order are those of C order for the reversed shape, reversed.
    strides = row_major(shape[::-1])[::-1] if fortran else row_major(shape)
    # Once per array: a pass over it for every row would take quadratic time.
    verify = Once(partial(_verify, path, info))
    array = InPlaceArray(path, dtype, shape, strides, data_offset(file, info) + header, verify)
    if info.compress_type == zipfile.ZIP_STORED:
        return readable(array, budget)
    lazy = budget.lazy(
        array,
        "save it with numpy.savez, which does not compress",
        partial(_decompressed, array, info, header, fortran),
    )
    # A compressed text is read at once, as `readable` does with one that is stored.
    return lazy if shape or array.nbytes > MAX_VALUE_BYTES else lazy.load()


def _verify(path: Path, info: zipfile.ZipInfo) -> None:
    """Compare a stored member with its CRC-32.

    Raises:
        DatasetError: If they differ.
    """
    with _opened(path, info) as member:
        # zipfile compares the checksum at the end of a member; rows are read past zipfile.
        while member.read(_CHUNK_BYTES):
            pass


def _decompressed(
    array: StoredArray, info: zipfile.ZipInfo, header: int, fortran: bool
) -> NDArray[Any]:
    values = np.empty(array.nbytes, np.uint8)
    with _opened(array.path, info) as member:
        member.read(header)
        # Piece by piece, so that a bomb never inflates to more than the array's stated size.
        for first in range(0, len(values), _CHUNK_BYTES):
            piece = values[first : first + _CHUNK_BYTES]
            # numpy raises a ValueError if the data is too short.
            piece[:] = np.frombuffer(member.read(len(piece)), np.uint8, len(piece))
        return values.view(array.dtype).reshape(array.shape, order="F" if fortran else "C")


@contextmanager
def _opened(path: Path, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Open a member again, when its values are requested."""
    # The file may also have changed since.
    with (
        damage_reported(f"{path}: {shown(info.filename)} is damaged"),
        open_zip(path) as (_, archive),
        archive.open(info) as member,
    ):
        yield member
