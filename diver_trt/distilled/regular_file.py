"""Regular files: the only ones that are opened, since a FIFO or a device can block for ever."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from diver_trt.errors import DatasetError


def open_regular(path: Path, expected: str) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file.
        expected: What it should be, for the message: `"an image file"`.

    Raises:
        DatasetError: If it is a folder, a FIFO, a device or a socket.
        OSError: If it is missing or cannot be opened.
    """
    # Checked before `open`, as opening a FIFO waits for a writer:
    # https://man7.org/linux/man-pages/man7/fifo.7.html
    if not stat.S_ISREG(path.stat().st_mode):
        raise DatasetError(f"{path}: is not a regular file, expected {expected}")
    return path.open("rb")


def require_file_or_folder(path: Path, expected: str, option: str = "") -> None:
    """Refuse an input that is missing, a FIFO, a device or a socket.

    Args:
        path: The input.
        expected: What it should be, for the message.
        option: The option that names it, with a space after it; empty for an argument.

    Raises:
        DatasetError: If it is neither a regular file nor a folder.
    """
    if not path.exists():
        raise DatasetError(f"{option}{path}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise DatasetError(f"{option}{path}: is neither a regular file nor a folder; {expected}")
