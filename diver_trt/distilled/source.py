"""The images of a distilled dataset: in files, in rows of an array, or as tiles of either.

A source knows images by their position, and has no notion of classes. It returns one image at a
time, [H, W, 3] uint8, so that memory does not grow with the dataset.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.image_array import channels_last
from diver_trt.distilled.image_file import (
    check_image,
    decoding_bytes,
    image_size,
    quiet,
    read_image,
)
from diver_trt.distilled.normalisation import Normalisation, implausible, pixels_from_values
from diver_trt.distilled.stored_array import Array
from diver_trt.errors import DatasetError
from diver_trt.files import file_sha256, reported
from diver_trt.pixels import Pixels
from diver_trt.threads import ThreadPool

_CHECKED_AT_ONCE = 256
_LARGE_BYTES = 16 * 1024**2
"""Memory for decoding from which an image counts as large: 1,450 x 1,450 pixels of a PNG."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking one image.

    Attributes:
        sha256: Of the file, or of the row as it is stored; empty if there is a problem with a file.
        clipped: Fraction of values that lay outside the range of pixels.
        problem: Why it cannot be read, or None.
        size: Width and height of the image as it is stored, upright; None if there is a problem.
        blank: Whether all its pixels have one colour; False for files, which are not decoded.
    """

    sha256: str
    clipped: float = 0.0
    problem: str | None = None
    size: tuple[int, int] | None = None
    blank: bool = False


class ImageSource(Protocol):
    """Images by position.

    A protocol, since a variant wraps another source rather than inheriting from it (`Tiles`).
    """

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """Return an image's place within the dataset, as the manifest names it."""
        ...

    def read(self, position: int) -> Pixels:
        """Return an image, [H, W, 3] uint8.

        Raises:
            DatasetError: If it cannot be read.
        """
        ...

    def size(self, position: int) -> tuple[int, int]:
        """Return the width and height that an image is read with, without decoding it.

        Raises:
            DatasetError: If it cannot be opened.
        """
        ...

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of an image as it is stored.

        Raises:
            DatasetError: If it cannot be read.
        """
        ...

    def check(self) -> Iterator[Checked]:
        """Check every image in order, so that a bad one is found before any work starts."""
        ...


class ImageFiles:
    """Images in files of their own.

    Args:
        root: The dataset's folder.
        paths: The files.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        # Names and not paths: a `Path` takes five times the memory of its text.
        self._root = root
        self._names = tuple(path.relative_to(root).as_posix() for path in paths)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """Return the file's path within the folder."""
        return self._names[position]

    def read(self, position: int) -> Pixels:
        """Return an image."""
        return read_image(self._path(position))

    def size(self, position: int) -> tuple[int, int]:
        """Return the size in the file's metadata."""
        return image_size(self._path(position))

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of a file."""
        path = self._path(position)
        with reported(path, "read any more", DatasetError):
            return file_sha256(path)

    def check(self) -> Iterator[Checked]:
        """Check every file, several at once."""
        with closing(ThreadPool(min(4, os.cpu_count() or 1), "diver-trt reader")) as pool:
            for first in range(0, len(self), _CHECKED_AT_ONCE):
                # In chunks, so that results come before all files are checked, in the files' order.
                paths = list(map(self._path, range(len(self))[first : first + _CHECKED_AT_ONCE]))
                with quiet():
                    found = pool.map(_check_small_file, paths)
                    checked = [
                        entry or _check_file(path) for entry, path in zip(found, paths, strict=True)
                    ]
                # Outside `quiet`, whose filter is process-wide and must not outlive this chunk.
                yield from checked

    def _path(self, position: int) -> Path:
        return self._root / self._names[position]


def _check_small_file(path: Path) -> Checked | None:
    """Check a file, unless its image is large; return None then."""
    # glibc keeps freed memory in an arena per thread, so all large images go to one thread:
    # https://sourceware.org/glibc/wiki/MallocInternals
    try:
        if decoding_bytes(path) > _LARGE_BYTES:
            return None
    except DatasetError as error:
        return Checked("", problem=str(error))
    return _check_file(path)


def _check_file(path: Path) -> Checked:
    try:
        sha256, size = check_image(path)
    except DatasetError as error:
        return Checked("", problem=str(error))
    return Checked(sha256, size=size)


class StoredImages:
    """Images in the rows of an array.

    Args:
        path: The file, for messages.
        array: [n, c, H, W] or [n, H, W, c] with one or three channels, floats or uint8.
        normalisation: The normalisation of the values.

    Raises:
        DatasetError: If the array does not hold images.
    """

    def __init__(self, path: Path, array: Array, normalisation: Normalisation) -> None:
        self._path, self._array, self._normalisation = path, array, normalisation
        self._channels_last = channels_last(path, array)

    def __len__(self) -> int:
        return len(self._array)

    def name(self, position: int) -> str:
        """Return the file and the row."""
        return f"{self._path.name}[{position}]"

    def read(self, position: int) -> Pixels:
        """Return an image, its values clipped to the range of pixels."""
        return self._pixels(position, self._array[position])[0]

    def size(self, position: int) -> tuple[int, int]:  # noqa: ARG002 (rows are alike)
        """Return the size of every row."""
        height, width = self._array.shape[1:3] if self._channels_last else self._array.shape[2:]
        return width, height

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of a row's bytes."""
        return _row_sha256(self._array[position])

    def check(self) -> Iterator[Checked]:
        """Check every row."""
        size = self.size(0)
        for position in range(len(self)):
            row = self._array[position]
            try:
                pixels, clipped = self._pixels(position, row)
            except DatasetError as error:
                yield Checked(_row_sha256(row), problem=str(error))
            else:
                # One level of tolerance: pixels in 0 to 1 that are read as 0 to 255 have two.
                blank = int(np.ptp(pixels, axis=(0, 1)).max()) <= 1
                yield Checked(_row_sha256(row), clipped, size=size, blank=blank)

    def _pixels(self, position: int, row: NDArray[Any]) -> tuple[Pixels, float]:
        # Before the normalisation is undone, which would overflow float32.
        if problem := implausible(row):
            raise DatasetError(f"{self._path}: image {position} {problem}")
        # row [c, H, W] or [H, W, c] => values [c, H, W] => colour [3, H, W] => pixels [H, W, 3]
        # uint8
        values = row.transpose(2, 0, 1) if self._channels_last else row
        colour = np.repeat(values, 3 // len(values), axis=0)  # grey images become three channels
        return pixels_from_values(self._normalisation.denormalise(colour))


def _row_sha256(row: NDArray[Any]) -> str:
    # In C order, so that the hash does not depend on how the file orders the axes.
    return hashlib.sha256(row.tobytes()).hexdigest()


def find_part(counts: Iterable[int], position: int) -> tuple[int, int]:
    """Return which part of a set has a position, and the position in that part.

    Args:
        counts: Images of each part, which follow one another in the set.
        position: The position in the set.
    """
    for part, count in enumerate(counts):
        if position < count:
            return part, position
        position -= count
    raise IndexError(position)


class Joined:
    """Several sources one after the other.

    Args:
        sources: The parts, with the name of each.
    """

    def __init__(self, sources: Sequence[tuple[str, ImageSource]]) -> None:
        self._parts = tuple(sources)

    def __len__(self) -> int:
        return sum(len(source) for _, source in self._parts)

    def name(self, position: int) -> str:
        """Return the part's name and the image's."""
        part, source, own = self._find(position)
        return f"{part}/{source.name(own)}"

    def read(self, position: int) -> Pixels:
        """Return an image."""
        _, source, own = self._find(position)
        return source.read(own)

    def size(self, position: int) -> tuple[int, int]:
        """Return an image's size."""
        _, source, own = self._find(position)
        return source.size(own)

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of an image as it is stored."""
        _, source, own = self._find(position)
        return source.sha256(own)

    def check(self) -> Iterator[Checked]:
        """Check every image of every part."""
        for _, source in self._parts:
            yield from source.check()

    def _find(self, position: int) -> tuple[str, ImageSource, int]:
        part, position = find_part((len(source) for _, source in self._parts), position)
        return *self._parts[part], position


class Tiles:
    """The tiles of another source's collages, row by row from the top left.

    Args:
        source: The collages.
        factor: Tiles along a side, 2 or more.
    """

    def __init__(self, source: ImageSource, factor: int) -> None:
        self._source, self._factor = source, factor

    def __len__(self) -> int:
        return len(self._source) * self._factor**2

    def name(self, position: int) -> str:
        """Return the collage's name and the tile's number."""
        collage, tile = divmod(position, self._factor**2)
        return f"{self._source.name(collage)} tile {tile}"

    def read(self, position: int) -> Pixels:
        """Return a tile."""
        collage, tile = divmod(position, self._factor**2)
        image = self._source.read(collage)
        width, height = self._tile_size(collage, (image.shape[1], image.shape[0]))
        row, column = divmod(tile, self._factor)
        return image[row * height : (row + 1) * height, column * width : (column + 1) * width]

    def size(self, position: int) -> tuple[int, int]:
        """Return the size of a collage's first tile."""
        collage = position // self._factor**2
        return self._tile_size(collage, self._source.size(collage))

    def _tile_size(self, collage: int, size: tuple[int, int]) -> tuple[int, int]:
        # Rounded up where the factor does not divide a side, as IDC's own decoder does: the last
        # tile is smaller. https://github.com/snu-mllab/Efficient-Dataset-Condensation
        width, height = (-(-side // self._factor) for side in size)
        # After rounding up, a side of few pixels may be used up before its last tiles.
        if (self._factor - 1) * height >= size[1] or (self._factor - 1) * width >= size[0]:
            raise DatasetError(
                f"{self._source.name(collage)}: {size[0]} x {size[1]} pixels is not a collage of "
                f"{self._factor} x {self._factor} images; see --collage"
            )
        return width, height

    def sha256(self, position: int) -> str:
        """Return the SHA-256 of the collage."""
        return self._source.sha256(position // self._factor**2)

    def check(self) -> Iterator[Checked]:
        """Check every collage, and yield its result for each of its tiles."""
        for collage, found in enumerate(self._source.check()):
            checked = self._cuttable(collage, found)
            for _ in range(self._factor**2):
                yield checked

    def _cuttable(self, collage: int, found: Checked) -> Checked:
        """Return the result of checking a collage, which may be too small to be cut."""
        if found.size:
            try:
                self._tile_size(collage, found.size)
            except DatasetError as error:
                return Checked("", problem=str(error))
        return found
