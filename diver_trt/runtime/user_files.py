"""The user's own folders, and whether only this user can write a file in them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def user_folder(variable: str, default: str) -> Path | None:
    """Return `diver-trt` in one of the XDG base directories, or None if the user has no home.

    Args:
        variable: The environment variable that names the directory, such as `"XDG_CACHE_HOME"`.
        default: The directory below the user's home without it, such as `".cache"`.
    """
    root = Path(os.environ.get(variable, ""))
    # https://specifications.freedesktop.org/basedir-spec/latest/: a relative path is to be ignored.
    if not root.is_absolute():
        try:
            root = Path.home() / default
        except RuntimeError:
            return None
    return root / "diver-trt"


def is_own(found: os.stat_result) -> bool:
    """Return whether only this user can write a file; on Windows, which has no modes, True."""
    if sys.platform == "win32":
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
