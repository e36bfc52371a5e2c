"""Files that appear under their name only when they are whole, and, where it matters, only when a power failure would not take them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diver_trt.errors import DiverError, OutputError


def temporary_of(path: Path) -> Path:
    """Return where a file is written until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block a new file to write, and the file its name at the end; of a block that fails nothing is left.

    What lay under the temporary name is deleted first, never written into: it may be a link.
    """
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)
    try:
        temporary.open("xb").close()
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def writing(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Do the same with an open file.

    Args:
        path: Its name at the end.
        lasting: Whether the file and its name are on the disk, and not only on their way there, when the block has ended.
    """
    with replacing(path) as temporary, temporary.open("r+b") as file:
        yield file
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    if lasting:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Let what is in a file outlast a power failure.

    Raises:
        OSError: It cannot be written to the disk.
    """
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a power failure, where the system can be asked for that.

    Raises:
        OSError: They cannot be written to the disk.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives
            raise
    finally:
        os.close(descriptor)


@contextmanager
def reported(path: Path, done: str = "written", error: type[DiverError] = OutputError) -> Iterator[None]:
    """Turn a failure of the system at a file into one line.

    Raises:
        error: The block raised an OSError.
    """
    try:
        yield
    except OSError as cause:
        raise error(f"{path}: cannot be {done} ({cause.strerror or cause})") from cause
