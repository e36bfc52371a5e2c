"""The interface of a layout, and what it is given to write.

Images are PNG files in folders that trainers read in sorted order. A layout decides where each
image goes, and writes the companion files: whatever a trainer reads beside or instead of them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import MAX_SIDE
from diver_trt.distilled.normalisation import Normalisation
from diver_trt.errors import OutputError, UsageError, shown_value
from diver_trt.files import reported, writing

INDEX_FOLDER = "[0-9]{5,}"
"""Folders named by the class's index in the dataset, at least five digits."""

SOFT_LABELS = "soft_labels.npy"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Written:
    """The finished PNG files of a dataset, class by class.

    Attributes:
        root: The output folder.
        files: Path of each image within it.
        indices: The class of each image in the dataset's order.
        classes: The manifest's entry of each class that occurs.
        soft_labels: Returns the logits of an image by its position here, or None without any.
        size: Side of an image in pixels.
    """

    root: Path
    files: Sequence[str]
    indices: Sequence[int]
    classes: Sequence[Mapping[str, Any]]
    soft_labels: Callable[[int], Array | None] | None
    size: int

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """The soft labels of all images, [n, classes] float32, or None without any."""
        rows = list(self.soft_label_rows())
        return np.stack(rows) if rows else None

    def soft_label_rows(self) -> Iterator[NDArray[np.float32]]:
        """Yield the soft label of each image, [classes] float32, if there are any."""
        if self.soft_labels is not None:
            for position in range(len(self.files)):
                # Contiguous, because rows are written as bytes.
                yield np.ascontiguousarray(self.soft_labels(position), np.float32)

    @contextmanager
    def companion(self, name: str) -> Iterator[BinaryIO]:
        """Open a companion file for writing; it appears under its name when the block succeeds.

        Raises:
            OutputError: If it cannot be written.
        """
        path = self.root / name
        with reported(path):
            path.parent.mkdir(exist_ok=True)  # `train` does not exist if no image was recovered
            with writing(path) as file:
                yield file


@dataclass(frozen=True, slots=True)
class Numbered:
    """Companion files whose number follows from the number of images, such as `train-000000.tar`.

    Attributes:
        stem: Name of each file before its number of six digits.
        suffix: Name of each file after its number.
        images: Maximum number of images in a file.
    """

    stem: str
    suffix: str
    images: int

    def name(self, number: int) -> str:
        """Return the name of a file, numbered from 0."""
        return f"{self.stem}{number:06d}{self.suffix}"

    def names(self, images: int) -> tuple[str, ...]:
        """Return the names of the files that hold so many images."""
        return tuple(self.name(number) for number in range(self._count(images)))

    def has(self, name: str, images: int) -> bool:
        """Return whether a name is that of one of the files that hold so many images."""
        # Not by `names`: a damaged manifest may claim any number of images.
        match = re.fullmatch(f"{self.stem}([0-9]{{6,18}}){re.escape(self.suffix)}", name)
        return (
            match is not None
            and int(match[1]) < self._count(images)
            and name == self.name(int(match[1]))
        )

    def _count(self, images: int) -> int:
        return -(-images // self.images)


def by_index(index: int, number: int, wnid: str | None) -> str:  # noqa: ARG001
    """Return the path of an image in a folder named by its class's index."""
    # Padded, so that a trainer that sorts folders by name gets the classes in index order.
    return f"{index:05d}/{number:05d}.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay out a recovered dataset.

    Attributes:
        name: The name that `--layout` takes.
        help: What reads it, for people.
        write: Writes the companion files and returns their names.
        image_path: Returns where an image goes within the output folder, from its class's index in
            the dataset, its number within the folder, and its wnid if the model has any. Raises
            OutputError if the folder's name cannot be formed.
        folder: Regular expression of a folder of images within the output folder.
        shares_folders: Whether classes of one label share a folder, and so are numbered together.
        companions: The files that `write` always writes.
        numbered: The files that `write` writes for each so many images, or None without any.
        soft_labels: The file that holds soft labels, if there are any: one of the companions, or a
            file of its own. None if the layout drops them.
        scratch: Files that exist only while `write` runs.
        normalisation: Returns the statistics that written tensors are normalised with, from the
            name of the source's statistics and the side in pixels; None without tensors.
        requires: Packages that `write` imports, checked before any work.
    """

    name: str
    help: str
    write: Callable[[Written, Normalisation | None], list[str]]
    image_path: Callable[[int, int, str | None], str] = by_index
    folder: str = INDEX_FOLDER
    shares_folders: bool = False
    companions: tuple[str, ...] = ()
    numbered: Numbered | None = None
    soft_labels: str | None = SOFT_LABELS
    scratch: tuple[str, ...] = ()
    normalisation: Callable[[str | None, int], Normalisation] | None = None
    requires: tuple[str, ...] = ()

    def require(self) -> None:
        """Check that the layout can be written here, before any work is done.

        Raises:
            OutputError: If a package that it needs is not installed.
        """
        # Looked for and not imported: torch takes seconds to load.
        for package in self.requires:
            if importlib.util.find_spec(package) is None:
                raise OutputError(
                    f"--layout {self.name} needs {package}, which is not installed; "
                    "choose --layout npz"
                )

    def of_shard(self) -> Layout:
        """Return the layout of a shard: its companions need all shards, so `merge` writes them."""
        return replace(
            self, write=write_soft_labels, companions=(), numbered=None, soft_labels=SOFT_LABELS
        )

    def companions_of(self, images: int) -> tuple[str, ...]:
        """Return the files that `write` writes for so many images, optional soft labels apart."""
        return (*self.companions, *(self.numbered.names(images) if self.numbered else ()))

    def has_companion(self, name: str, images: int) -> bool:
        """Return whether `write` may write a file of this name for up to so many images."""
        if name in (*self.companions, self.soft_labels):
            return True
        return self.numbered is not None and self.numbered.has(name, images)

    def normalisation_for(self, source: str | None, size: int) -> Normalisation | None:
        """Return the statistics for images of a size in pixels, or None without tensors."""
        return self.normalisation(source, size) if self.normalisation else None


def require_side(size: object) -> None:
    """Require a side of written images in pixels, or None.

    Raises:
        UsageError: If it is neither None nor a whole number from 1 to `MAX_SIDE`.
    """
    # `type`, because True is an int and would pass as 1.
    if size is not None and (type(size) is not int or not 1 <= size <= MAX_SIDE):
        raise UsageError(f"size is {shown_value(size)}; expected a whole number, 1 to {MAX_SIDE}")


def class_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a class in a manifest, else its wnid, else its number in the model."""
    if own_name := entry.get("own_name"):
        return str(own_name)
    # ImageNet's names are lists of synonyms: "tench, Tinca tinca".
    return str(entry["name"].split(",")[0] if entry["name"] else entry["wnid"] or entry["label"])


def write_soft_labels(written: Written, _: Normalisation | None = None) -> list[str]:
    """Write `soft_labels.npy`, [n, classes] float32, if there are any, and return its name."""
    # Row by row: those of a thousand classes take more memory than images of 32 pixels.
    rows = written.soft_label_rows()
    first = next(rows, None)
    if first is None:
        return []
    with written.companion(SOFT_LABELS) as file:
        write_header(file, (len(written.files), len(first)))
        for row in chain([first], rows):
            file.write(row.data)
    return [SOFT_LABELS]


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a `.npy` file of float32; the caller writes the values as bytes."""
    # numpy.save writes with ndarray.tofile, which reports a full disk without its errno:
    # https://github.com/numpy/numpy/blob/main/numpy/_core/src/multiarray/convert.c
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
