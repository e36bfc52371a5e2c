"""Sheets of distilled images: a hundred thumbnails in one file, row by row from the top left.

A file of its own for each thumbnail would double the files of a dataset, and thumbnails inside the
page would make it as large as all of them. Small images are kept as they are, as PNG; of others a
thumbnail of `MAX_SIDE` pixels is kept, as JPEG.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from diver_trt.contained_file import open_contained
from diver_trt.distilled.image_file import image_size
from diver_trt.errors import DatasetError, OutputError
from diver_trt.files import reported, writing
from diver_trt.pixels import Pixels, square
from diver_trt.recovered.gallery.files import is_current, read_stamp, sheet_name

COLUMNS, PER_SHEET = 10, 100
MAX_SIDE = 128
MAX_LOSSLESS_SIDE = 64
"""Up to this side an image is shown pixel by pixel, so its pixels have to be exact."""
MISSING = 128
"""Level of grey in the place of an image that cannot be read."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The thumbnails of consecutive samples.

    Attributes:
        name: The file in the output folder, or None if they have no thumbnails.
        count: How many samples.
    """

    name: str | None
    count: int


def suffix_of(side: int) -> str:
    """Return the suffix of the sheets of thumbnails of a side."""
    return "png" if side <= MAX_LOSSLESS_SIDE else "jpg"


def write_sheets(root: Path, images: Iterable[Pixels | None], side: int) -> Iterator[Sheet]:
    """Write the sheets of a dataset, and yield each when it is on disk.

    Args:
        root: The output folder.
        images: The distilled images in the dataset's order, [H, W, 3] uint8; None in the place of
            one that cannot be read.
        side: Side of a thumbnail in pixels.

    Raises:
        OutputError: If a sheet cannot be written.
    """
    images, number = iter(images), 0
    # A sheet at a time, so that a hundred images are in memory and not the whole dataset.
    while some := list(islice(images, PER_SHEET)):
        name = sheet_name(number, suffix_of(side))
        with reported(root / name), writing(root / name) as file:
            if suffix_of(side) == "png":
                _drawn(some, side).save(file, format="PNG")
            else:
                # Without subsampling, since the strong colours of distilled images are in their
                # finest details.
                _drawn(some, side).save(file, format="JPEG", quality=88, subsampling=0)
        yield Sheet(name, len(some))
        number += 1


def _drawn(images: Sequence[Pixels | None], side: int) -> Image.Image:
    # images [H, W, 3] uint8 => sheet [rows * side, COLUMNS * side, 3] uint8
    rows = -(-len(images) // COLUMNS)
    sheet = np.full((rows * side, COLUMNS * side, 3), MISSING, np.uint8)
    for number, image in enumerate(images):
        if image is not None:
            row, column = divmod(number, COLUMNS)
            sheet[row * side :, column * side :][:side, :side] = square(image, side)
    return Image.fromarray(sheet)


@dataclass(frozen=True, slots=True)
class _FolderSheets:
    """The sheets in the gallery of a recovered folder.

    Attributes:
        root: The folder.
        names: Their names there.
        side: Side of a thumbnail in pixels.
    """

    root: Path
    names: Sequence[str]
    side: int


def sheets_of_folder(root: Path, samples: int) -> _FolderSheets | None:
    """Return the sheets of a folder, or None if it has no complete gallery of its manifest.

    Args:
        root: The folder. It may come from another machine, so that its sheets may be anything.
        samples: How many samples it has.
    """
    try:
        stamp = read_stamp(root)
        if stamp is None or stamp.sheets != -(-samples // PER_SHEET) or not is_current(root):
            return None
        sizes = []
        for name in stamp.names:
            # Refuses a symlink out of the folder, and anything but a regular file.
            open_contained(root / name, root, DatasetError).close()
            sizes.append(image_size(root / name))
    except (OSError, DatasetError):
        return None
    side = sizes[0][0] // COLUMNS if sizes else 0
    # The page finds a thumbnail by its place, so a sheet of another size would show wrong ones.
    expected = [(COLUMNS * side, -(-count // COLUMNS) * side) for count in _counts(samples)]
    fits = sizes == expected and 0 < side <= MAX_SIDE and stamp.suffix == suffix_of(side)
    return _FolderSheets(root, stamp.names, side) if fits else None


def copy_sheets(root: Path, folders: Sequence[tuple[_FolderSheets | None, int]]) -> Iterator[Sheet]:
    """Copy the sheets of all folders that a dataset was made of, yielding each when it is on disk.

    Args:
        root: The output folder.
        folders: The sheets of each folder, in order, and the number of its samples.

    Raises:
        OutputError: If a sheet cannot be copied.
    """
    number = 0
    for sheets, samples in folders:
        if sheets is None:
            yield Sheet(None, samples)
            continue
        for name, count in zip(sheets.names, _counts(samples), strict=True):
            own = sheet_name(number, suffix_of(sheets.side))
            with (
                reported(root / own),
                open_contained(sheets.root / name, sheets.root, OutputError) as source,
                writing(root / own) as target,
            ):
                shutil.copyfileobj(source, target)
            yield Sheet(own, count)
            number += 1


def _counts(samples: int) -> list[int]:
    """Return how many thumbnails each sheet of a run has."""
    return [min(PER_SHEET, samples - first) for first in range(0, samples, PER_SHEET)]
