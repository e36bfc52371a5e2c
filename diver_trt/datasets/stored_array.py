"""Arrays in `.pt`, `.npz` and `.safetensors` files, read row by row and without running anything that is in the file.

A distilled ImageNet-1K is gigabytes of float32. So an array is opened as its place in the file, and its rows are read when they are asked
for: memory does not grow with the number of images. No file may make more memory necessary than it has bytes, or than `MAX_LOADED_BYTES`.

PyTorch is asked for the structure of a `.pt` file only (`weights_only=True`, tensors on the meta device); the values are read here.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from diver_trt.errors import DatasetError, shown

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")
MAX_LOADED_BYTES = 1 << 30
"""Largest array that is held in memory as a whole, where a file does not allow reading it by rows."""

_MAX_NODES, _MAX_DEPTH = 100_000, 8
_TORCH_DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}
_ALIGNMENT = re.compile(rb"[1-9]\d{0,5}")
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that lies uncompressed in a file; `array[i]` reads row `i`, `array[i:j]` a range of rows, `array.load()` everything.

    Attributes:
        path: The file.
        dtype: Type of a value.
        shape: Shape of the array, rows first.
        strides: Distance in the file, in values, between neighbours along each axis.
        offset: Where the first value lies, in bytes.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

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
            raise DatasetError(f"{self.path}: would need {self.nbytes:,} bytes of memory; expected at most {MAX_LOADED_BYTES:,}")
        return self._read(0, self.shape)

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        if 0 in shape:
            return np.empty(shape, self.dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, self.strides, strict=True))
        size = self.dtype.itemsize
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + (first * self.strides[0] * size if first else 0))
                values = np.frombuffer(file.read(span * size), self.dtype)
        except (OSError, ValueError) as cause:
            raise DatasetError(f"{self.path}: cannot be read any more ({cause})") from cause
        if len(values) != span:
            raise DatasetError(f"{self.path}: ends too early; the file is damaged or was cut short")
        array: NDArray[Any] = as_strided(values, shape, tuple(stride * size for stride in self.strides)).copy()
        return array


Array: TypeAlias = StoredArray | NDArray[Any]
"""Rows on disk or in memory: both have `shape`, `dtype`, `len()`, `array[i]` and `array[i:j]`."""

Content: TypeAlias = Array | Sequence[Any] | Mapping[Any, Any] | None
"""What a file holds: an array, or a list or dictionary of such contents; what else there is reads as None."""


def open_stored(path: Path) -> Content:
    """Open a file of arrays.

    Args:
        path: A `.pt` or `.pth` file (needs torch), or `.npz` or `.safetensors`, which become dictionaries.

    Raises:
        DatasetError: The file is none of these, is damaged, holds other than plain arrays, or claims more than it has.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DatasetError(
            f"{path}: is no file of tensors; expected {', '.join(SUFFIXES)}, or a folder with one folder of images per class"
        )
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


def _open_torch(path: Path) -> Content:
    try:
        import torch  # noqa: F401
    except ImportError as cause:
        raise DatasetError(
            f"{path}: reading .pt files needs torch, which is not installed; on a machine that has it, run "
            f"`diver-trt convert {path.name} {path.stem}.npz`, and use that file here"
        ) from cause
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: is empty")
    records = _records(path)
    if records is None and path.stat().st_size > MAX_LOADED_BYTES:
        raise DatasetError(
            f"{path}: was saved in torch's old format, which cannot be read in parts; load it and save it again with torch.save"
        )
    return _torch_content(path, _torch_load(path, "cpu" if records is None else "meta"), records or {})


def _torch_load(path: Path, device: str) -> Any:
    import torch

    with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed_globals()):
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except pickle.UnpicklingError as cause:
            raise DatasetError(
                f"{path}: holds more than tensors ({_refused(cause)}), and nothing else is ever loaded; save the tensors alone"
            ) from cause
        except Exception as cause:  # torch's readers raise RuntimeError, EOFError, ValueError, KeyError, struct.error … on damaged files
            raise DatasetError(f"{path}: not a file of torch.save, or a damaged one ({_first_line(cause)})") from cause


def _allowed_globals() -> list[Any]:
    """Return what `res_*.pt` of DC, DSA, DM and CAFE need beyond tensors: their accuracies are numpy floats (of numpy 1 or 2)."""
    scalar = np.array(0.0).dtype.type(0).__reduce__()[0]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, type(np.dtype(np.float64))]


def _refused(cause: Exception) -> str:
    """Return which global torch refused, from its long advice on how to load it all the same."""
    words = str(cause).replace("`", " ").split()
    for before, name in pairwise(words):
        if before == "GLOBAL":
            return shown(name)
    return _first_line(cause)


def _torch_content(path: Path, value: Any, records: Mapping[int, int], budget: Iterator[int] | None = None, depth: int = 0) -> Content:
    """Return what is in a structure; one that is deeper or larger than any method's is refused before it is walked to its end."""
    import torch

    budget = iter(range(_MAX_NODES)) if budget is None else budget
    if depth > _MAX_DEPTH or next(budget, None) is None:
        raise DatasetError(f"{path}: lists in lists without end; save the tensors alone")
    if isinstance(value, torch.Tensor):
        return _torch_array(path, value, records)
    if isinstance(value, Mapping):
        return {key: _torch_content(path, item, records, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_torch_content(path, item, records, budget, depth + 1) for item in value]
    return None


def _torch_array(path: Path, tensor: torch.Tensor, records: Mapping[int, int]) -> Array:
    import torch

    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_quantized or str(tensor.dtype).removeprefix("torch.") not in _TORCH_DTYPES:
        raise DatasetError(
            f"{path}: holds a tensor of {str(tensor.dtype).removeprefix('torch.')}, {tensor.layout}; save it as plain float32"
        )
    shape, strides, size = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    if prod(shape) * size > max(path.stat().st_size, 1 << 26):
        raise DatasetError(f"{path}: a tensor of shape {list(shape)} is larger than the file; save it with .contiguous()")
    if tensor.device.type != "meta":
        return np.asarray(tensor.numpy())
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise DatasetError(f"{path}: torch {torch.__version__} does not tell where tensors lie in a file; install torch 2.9 or newer")
    span = 0 if 0 in shape else 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if (tensor.storage_offset() + span) * size > records.get(offset, 0):
        raise DatasetError(f"{path}: a tensor of shape {list(shape)} lies outside its own storage; the file is damaged")
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return _by_rows(StoredArray(path, dtype, shape, strides, offset + tensor.storage_offset() * size))


def _by_rows(array: StoredArray) -> Array:
    """Return an array that can be read by rows as it is, and one whose rows lie scattered in memory."""
    lengths, strides = array.shape[1:], array.strides[1:]
    span = 1 + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))
    dense = bool(array.shape) and 0 not in array.shape and 0 not in strides and span == prod(lengths)
    return array if dense else array.load()


def _open_npz(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise DatasetError(f"{path}: holds an array twice under one name; save it again with numpy.savez")
            return {name: _npz_member(path, archive, info) for name, info in members.items()}
    except DatasetError:
        raise
    except (
        Exception
    ) as cause:  # zipfile and numpy's reader of headers raise BadZipFile, ValueError, TokenError, SyntaxError … on damaged files
        raise DatasetError(f"{path}: not an .npz file, or a damaged one ({_first_line(cause)})") from cause


def _npz_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(member)
        if dtype.hasobject:
            raise DatasetError(f"{path}: {shown(info.filename)} holds Python objects, which are never loaded; save plain arrays")
        if prod(shape) * dtype.itemsize != info.file_size - member.tell():
            raise DatasetError(
                f"{path}: {shown(info.filename)} says shape {list(shape)}, but has {info.file_size:,} bytes; the file is damaged"
            )
        strides = [1] * len(shape)
        axes = range(1, len(shape)) if fortran else range(len(shape) - 2, -1, -1)
        for axis in axes:
            strides[axis] = strides[axis - 1] * shape[axis - 1] if fortran else strides[axis + 1] * shape[axis + 1]
        if info.compress_type == zipfile.ZIP_STORED:
            return _by_rows(StoredArray(path, dtype, shape, tuple(strides), _data_offset(path, info) + member.tell()))
        if info.file_size > MAX_LOADED_BYTES:
            raise DatasetError(
                f"{path}: {shown(info.filename)} unpacks to {info.file_size:,} bytes; a compressed array is held in memory and may have at "
                f"most {MAX_LOADED_BYTES:,}: save it with numpy.savez, which does not compress"
            )
        return np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        _, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def _open_safetensors(path: Path) -> Content:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks the header: no overlaps, no gaps, nothing beyond the file's end
            pass
    except (SafetensorError, OSError) as cause:
        raise DatasetError(f"{path}: not a safetensors file, or a damaged one ({_first_line(cause)})") from cause
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    content: dict[str, Content] = {}
    for name, value in (header.pop("__metadata__", None) or {}).items():
        content[name] = np.array(value)
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise DatasetError(f"{path}: {shown(name)} is of type {entry['dtype']}; expected {', '.join(_SAFETENSORS_DTYPES)}")
        dtype, shape = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        content[name] = _by_rows(StoredArray(path, dtype, shape, strides, 8 + length + entry["data_offsets"][0]))
    return content


_SAFETENSORS_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def _records(path: Path) -> dict[int, int] | None:
    """Return where each record of a zip starts and how long it is, in bytes; None if the file is no zip, as torch's old format is none.

    Raises:
        DatasetError: A record is compressed, which torch.save never does: only a zip bomb is.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            records = {_data_offset(path, info): info.file_size for info in members}
            alignments = [archive.read(info) for info in members if info.filename.endswith(".storage_alignment") and info.file_size < 100]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as cause:
        raise DatasetError(f"{path}: a damaged file ({_first_line(cause)})") from cause
    if not all(_ALIGNMENT.fullmatch(alignment) for alignment in alignments):  # torch divides by it, and 0 ends the process
        raise DatasetError(f"{path}: a damaged file (its tensors are said to be aligned to {shown(repr(alignments[0]))} bytes)")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members) or sum(records.values()) > path.stat().st_size:
        raise DatasetError(f"{path}: is compressed, which torch.save never does; load it and save it again with torch.save")
    return records


def _first_line(cause: Exception) -> str:
    return shown(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
