"""Writing a recovered dataset: `{index:05d}/{number:05d}.png`, a manifest and a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from diver_trt.errors import OutputError
from diver_trt.pixels import Pixels

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"
MANIFEST_SCHEMA = 1


class DatasetWriter:
    """An output folder; every file appears under its name only when it is whole.

    Args:
        root: The folder, which must not exist or be empty; it is made at once.

    Raises:
        OutputError: It holds something, or cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        require_empty(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"{root}: cannot be made ({cause.strerror})") from cause

    def add(self, key: str, image: Pixels) -> Path:
        """Write one image, [H, W, 3] uint8, as `KEY.png` and return its path.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.root / f"{key}.png"
        self._write_image(path, Image.fromarray(image))
        return path

    def finish(self, manifest: dict[str, Any], contact_sheet: Image.Image) -> None:
        """Write the contact sheet and, last of all, the manifest.

        Raises:
            OutputError: One of them cannot be written.
        """
        self._write_image(self.root / CONTACT_SHEET, contact_sheet)
        text = json.dumps({"schema": MANIFEST_SCHEMA, **manifest}, indent=1) + "\n"
        path = self.root / MANIFEST
        try:
            _temporary(path).write_text(text, encoding="utf-8")
            _temporary(path).replace(path)
        except OSError as cause:
            raise _failed(path, cause) from cause

    def _write_image(self, path: Path, image: Image.Image) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            image.save(_temporary(path), format="PNG")
            _temporary(path).replace(path)
        except OSError as cause:
            raise _failed(path, cause) from cause


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


def _failed(path: Path, cause: OSError) -> OutputError:
    _temporary(path).unlink(missing_ok=True)
    return OutputError(f"{path}: cannot be written ({cause.strerror or cause})")
