"""One process per output folder: a file lock that the system releases when its holder ends."""

from __future__ import annotations

import errno
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diver_trt.errors import OutputError

LOCK = ".diver-trt.lock"
"""The file is there only while somebody holds the folder, or after a kill; network drives lock
nothing but files open for writing.
"""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for the time of the block.

    Where that cannot be done (some network drives, folders that cannot be written) a warning is
    printed; on Windows nothing is held.

    Raises:
        OutputError: If another process holds it, or if there is something else under the name of
            the lock.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK
    _require_file(path)
    try:
        descriptor = _held(path)
    except BlockingIOError as cause:
        raise OutputError(
            f"{folder}: another diver-trt is writing there; wait for it, or choose another folder"
        ) from cause
    except OSError as cause:
        warnings.warn(
            f"{folder}: cannot be locked ({cause.strerror}); let no other diver-trt write there",
            RuntimeWarning,
            stacklevel=3,
        )
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _require_file(path: Path) -> None:
    """Refuse a folder, symlink or device in the place of the lock file.

    Without a lock, two processes might write at once.

    Raises:
        OutputError: If there is one.
    """
    with suppress(OSError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symlink"))
            kind = next((kind for is_kind, kind in kinds if is_kind(mode)), "a device or pipe")
            raise OutputError(
                f"{path}: is {kind}, expected the lock file of this command. Delete it."
            )


def _held(path: Path) -> int:
    """Open a file and lock it; again, if whoever held it has deleted it in between.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be opened or locked.
    """
    import fcntl

    while True:
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
            with suppress(OSError):
                path.unlink()
            raise
        os.close(descriptor)
