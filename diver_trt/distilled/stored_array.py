"""Arrays in `.pt`, `.npz` and `.safetensors` files, read row by row and without running anything that is in the file.

A distilled ImageNet-1K is gigabytes of float32. So an array is opened as its place in the file, and its rows are read when they are asked
for: memory does not grow with the number of images. What cannot be read by rows is read as a whole, but only when it is asked for, and all
of a file's together may take `MAX_LOADED_BYTES`. No file may make more memory necessary than it has bytes, or than that.

A `.pt` file is opened without torch: what its pickle describes is read by `torch_pickle`.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from diver_trt.distilled.torch_pickle import SavedTensor, TorchPickle
from diver_trt.errors import DatasetError, shown

SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")
MAX_LOADED_BYTES = 1 << 30
"""How much of a file is held in memory at most, of arrays that it does not allow to be read by rows."""

_MAX_EXPANDED_BYTES = 1 << 26
"""How large a tensor may be that is larger than its file: one that repeats its values."""

_MAX_EXPANDED_ROWS = 10_000
"""How many rows such a tensor may have: each is looked at, which takes up to a millisecond, and none costs its maker a byte."""

_MAX_TOLD_BYTES = 1 << 22
"""How much a file may say of its arrays: a zip's directory, a pickle, a header of safetensors. Real ones have some kilobytes."""

_MAX_VALUE_BYTES = 2048
"""Longest text, or other single value, that is read when a file is opened."""

_MAX_TEXT = 100
"""Characters of a text in a dictionary of torch.save; names of formats, normalisations and subsets are shorter."""

_MAX_NODES, _MAX_DEPTH = 100_000, 8
_HEADER_BYTES = 1 << 14
_CHUNK_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_BYTE_ORDERS: Mapping[bytes, Literal["<", ">"]] = {b"little": "<", b"big": ">"}
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, slots=True)
class StoredArray(ABC):
    """An array in a file; `array[i]` reads row `i`, `array[i:j]` a range of rows, `array.load()` everything.

    Attributes:
        path: The file.
        dtype: Type of a value.
        shape: Shape of the array, rows first.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> NDArray[Any]:
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(self.shape[0])
            return self._read(first, (max(0, stop - first), *self.shape[1:]))
        row: NDArray[Any] = self._read(rows, (1, *self.shape[1:]))[0]
        return row

    @property
    def nbytes(self) -> int:
        """Size of all values in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def load(self) -> NDArray[Any]:
        """Return the whole array.

        Raises:
            DatasetError: It is larger than `MAX_LOADED_BYTES`.
        """
        if self.nbytes > MAX_LOADED_BYTES:
            raise DatasetError(
                f"{self.path}: would need {self.nbytes:,} bytes of memory; expected at most {MAX_LOADED_BYTES:,}"
            )
        return self._read(0, self.shape)

    @abstractmethod
    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return rows from the first one on, as many as the shape says."""


@dataclass(frozen=True, slots=True)
class InPlaceArray(StoredArray):
    """An array whose values lie uncompressed in the file.

    Attributes:
        strides: Distance in the file, in values, between neighbours along each axis; not negative.
        offset: Where the first value lies, in bytes.
        verify: Called before rows are read; raises a `DatasetError` if the file's checksum of the array does not
            match, and must be cached. None where the file has no checksum.
    """

    strides: tuple[int, ...]
    offset: int
    verify: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def end(self) -> int:
        """Where the last value ends in the file, in bytes."""
        return self.offset + _span(self.shape, self.strides) * self.dtype.itemsize

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        span, size = _span(shape, self.strides), self.dtype.itemsize
        if self.verify:
            self.verify()
        try:
            if not span:
                return np.empty(shape, self.dtype)
            with self.path.open("rb") as file:
                file.seek(self.offset + (first * self.strides[0] * size if first else 0))
                values = np.frombuffer(file.read(span * size), self.dtype)
            if len(values) != span:
                raise _cut_short(self.path)
            array: NDArray[Any] = as_strided(
                values, shape, tuple(stride * size for stride in self.strides)
            ).copy()
        except (OSError, ValueError, OverflowError) as cause:
            raise DatasetError(f"{self.path}: cannot be read any more ({cause})") from cause
        return array


@dataclass(frozen=True, slots=True)
class _Held(StoredArray):
    """An array that is read as a whole when it is first asked for, and kept in memory from then on.

    Attributes:
        values: Reads it; must be cached.
    """

    values: Callable[[], NDArray[Any]]

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        values = self.values()
        return values[first : first + shape[0]] if shape else values


class _Room:
    """The memory for those arrays of one file that are held as a whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._taken = path, 0

    def hold(self, array: StoredArray, remedy: str, read: Callable[[], NDArray[Any]]) -> _Held:
        """Return an array that is read when it is first asked for, if there is room for it then."""

        def values() -> NDArray[Any]:
            taken = self._taken + array.nbytes
            if taken > MAX_LOADED_BYTES:
                raise DatasetError(
                    f"{self._path}: would need {taken:,} bytes of memory, since it cannot be read row by row; expected at most "
                    f"{MAX_LOADED_BYTES:,}: {remedy}"
                )
            self._taken = taken
            return read()

        return _Held(array.path, array.dtype, array.shape, cache(values))


Array: TypeAlias = StoredArray | NDArray[Any]
"""Rows on disk or in memory: both have `shape`, `dtype`, `len()`, `array[i]` and `array[i:j]`."""

Content: TypeAlias = Array | Sequence[Any] | Mapping[Any, Any] | None
"""What a file holds: an array, or a list or dictionary of such contents. A text in a dictionary is an array of no
dimensions, as numpy and safetensors have them; what else there is reads as None."""


def open_stored(path: Path) -> Content:
    """Open a file of arrays.

    Args:
        path: A `.pt` or `.pth` file, or `.npz` or `.safetensors`, which become dictionaries.

    Raises:
        DatasetError: The file is none of these, is damaged, holds other than plain arrays, or claims more than it has.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DatasetError(
            f"{path}: is not a file of tensors; expected {', '.join(SUFFIXES)}, or a folder with one folder of images per class"
        )
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path}: is not a regular file, expected a file of tensors")
    try:
        with path.open("rb"):
            pass
    except OSError as cause:
        raise DatasetError(f"{path}: cannot be read ({cause.strerror})") from cause
    return {".npz": _open_npz, ".safetensors": _open_safetensors}.get(suffix, _open_torch)(path)


def load(array: Array) -> NDArray[Any]:
    """Return a small array as a whole.

    Raises:
        DatasetError: It is larger than `MAX_LOADED_BYTES`.
    """
    return array.load() if isinstance(array, StoredArray) else array


def _opened(array: InPlaceArray, room: _Room) -> Array:
    """Return an array that can be read by rows as it is, a single value as that, and any other to be held as a whole."""
    if array.end > array.path.stat().st_size:
        raise _cut_short(array.path)
    if not array.shape:
        return array.load() if array.nbytes <= _MAX_VALUE_BYTES else array
    lengths, strides = array.shape[1:], array.strides[1:]
    if 0 in array.shape or (0 not in strides and _span(lengths, strides) == prod(lengths)):
        return array
    return room.hold(array, "save contiguous arrays", array.load)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many values lie between an array's first and last one, both included."""
    return (
        0
        if 0 in shape
        else 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    )


def _cut_short(path: Path) -> DatasetError:
    return DatasetError(f"{path}: ends too early; the file is damaged or was cut short")


@dataclass(frozen=True, slots=True)
class _TorchFile:
    """What a file of torch.save holds, and where.

    Attributes:
        structure: As `TorchPickle` reads it.
        places: Where the values of each storage start and how many bytes they have, by `data/` and its key.
        order: Their byte order, as numpy writes it.
    """

    structure: Any
    places: Mapping[str, tuple[int, int]]
    order: Literal["<", ">"] = "<"


def _open_torch(path: Path) -> Content:
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: is empty")
    try:
        content = _zipped(path) if zipfile.is_zipfile(path) else _in_old_format(path)
        return _torch_content(
            path, content, content.structure, _Room(path), iter(range(_MAX_NODES))
        )
    except DatasetError:
        raise
    except Exception as cause:  # zipfile, pickletools and the pickle's reader raise BadZipFile, ValueError, IndexError … on damaged files
        raise DatasetError(
            f"{path}: not a file of torch.save, or a damaged one ({_first_line(cause)})"
        ) from cause


def _zipped(path: Path) -> _TorchFile:
    with _zip(path) as (file, archive):
        members = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise DatasetError(
                f"{path}: is compressed, which torch.save never does; load it and save it again with torch.save"
            )
        folder = members[0].filename.partition("/")[0]
        places = {
            info.filename.removeprefix(f"{folder}/"): (_data_offset(file, info), info.file_size)
            for info in members
        }
        if len(places) < len(members):
            raise DatasetError(
                f"{path}: holds two records under one name; save it again with torch.save"
            )
        if "data.pkl" not in places:
            raise DatasetError(f"{path}: is a zip file, but not one of torch.save")
        if places["data.pkl"][1] > _MAX_TOLD_BYTES:
            raise DatasetError(f"{path}: holds too much beside its tensors; save the tensors alone")
        pickled = _piece(file, *places["data.pkl"])  # whose checksum torch.save may leave out
        order = _piece(file, *places["byteorder"]) if "byteorder" in places else b"little"
    return _TorchFile(TorchPickle(path, io.BytesIO(pickled)).read(), places, _BYTE_ORDERS[order])


def _piece(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _in_old_format(path: Path) -> _TorchFile:
    """Read a file of torch before 1.6: five pickles, then the values of each storage after their number."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(_MAX_TOLD_BYTES))
        pickles = TorchPickle(path, stream)
        if pickles.read() != _TORCH_MAGIC or pickles.read() != _TORCH_PROTOCOL:
            raise DatasetError(f"{path}: not a file of torch.save")
        _, structure, keys = pickles.read(), pickles.read(), pickles.read()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its tensors have no values")
        places, position = {}, stream.tell()
        for key in keys:
            (count,) = struct.unpack("<Q", _piece(file, position, 8))
            places[f"data/{key}"] = (
                position + 8,
                count * np.dtype(pickles.storages[key].dtype).itemsize,
            )
            position = sum(places[f"data/{key}"])
    return _TorchFile(structure, places)


def _torch_content(
    path: Path, file: _TorchFile, value: Any, room: _Room, budget: Iterator[int], depth: int = 0
) -> Content:
    """Return what is in a structure; one that is deeper or larger than any method's is refused before it is walked to its end."""
    if depth > _MAX_DEPTH or next(budget, None) is None:
        raise DatasetError(f"{path}: lists in lists without end; save the tensors alone")
    if isinstance(value, SavedTensor):
        return _torch_array(path, file, value, room)
    if isinstance(value, dict):
        return {
            key: _plain_array(item)
            if isinstance(item, (str, int, float))
            else _torch_content(path, file, item, room, budget, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_torch_content(path, file, item, room, budget, depth + 1) for item in value]
    return None


def _plain_array(value: str | int | float) -> Array:
    """Return a text or number as the array that `.npz` files have in its place; a number that no array holds as a text."""
    if isinstance(value, str):
        return np.array(value[:_MAX_TEXT])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return np.array(hex(value))
    return np.array(value)


def _torch_array(path: Path, file: _TorchFile, tensor: SavedTensor, room: _Room) -> Array:
    dtype, shape = np.dtype(tensor.storage.dtype).newbyteorder(file.order), tensor.shape
    expanded, size = prod(shape) * dtype.itemsize, path.stat().st_size
    repeated = expanded > size and max(shape[:1], default=0) > _MAX_EXPANDED_ROWS
    if repeated or expanded > max(size, _MAX_EXPANDED_BYTES):
        raise DatasetError(
            f"{path}: a tensor of shape {list(shape)} is larger than the file; save it with .contiguous()"
        )
    offset, size = file.places.get(f"data/{tensor.storage.key}", (0, 0))
    if (tensor.start + _span(shape, tensor.strides)) * dtype.itemsize > size:
        raise DatasetError(
            f"{path}: a tensor of shape {list(shape)} lies outside its own storage; the file is damaged"
        )
    return _opened(
        InPlaceArray(path, dtype, shape, tensor.strides, offset + tensor.start * dtype.itemsize),
        room,
    )


def _open_npz(path: Path) -> Content:
    try:
        with _zip(path) as (file, archive):
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise DatasetError(
                    f"{path}: holds an array twice under one name; save it again with numpy.savez"
                )
            room = _Room(path)
            return {
                name: _npz_member(path, file, archive, info, room) for name, info in members.items()
            }
    except DatasetError:
        raise
    except Exception as cause:  # zipfile and numpy's reader of headers raise BadZipFile, TokenError, SyntaxError … on damaged files
        raise DatasetError(
            f"{path}: not an .npz file, or a damaged one ({_first_line(cause)})"
        ) from cause


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a `.npy` file, and leave the file at its values.

    Returns:
        The shape, whether the values are in Fortran order, and the dtype.

    Raises:
        ValueError, EOFError, SyntaxError and others: numpy's, if the header is damaged.
    """
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read_header(file)


def _npz_member(
    path: Path, file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo, room: _Room
) -> Array:
    # Other compressions unpack more at once than they are asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DatasetError(
            f"{path}: {shown(info.filename)} is compressed in an unusual way; save it with numpy.savez"
        )
    with archive.open(info) as member:
        start = io.BytesIO(member.read(_HEADER_BYTES))
    shape, fortran, dtype = read_npy_header(start)
    header = start.tell()
    if dtype.hasobject:
        raise DatasetError(
            f"{path}: {shown(info.filename)} holds Python objects, which are never loaded; save plain arrays"
        )
    if (
        any(type(length) is not int or length < 0 for length in shape)
        or prod(shape) * dtype.itemsize != info.file_size - header
    ):
        raise DatasetError(
            f"{path}: {shown(info.filename)} says shape {list(shape)}, but has {info.file_size:,} bytes; the file is damaged"
        )
    strides = [1] * len(shape)
    axes = range(1, len(shape)) if fortran else range(len(shape) - 2, -1, -1)
    for axis in axes:
        strides[axis] = (
            strides[axis - 1] * shape[axis - 1] if fortran else strides[axis + 1] * shape[axis + 1]
        )
    offset = _data_offset(file, info) + header
    verify = cache(partial(_verify, path, info))
    array = InPlaceArray(path, dtype, shape, tuple(strides), offset, verify)
    if info.compress_type == zipfile.ZIP_STORED:
        return _opened(array, room)
    held = room.hold(
        array,
        "save it with numpy.savez, which does not compress",
        partial(_unpacked, array, info, header, fortran),
    )
    return held if shape or array.nbytes > _MAX_VALUE_BYTES else held.load()


def _verify(path: Path, info: zipfile.ZipInfo) -> None:
    """Read a stored member once, so that zipfile compares its CRC-32: rows are read past it."""
    try:
        with _zip(path) as (_, archive), archive.open(info) as member:
            while member.read(_CHUNK_BYTES):
                pass
    except Exception as cause:  # as for a compressed one
        raise DatasetError(
            f"{path}: {shown(info.filename)} is damaged ({_first_line(cause)})"
        ) from cause


def _unpacked(
    array: StoredArray, info: zipfile.ZipInfo, header: int, fortran: bool
) -> NDArray[Any]:
    """Return the values of a compressed array, read piece by piece: no more is unpacked than the array says that it has."""
    values = np.empty(array.nbytes, np.uint8)
    try:
        with _zip(array.path) as (_, archive), archive.open(info) as member:
            member.read(header)
            for first in range(0, len(values), _CHUNK_BYTES):
                piece = values[first : first + _CHUNK_BYTES]
                piece[:] = np.frombuffer(member.read(len(piece)), np.uint8, len(piece))
        return values.view(array.dtype).reshape(array.shape, order="F" if fortran else "C")
    except Exception as cause:  # zipfile and zlib raise BadZipFile, zlib.error … on damaged files, and numpy if there is too little
        raise DatasetError(
            f"{array.path}: {shown(info.filename)} is damaged ({_first_line(cause)})"
        ) from cause


class _InParts(io.BufferedReader):
    """A file of which nobody gets more at once than a directory may have: zipfile then takes a longer one for cut short."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(
            _MAX_TOLD_BYTES if size is None or size < 0 else min(size, _MAX_TOLD_BYTES)
        )


@contextmanager
def _zip(path: Path) -> Iterator[tuple[BinaryIO, zipfile.ZipFile]]:
    with _InParts(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        yield file, archive


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    _, name, extra = _LOCAL_HEADER.unpack(_piece(file, info.header_offset, _LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def _open_safetensors(path: Path) -> Content:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_TOLD_BYTES:
            raise DatasetError(
                f"{path}: says {length:,} bytes of its tensors; expected at most {_MAX_TOLD_BYTES:,}"
            )
        text = file.read(length)
    try:
        # This checks the header: no overlaps, no gaps, nothing beyond the file's end.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as cause:
        raise DatasetError(
            f"{path}: not a safetensors file, or a damaged one ({_first_line(cause)})"
        ) from cause
    header = json.loads(text)
    content: dict[str, Content] = {}
    room = _Room(path)
    for name, value in (header.pop("__metadata__", None) or {}).items():
        content[name] = np.array(value)
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise DatasetError(
                f"{path}: {shown(name)} is of type {entry['dtype']}; expected {', '.join(_SAFETENSORS_DTYPES)}"
            )
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        content[name] = _opened(
            InPlaceArray(path, dtype, shape, strides, 8 + length + entry["data_offsets"][0]), room
        )
    return content


_SAFETENSORS_DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where Python's default text of an object says it lies in memory; some messages of numpy's quote such texts."""


def _first_line(cause: Exception) -> str:
    line = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return shown(_ADDRESS.sub("", line))
