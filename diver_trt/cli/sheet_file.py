"""The file of `inspect --contact-sheet`, which replaces only one that `inspect` wrote itself."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diver_trt.contained_file import start_of
from diver_trt.errors import OutputError, UsageError
from diver_trt.files import replacing, reported, resolved

_MARK = ("Software", "diver-trt inspect")
"""The PNG text of a contact sheet; the one in a recovered dataset has none."""


def require_place(sheet: Path, dataset: Path) -> None:
    """Refuse to write a contact sheet over anything but an earlier one, or among images.

    Raises:
        UsageError: If its name does not end in .png.
        OutputError: If it lies in one of the dataset's folders, or another file has its name.
    """
    if sheet.suffix.lower() != ".png":
        raise UsageError(
            f"--contact-sheet {sheet}: is written as PNG; expected a name that ends in .png"
        )
    # In a folder of images, the next run would read it as one of them.
    if dataset.resolve() in resolved(sheet).parent.parents:
        raise OutputError(
            f"--contact-sheet {sheet}: lies in a folder within the dataset, as its images do; "
            "choose another place"
        )
    # lexists and not exists, because a dangling symlink occupies the name.
    if os.path.lexists(sheet) and not _is_own(sheet):
        raise OutputError(
            f"--contact-sheet {sheet}: already exists and is not a contact sheet of diver-trt "
            "inspect; choose another name, or remove it"
        )


def save_sheet(path: Path, sheet: Image.Image) -> None:
    """Write a contact sheet with the mark by which `inspect` recognises it.

    Raises:
        OutputError: If it cannot be written.
    """
    mark = PngInfo()
    mark.add_text(*_MARK)
    with reported(path), replacing(path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=mark)


def _is_own(path: Path) -> bool:
    start = start_of(path)
    # Texts lie before the pixels: https://www.w3.org/TR/png-3/#11tEXt
    mark = f"tEXt{_MARK[0]}\0{_MARK[1]}".encode()
    return start.startswith(b"\x89PNG") and mark in start
