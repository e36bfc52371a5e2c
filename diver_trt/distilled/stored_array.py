"""Arrays in files, read row by row: memory does not grow with the number of images.

A distilled ImageNet-1K is gigabytes of float32, so an array is opened as its place in the file, and
a row is read when it is requested. An array that cannot be read by rows is read whole, on the first
request; all such arrays of one file share `MAX_LOADED_BYTES`. Opening or reading a file never takes
more memory than the file's size or that limit, whichever is larger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from diver_trt.errors import DatasetError

T = TypeVar("T")

# Small files can claim a lot: 3.5 MB of compressed zeros are gigabytes of arrays.
MAX_LOADED_BYTES = 1 << 30
"""Maximum size of what is held in memory of one file, for arrays that cannot be read by rows."""

MAX_VALUE_BYTES = 2048
"""Longest text, or other single value, that is read when a file is opened."""


@dataclass(frozen=True, slots=True)
class StoredArray(ABC):
    """An array in a file: `array[i]` reads a row, `array[i:j]` several, `array.load()` all.

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
            DatasetError: If it is larger than `MAX_LOADED_BYTES`.
        """
        if self.nbytes > MAX_LOADED_BYTES:
            raise DatasetError(
                f"{self.path}: would need {self.nbytes:,} bytes of memory; expected at most "
                f"{MAX_LOADED_BYTES:,}"
            )
        return self._read(0, self.shape)

    @abstractmethod
    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return `shape[0]` rows, starting at row `first`."""


@dataclass(frozen=True, slots=True)
class InPlaceArray(StoredArray):
    """An array whose values lie uncompressed in the file.

    Attributes:
        strides: Distance in the file, in values, between neighbours along each axis; not negative.
        offset: Where the first value lies, in bytes.
        verify: Called before rows are read, and must be cached. It raises a `DatasetError` on a
            checksum mismatch. None where the file has no checksum.
    """

    strides: tuple[int, ...]
    offset: int
    verify: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def end(self) -> int:
        """Where the last value ends in the file, in bytes."""
        return self.offset + span(self.shape, self.strides) * self.dtype.itemsize

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        count, size = span(shape, self.strides), self.dtype.itemsize
        if self.verify:
            self.verify()
        try:
            if not count:
                return np.empty(shape, self.dtype)
            with self.path.open("rb") as file:
                file.seek(self.offset + (first * self.strides[0] * size if first else 0))
                values = np.frombuffer(file.read(count * size), self.dtype)
            # as_strided checks nothing, so a short read would make it read beyond the buffer:
            # https://numpy.org/doc/stable/reference/generated/numpy.lib.stride_tricks.as_strided.html
            if len(values) != count:
                raise cut_short(self.path)
            strides = tuple(stride * size for stride in self.strides)
            array: NDArray[Any] = as_strided(values, shape, strides).copy()
        except (OSError, ValueError, OverflowError) as cause:
            raise DatasetError(f"{self.path}: cannot be read any more ({cause})") from cause
        return array


@dataclass(frozen=True, slots=True)
class LazyArray(StoredArray):
    """An array that is read whole on the first request, and kept in memory from then on.

    Attributes:
        values: Reads it; must be cached.
    """

    values: Callable[[], NDArray[Any]]

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        values = self.values()
        return values[first : first + shape[0]] if shape else values


class Once(Generic[T]):
    """A function without arguments that is called once, and whose result is kept.

    Unlike `functools.cache` it can be pickled, without its result: the processes that a DataLoader
    spawns receive a dataset so.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        # A list, since the result may itself be None.
        self._function, self._result = function, list[T]()

    def __call__(self) -> T:
        """Return the result; what the function raises is not kept."""
        if not self._result:
            self._result.append(self._function())
        return self._result[0]

    def __reduce__(self) -> tuple[type[Once[T]], tuple[Callable[[], T]]]:
        return Once, (self._function,)


class LoadBudget:
    """The memory that the arrays of one file may take together when they are read whole.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._taken = path, 0

    def lazy(self, array: StoredArray, remedy: str, read: Callable[[], NDArray[Any]]) -> LazyArray:
        """Return an array that counts against the budget once it is read.

        Args:
            array: Its path, type and shape.
            remedy: How to save it so that it can be read by rows, for the message.
            read: Reads all of it.
        """
        # Counted on the first read, not here: a file may hold large arrays that are never used.
        values = Once(partial(self._read, array, remedy, read))
        return LazyArray(array.path, array.dtype, array.shape, values)

    def _read(
        self, array: StoredArray, remedy: str, read: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        taken = self._taken + array.nbytes
        if taken > MAX_LOADED_BYTES:
            raise DatasetError(
                f"{self._path}: would need {taken:,} bytes of memory, since it cannot be read "
                f"row by row; expected at most {MAX_LOADED_BYTES:,}: {remedy}"
            )
        self._taken = taken
        return read()


Array: TypeAlias = StoredArray | NDArray[Any]
"""Rows on disk or in memory: both have `shape`, `dtype`, `len()`, `array[i]` and `array[i:j]`."""

Content: TypeAlias = Array | Sequence[Any] | Mapping[Any, Any] | None
"""The content of a file: an array, or a list or dictionary of such contents.

A text in a dictionary is a 0-d array, as in numpy and safetensors. Any other value reads as None.
"""


def is_array(value: object) -> TypeGuard[Array]:
    """Return whether a value of a file is an array."""
    return isinstance(value, (StoredArray, np.ndarray))


def load(array: Array) -> NDArray[Any]:
    """Return a small array as a whole.

    Raises:
        DatasetError: If it is larger than `MAX_LOADED_BYTES`.
    """
    return array.load() if isinstance(array, StoredArray) else array


def readable(array: InPlaceArray, budget: LoadBudget) -> Array:
    """Return an array of a file in the form in which it can be read.

    A single value is read at once. An array whose rows are contiguous is returned as it is; any
    other counts against the budget.

    Raises:
        DatasetError: If the file ends before the array does.
    """
    # Before any row is read, so that a file that was cut short is refused before work starts.
    if array.end > array.path.stat().st_size:
        raise cut_short(array.path)
    if not array.shape:
        return array.load() if array.nbytes <= MAX_VALUE_BYTES else array
    lengths, strides = array.shape[1:], array.strides[1:]
    # In any order of axes, such as channels last, contiguous values span as many as there are.
    if 0 in array.shape or (0 not in strides and span(lengths, strides) == prod(lengths)):
        return array
    return budget.lazy(array, "save contiguous arrays", array.load)


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many values lie between an array's first and last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in values, of a contiguous array in C order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def cut_short(path: Path) -> DatasetError:
    """Return the error for a file that ends before its arrays do."""
    return DatasetError(f"{path}: ends too early; the file is damaged or was cut short")
