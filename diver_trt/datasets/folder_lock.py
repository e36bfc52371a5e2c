"""One process per output folder: a lock on the folder itself, which the system drops when its holder ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diver_trt.errors import OutputError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for the time of the block.

    Where the file system knows no locks (some network drives) or the platform has none for folders (Windows), nothing is held.

    Raises:
        OutputError: Another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            if cause.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise OutputError(f"{folder}: another diver-trt is writing there; wait for it, or choose another folder") from cause
        yield
    finally:
        os.close(descriptor)
