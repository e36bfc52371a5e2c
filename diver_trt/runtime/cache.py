"""Files that are kept between runs under the user's cache folder, and the checks before their use.

Nothing here may fail a recovery: a file that is missing, damaged or not the user's own counts as
absent, and one that cannot be written is not kept. Deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from diver_trt.errors import OutputError
from diver_trt.files import writing
from diver_trt.lock import locked
from diver_trt.runtime.user_files import is_own, user_folder

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path | None:
    """Return `diver-trt` in `$XDG_CACHE_HOME` or in `~/.cache`, or None if there is no home."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def read_cached(path: Path) -> bytes | None:
    """Return what `write_cached` wrote, or None if that is not there whole.

    Args:
        path: The file.
    """
    with suppress(OSError):
        # Without O_NONBLOCK, opening a FIFO in the file's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not (stat.S_ISREG(found.st_mode) and is_own(found)):
                return None
            content = file.read()
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            return payload
    return None


def write_cached(path: Path, payload: bytes) -> None:
    """Write a file for `read_cached`, or leave it if that fails or another process is writing.

    Args:
        path: The file; its folder is created.
        payload: The content.
    """
    with suppress(OSError, OutputError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):  # `locked` would print a warning
            return
        # Two processes that compiled the same network would write to the same temporary file.
        with locked(path.parent), writing(path, durable=False) as file:
            if sys.platform != "win32":
                # A umask of 002 lets the group write it, and then `is_own` would refuse it.
                os.fchmod(file.fileno(), 0o600)
            # The readers of these files check little: OpenVINO 2026.4 loads a cached model with
            # flipped bits without an error, and computes other images with it.
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
