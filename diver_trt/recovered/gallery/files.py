"""The gallery's files: their names, whether they are complete and up to date, and deleting them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from diver_trt.contained_file import open_contained
from diver_trt.errors import OutputError
from diver_trt.files import file_sha256
from diver_trt.html_page import is_page
from diver_trt.manifest import MANIFEST
from diver_trt.recovered.output_names import whole_name

PAGE = "index.html"
COMMAND = "recover"
"""The command in the page's title, by which a page of ours is recognised."""

_VERSION = 3
"""Raised with every change to the page or to its sheets: a page of another version is rewritten."""
_STAMP = re.compile(
    rb'<meta name="diver-trt-gallery" content="'
    rb'([0-9]{1,9}) ([0-9a-f]{64}) ([0-9]{1,5}) (png|jpg)">'
)
# The stamp comes right after the charset, at the top of page.html.
_HEAD_BYTES = 1024
_SHEET = re.compile(r"gallery_([0-9]{5,7})\.(?:png|jpg)")


def sheet_name(number: int, suffix: str) -> str:
    """Return the name of a sheet, by its number from 0."""
    return f"gallery_{number:05d}.{suffix}"


def is_gallery_file(root: Path, name: str, images: int) -> bool:
    """Return whether a file in a folder belongs to its gallery, and is not somebody else's page.

    Args:
        root: The folder.
        name: A file in it.
        images: How many images the whole dataset has, which limits the number of sheets.
    """
    if name == PAGE:
        return not _is_foreign(root)
    # No dataset has more sheets than images: others are somebody else's files.
    match = _SHEET.fullmatch(name)
    return match is not None and int(match[1]) < images


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a page states about itself in its first bytes.

    Attributes:
        manifest: SHA-256 of the manifest that it shows.
        sheets: How many sheets of distilled images lie beside it.
        suffix: Their suffix, `"png"` or `"jpg"`.
    """

    manifest: str
    sheets: int
    suffix: str

    def __str__(self) -> str:
        return f"{_VERSION} {self.manifest} {self.sheets} {self.suffix}"

    @property
    def names(self) -> list[str]:
        """The sheets' names."""
        return [sheet_name(number, self.suffix) for number in range(self.sheets)]


def read_stamp(root: Path) -> Stamp | None:
    """Return the stamp of a folder's page, or None without a page of this version."""
    try:
        with open_contained(root / PAGE, root, OutputError) as file:
            match = _STAMP.search(file.read(_HEAD_BYTES))
    except (OSError, OutputError):
        return None
    if match is None or int(match[1]) != _VERSION:
        return None
    return Stamp(match[2].decode(), int(match[3]), match[4].decode())


def is_current(root: Path) -> bool:
    """Return whether a folder has a complete gallery of its manifest."""
    stamp = read_stamp(root)
    if stamp is None or not (root / MANIFEST).is_file():
        return False
    return stamp.manifest == file_sha256(root / MANIFEST) and all(
        (root / name).is_file() for name in stamp.names
    )


def _is_foreign(root: Path) -> bool:
    """Return whether something that no gallery wrote has the page's name in a folder."""
    return os.path.lexists(root / PAGE) and not is_page(root / PAGE, COMMAND)


def require_place(root: Path) -> None:
    """Refuse, before any work, a folder whose page is somebody else's.

    Raises:
        OutputError: If it is.
    """
    if _is_foreign(root):
        raise OutputError(
            f"{root / PAGE}: is not a page of diver-trt {COMMAND}, and the gallery would replace "
            "it; move it elsewhere, or add --no-gallery"
        )


def delete_stale(root: Path, images: int) -> None:
    """Delete a gallery that shows an earlier state of a dataset, or not all of it.

    Raises:
        OSError: If a file cannot be deleted.
    """
    if is_page(root / PAGE, COMMAND) and not is_current(root):
        delete_gallery(root, images)


def delete_gallery(root: Path, images: int) -> None:
    """Delete the gallery of a dataset of so many images, also one that was not completed.

    Raises:
        OSError: If a file cannot be deleted.
    """
    # The page goes first, so that none remains without its sheets.
    for name in (PAGE, *(path.name for path in root.iterdir())):
        if is_gallery_file(root, whole_name(name), images):
            (root / name).unlink(missing_ok=True)
