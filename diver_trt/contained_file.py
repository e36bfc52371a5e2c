"""Opening files in an untrusted folder, such as a bundle, without leaving the folder.

Such a file must be a regular file inside its folder. A symlink may lead to another place in the
folder, but not out of it. A FIFO or a device is refused before it is opened, since opening or
reading it may never return.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from diver_trt.errors import DiverError, OutputError, printable

_FLAGS = (
    os.O_RDONLY
    # Windows lacks the first three, and elsewhere there is no O_BINARY, which keeps line ends.
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO that replaces the file after the check
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_contained(
    path: Path, folder: Path, error: type[DiverError], whole: str = "its folder"
) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: The file.
        folder: The folder that must contain it; the folder itself may be a symlink.
        error: The class that is raised for a file of another kind or place.
        whole: The folder's name in messages: `"the bundle"`.

    Raises:
        error: If it is a symlink that leads out of the folder, or not a regular file.
        OSError: If it is missing or cannot be read, or is a symlink to itself.
    """
    real = resolved_inside(path, folder, error, whole)
    # Checked twice: before the open, since opening a device can have effects of its own, and after
    # it on the descriptor, since the path may name another file by then.
    _require_regular(os.stat(real, follow_symlinks=False).st_mode, path, error)  # noqa: PTH116
    file = os.fdopen(os.open(real, _FLAGS), "rb")
    try:
        _require_regular(os.fstat(file.fileno()).st_mode, path, error)
    except BaseException:
        file.close()
        raise
    return file


def resolved_inside(
    path: Path, folder: Path, error: type[DiverError], whole: str = "its folder"
) -> str:
    """Return the real path of a file inside a folder.

    Raises:
        error: If a symlink in the path leads out of the folder.
        OSError: If it is missing, or a symlink to itself.
    """
    # Not Path.resolve, which raises RuntimeError for a loop before Python 3.13:
    # https://docs.python.org/3/library/pathlib.html#pathlib.Path.resolve
    real = os.path.realpath(path, strict=True)
    # The folder is also resolved, since it may itself be reached through a symlink.
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise error(
            f"{printable(str(path))}: is a link out of {whole}; copy what it points to into its "
            "place"
        )
    return real


def _require_regular(mode: int, path: Path, error: type[DiverError]) -> None:
    if not stat.S_ISREG(mode):
        raise error(f"{printable(str(path))}: is {file_kind(mode)}, expected a regular file")


def file_kind(mode: int) -> str:
    """Return what kind of file a mode from `os.stat` stands for, in words: `"a FIFO"`."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFLNK: "a symlink",
    }
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def start_of(path: Path) -> bytes:
    """Return the first 1,024 bytes of a regular file, or nothing of a symlink or anything else."""
    try:
        with open_contained(path, path.parent, OutputError) as file:
            start = file.read(1024)
    except (OSError, OutputError):
        return b""
    # A symlink inside the folder was followed; callers ask for the file of this name itself.
    return b"" if path.is_symlink() else start
