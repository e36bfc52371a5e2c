"""One process per folder: a file lock that the system releases when its holder ends."""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diver_trt.contained_file import file_kind
from diver_trt.errors import OutputError

LOCK = ".diver-trt.lock"
"""The lock file. It exists while a process holds the folder, and may stay after a kill."""


@contextmanager
def locked(
    folder: Path,
    name: str = LOCK,
    busy: str = "another diver-trt is writing there; wait for it, or choose another folder",
) -> Iterator[None]:
    """Hold a folder, or a part of it, for the time of the block.

    Where that is impossible (some network drives, folders that cannot be written) a warning is
    raised instead. On Windows nothing is held.

    Args:
        folder: The folder.
        name: The lock file in it, one for each part that is held alone.
        busy: What to do if another process holds it, for the message.

    Raises:
        OutputError: If another process holds it, or if something that is not a regular file has the
            name of the lock.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / name
    _require_file(path)
    try:
        descriptor = _held(path)
    except BlockingIOError as cause:
        raise OutputError(f"{folder}: {busy}") from cause
    except OSError as cause:
        warnings.warn(
            f"{folder}: cannot be locked ({cause.strerror}); let no other diver-trt write there",
            RuntimeWarning,
            # The `with` statement of the caller; contextlib's __enter__ is in between.
            stacklevel=3,
        )
        yield
        return
    try:
        yield
    finally:
        # Deleted while it is still locked: afterwards the name may be another process's lock.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _require_file(path: Path) -> None:
    """Refuse a folder, symlink, FIFO or device in the place of the lock file.

    Raises:
        OutputError: If there is one.
    """
    # Opening it may fail, and a folder that cannot be locked is written without a lock: with such
    # a file in its place two processes could write at once.
    with suppress(OSError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise OutputError(
                f"{path}: is {file_kind(mode)}, expected the lock file of this command. Delete it."
            )


def _held(path: Path) -> int:
    """Open a file and lock it.

    Raises:
        BlockingIOError: If another process holds it.
        OSError: If it cannot be opened or locked.
    """
    import fcntl

    # flock, because the kernel drops it when its holder ends, however it ends; the existence of a
    # file would outlive a kill: https://man7.org/linux/man-pages/man2/flock.2.html
    # Retried, because between the open and the lock its holder may have deleted the file: then the
    # lock is on a file without a name, which no other process will open.
    while True:
        # For writing, since NFS turns an exclusive flock into a write lock (fcntl), which needs it.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return descriptor
        except OSError as cause:
            os.close(descriptor)
            # EACCES is what some network drives return for a lock that is held.
            if cause.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(cause.errno, cause.strerror) from cause
            # This open may have created it, and an unlocked folder must not keep a lock file.
            with suppress(OSError):
                path.unlink()
            raise
        os.close(descriptor)
