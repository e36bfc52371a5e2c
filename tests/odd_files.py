"""Files that are no regular file of their folder; each function says what an error says of it."""

from __future__ import annotations

import os
from pathlib import Path


def link_out(path: Path) -> str:
    """Link to a file beside the folder, with the same content if there was any."""
    real = path.parent.parent / "real"
    if path.exists():
        path.rename(real)
    else:
        real.write_text("{}")
    path.symlink_to("../real")
    return "is a link out of its folder; copy what it points to into its place"


def device(path: Path) -> str:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return "is a link out of its folder"


def fifo(path: Path) -> str:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return "is a FIFO, expected a regular file"


def folder(path: Path) -> str:
    path.unlink(missing_ok=True)
    path.mkdir()
    return "is a folder, expected a regular file"


def loop(path: Path) -> str:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)
    return "Too many levels of symbolic links"
