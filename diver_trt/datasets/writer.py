"""Writing a recovered dataset: images, a journal of them, and at the end the manifest and a contact sheet.

Every file appears under its name only when it is whole. The journal has a line for each image on disk; the manifest is made from it, so
that nothing is kept in memory, and takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from diver_trt.errors import OutputError
from diver_trt.pixels import Pixels

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"
JOURNAL = "journal.jsonl"
MANIFEST_SCHEMA = 2


class DatasetWriter:
    """An output folder.

    Args:
        root: The folder, which must not exist or be empty; it is made at once.

    Raises:
        OutputError: It holds something, or cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        require_empty(root)
        with _reported(root, "made"):
            root.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, image: Pixels) -> Path:
        """Write one image, [H, W, 3] uint8, as a PNG file and return its path.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.root / name
        self._write_image(path, Image.fromarray(image))
        return path

    def record(self, entry: dict[str, Any]) -> None:
        """Append an image that is on disk to the journal.

        Raises:
            OutputError: It cannot be written.
        """
        with _reported(self.root / JOURNAL), (self.root / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """Return what the journal holds, line by line."""
        with (self.root / JOURNAL).open(encoding="utf-8") as journal:
            for line in journal:
                yield json.loads(line)

    def finish(self, manifest: dict[str, Any], contact_sheet: Image.Image) -> None:
        """Write the contact sheet and, last of all, the manifest with every image in the journal.

        Raises:
            OutputError: One of them cannot be written.
        """
        self._write_image(self.root / CONTACT_SHEET, contact_sheet)
        path = self.root / MANIFEST
        head = json.dumps({"schema": MANIFEST_SCHEMA, **manifest}, indent=1).removesuffix("\n}")
        with _reported(path), _temporary(path).open("w", encoding="utf-8") as file:
            file.write(f'{head},\n "samples": [')
            for number, entry in enumerate(self.records()):
                file.write(f"{',' if number else ''}\n  {json.dumps(entry)}")
            file.write("\n ]\n}\n")
        with _reported(path):
            _temporary(path).replace(path)
            (self.root / JOURNAL).unlink()

    def _write_image(self, path: Path, image: Image.Image) -> None:
        with _reported(path):
            path.parent.mkdir(exist_ok=True, parents=True)
            image.save(_temporary(path), format="PNG")
            _temporary(path).replace(path)


def require_empty(root: Path) -> None:
    """Refuse a path where something is already.

    Raises:
        OutputError: A file is there, or a folder that is not empty or cannot be listed.
    """
    try:
        taken = root.exists() and (not root.is_dir() or next(root.iterdir(), None) is not None)
    except OSError as cause:
        raise OutputError(f"{root}: cannot be listed ({cause.strerror})") from cause
    if taken:
        raise OutputError(f"{root}: already holds something; choose a new or empty folder for the recovered images")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _reported(path: Path, done: str = "written") -> Iterator[None]:
    """Turn a failure to write a file into one line, and leave no half of it."""
    try:
        yield
    except OSError as cause:
        with suppress(OSError):
            _temporary(path).unlink()
        raise OutputError(f"{path}: cannot be {done} ({cause.strerror or cause})") from cause
