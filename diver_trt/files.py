"""Files: hashing them, and writing them so that no name ever denotes a half-written file."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from diver_trt.errors import DiverError, OutputError
from diver_trt.structs import Check, Sha256, Size

MAX_NAME_BYTES = 255
"""Linux' limit on the name of a file (NAME_MAX)."""


def _is_plain(name: str) -> bool:
    return (
        0 < len(name.encode()) <= MAX_NAME_BYTES
        # A backslash separates folders on Windows.
        and not {"/", "\\"} & set(name)
        and name not in (".", "..")
    )


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a bundle: its plain name, its size in bytes and its SHA-256 in hex."""

    name: Annotated[str, Check(_is_plain, "a plain file name inside the bundle")]
    size_bytes: Size
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file on disk."""
        return cls(path.name, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return stream_sha256(file)


def stream_sha256(file: BinaryIO) -> str:
    """Return the SHA-256 in hex of an open file, from its current position to its end."""
    # file_digest is new in Python 3.11: https://docs.python.org/3/library/hashlib.html#file-hashing
    if sys.version_info >= (3, 11):
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def resolved(path: Path, error: type[DiverError] = OutputError) -> Path:
    """Return a path without symlinks and `..`; it need not exist.

    Raises:
        error: If a symlink in the path leads back to itself.
    """
    looped = error(
        f"{path}: leads through a symlink to itself, expected a file or folder. Delete the symlink."
    )
    # Path.resolve raises a RuntimeError for a loop up to Python 3.12, and nothing from 3.13 on:
    # https://docs.python.org/3/library/pathlib.html#pathlib.Path.resolve
    try:
        path.stat()
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise looped from cause
    try:
        return path.resolve()
    except RuntimeError as cause:
        raise looped from cause


def is_inside(name: str) -> bool:
    """Return whether a name is printable and a relative path without `..`."""
    path = Path(name)
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and not path.anchor  # a Windows drive (`C:x`) or root (`/x`) is not absolute on its own
        and ".." not in path.parts
    )


def files_in(root: Path) -> list[str]:
    """Return the path within a folder of every file and every symlink, sorted."""
    found = []
    for folder, folders, files in os.walk(root):
        # os.walk lists symlinks to folders as folders, and does not enter them.
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in (*files, *links)]
    return sorted(found)


def temporary_of(path: Path) -> Path:
    """Return the path under which a file is written until it is complete."""
    # In the same folder: a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary file and rename it to `path` on success; delete it on failure."""
    temporary = temporary_of(path)
    # An earlier file of that name is deleted, never written into: it may be a symlink.
    temporary.unlink(missing_ok=True)
    try:
        # "x" fails if the name is taken again by now, so nothing is written through a symlink.
        temporary.open("xb").close()
        yield temporary
        temporary.replace(path)
    # BaseException includes KeyboardInterrupt: an interrupted run leaves no temporary files.
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def writing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Do the same as `replacing`, with an open file.

    Args:
        path: The file's final path.
        durable: Whether to flush the file and its name to the disk (fsync) at the end of the block.
    """
    with replacing(path) as temporary, temporary.open("r+b") as file:
        yield file
        if durable:
            # Before the rename: a power loss could keep the name and lose what the file holds.
            file.flush()
            os.fsync(file.fileno())
    # The rename is an entry of the folder, which has to be flushed too: fsync(2), NOTES.
    if durable:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file to the disk (fsync).

    Raises:
        OSError: If it cannot be written to the disk.
    """
    # For writing, which Windows requires of a file that is flushed:
    # https://learn.microsoft.com/en-us/windows/win32/api/fileapi/nf-fileapi-flushfilebuffers
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a directory to the disk (fsync), where the platform supports it.

    Raises:
        OSError: If it cannot be written to the disk.
    """
    # Windows cannot open a directory for flushing.
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
def reported(
    path: Path, done: str = "written", error: type[DiverError] = OutputError
) -> Iterator[None]:
    """Turn an OSError into one line that names the file.

    Raises:
        error: If the block raises an OSError.
    """
    try:
        yield
    except OSError as cause:
        raise error(f"{path}: cannot be {done} ({cause.strerror or cause})") from cause
