"""Arrays in `.pt` files, opened without torch: `torch_pickle` reads what their pickle describes.

The formats: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diver_trt.distilled.array_damage import MAX_METADATA_BYTES, damage_reported
from diver_trt.distilled.stored_array import (
    Array,
    Content,
    InPlaceArray,
    LoadBudget,
    readable,
    span,
)
from diver_trt.distilled.torch_pickle import SavedTensor, TorchPickle
from diver_trt.distilled.zip_file import data_offset, open_zip, read_at
from diver_trt.errors import DatasetError

_MAX_EXPANDED_BYTES = 1 << 26
"""Largest tensor that may exceed its file's size, which one that repeats its values does."""

_MAX_EXPANDED_ROWS = 10_000
"""Maximum number of rows of such a tensor.

Each row costs up to a millisecond to check, and costs the file's author no bytes.
"""

_MAX_TEXT = 100
"""Longest text kept of a dictionary, in characters.

The names of formats, normalisations and subsets are shorter.
"""

# Far more than any method's: a dictionary of lists of pairs is three levels deep.
_MAX_NODES, _MAX_DEPTH = 100_000, 8
_BYTE_ORDERS: Mapping[bytes, Literal["<", ">"]] = {b"little": "<", b"big": ">"}
# https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def open_torch(path: Path) -> Content:
    """Open a file of `torch.save`, in the zip format or the one before torch 1.6.

    Raises:
        DatasetError: If it is damaged, or holds anything but tensors in lists and dictionaries.
    """
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: is empty")
    with damage_reported(f"{path}: not a file of torch.save, or a damaged one"):
        return _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)


def _zipped(path: Path) -> Content:
    with open_zip(path) as (file, archive):
        members = archive.infolist()
        # A compressed storage cannot be read in place, and may be a zip bomb.
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise DatasetError(
                f"{path}: is compressed, which torch.save never does; load it and save it again "
                "with torch.save"
            )
        # torch.save names the folder after the file, which may have been renamed since.
        folder = members[0].filename.partition("/")[0]
        places = {
            info.filename.removeprefix(f"{folder}/"): (data_offset(file, info), info.file_size)
            for info in members
        }
        # Readers differ in which of the two they take: torch may find another pickle than zipfile.
        if len(places) < len(members):
            raise DatasetError(
                f"{path}: holds two records under one name; save it again with torch.save"
            )
        if "data.pkl" not in places:
            raise DatasetError(f"{path}: is a zip file, but not one of torch.save")
        if places["data.pkl"][1] > MAX_METADATA_BYTES:
            raise DatasetError(f"{path}: holds too much beside its tensors; save the tensors alone")
        # Not through zipfile, which compares checksums: torch.save may omit them.
        # https://docs.pytorch.org/docs/stable/generated/torch.serialization.set_crc32_options.html
        pickled = read_at(file, *places["data.pkl"])
        # torch.load also takes a file without this record for little-endian.
        order = read_at(file, *places["byteorder"]) if "byteorder" in places else b"little"
    structure = TorchPickle(path, io.BytesIO(pickled)).read()
    return _Reader(path, places, _BYTE_ORDERS[order]).read(structure)


def _legacy(path: Path) -> Content:
    """Read a file of torch before 1.6: five pickles, then each storage's length and values."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_METADATA_BYTES))
        pickles = TorchPickle(path, stream)
        if pickles.read() != _TORCH_MAGIC or pickles.read() != _TORCH_PROTOCOL:
            raise DatasetError(f"{path}: not a file of torch.save")
        # The first describes the machine that wrote the file.
        _, structure, keys = pickles.read(), pickles.read(), pickles.read()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its tensors have no values")
        # Each storage: its length as 8 bytes, little-endian, then its values.
        places, position = {}, stream.tell()
        for key in keys:
            (count,) = struct.unpack("<Q", read_at(file, position, 8))
            size = count * np.dtype(pickles.storages[key].dtype).itemsize
            places[f"data/{key}"] = (position + 8, size)
            position += 8 + size
    return _Reader(path, places, "<").read(structure)


class _Reader:
    """Turns what a pickle describes into arrays in the file.

    Args:
        path: The file.
        places: Offset and size in bytes of each storage's values, by `data/` and its key.
        order: Their byte order in numpy's notation.
    """

    def __init__(
        self, path: Path, places: Mapping[str, tuple[int, int]], order: Literal["<", ">"]
    ) -> None:
        self._path, self._places, self._order = path, places, order
        self._budget = LoadBudget(path)
        self._nodes: Iterator[int] = iter(range(_MAX_NODES))
        # By the id of their list, which is held by the value that is read.
        self._numbers: dict[int, Array] = {}

    def read(self, value: Any, depth: int = 0) -> Content:
        """Return the content of a value.

        Raises:
            DatasetError: If it is deeper or larger than any method's, or a tensor is damaged.
        """
        # A pickle of a few bytes can describe a list that holds itself, or 2^30 lists.
        if depth > _MAX_DEPTH or next(self._nodes, None) is None:
            raise DatasetError(
                f"{self._path}: its lists are nested too deeply or endlessly; save the tensors "
                "alone"
            )
        if isinstance(value, SavedTensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {
                key: _plain_array(item)
                if isinstance(item, (str, int, float))
                else self.read(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            numbers = self._whole_numbers(value)
            if numbers is not None:
                return numbers
            return [self.read(item, depth + 1) for item in value]
        return None

    def _whole_numbers(self, values: Sequence[Any]) -> Array | None:
        """Return a list of whole numbers, as labels are saved, as an array; None for others."""
        # Each list once: a pickle can refer to a long one thousands of times.
        found = self._numbers.get(id(values))
        if found is None and values and all(map(_is_int64, values)):
            found = self._numbers[id(values)] = np.array(values)
        return found

    def _tensor(self, tensor: SavedTensor) -> Array:
        dtype = np.dtype(tensor.storage.dtype).newbyteorder(self._order)
        shape, file_bytes = tensor.shape, self._path.stat().st_size
        expanded = prod(shape) * dtype.itemsize
        # A stride of 0 repeats values, so that a tensor of terabytes fits in a file of a kilobyte.
        repeated = expanded > file_bytes and max(shape[:1], default=0) > _MAX_EXPANDED_ROWS
        if repeated or expanded > max(file_bytes, _MAX_EXPANDED_BYTES):
            raise DatasetError(
                f"{self._path}: a tensor of shape {list(shape)} is larger than the file; save it "
                "with .contiguous()"
            )
        # A storage that is missing has size 0, so the next check refuses the tensor.
        offset, size = self._places.get(f"data/{tensor.storage.key}", (0, 0))
        if (tensor.start + span(shape, tensor.strides)) * dtype.itemsize > size:
            raise DatasetError(
                f"{self._path}: a tensor of shape {list(shape)} lies outside its own storage; the "
                "file is damaged"
            )
        start = offset + tensor.start * dtype.itemsize
        return readable(InPlaceArray(self._path, dtype, shape, tensor.strides, start), self._budget)


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _plain_array(value: str | int | float) -> Array:
    """Return a text or number of a dictionary as the 0-d array that `.npz` files have instead."""
    if isinstance(value, str):
        return np.array(value[:_MAX_TEXT])
    # numpy would make an object array of a larger number.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return np.array(hex(value))
    return np.array(value)
