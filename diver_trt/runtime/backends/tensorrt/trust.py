"""Which engines may run here: a list of hashes in the user's own folder, one per line.

An engine is code, and nothing in it or beside it proves who made it: a sidecar's hash shows damage,
not origin. So `build` enters every engine that it writes here, and no other is loaded until the
user passes `--trust`, which enters it too. The list holds SHA-256 hashes; other lines are ignored.
To revoke trust, delete a line, or the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from diver_trt.errors import EngineError, OutputError
from diver_trt.runtime.user_files import is_own, user_folder

_HASH = re.compile(rb"[0-9a-f]{64}")


def register_path() -> Path:
    """Return where the list is: `diver-trt/engines` in `$XDG_STATE_HOME`, or in `~/.local/state`.

    Raises:
        EngineError: If there is neither that variable nor a home.
    """
    folder = user_folder("XDG_STATE_HOME", ".local/state")
    if folder is None:
        raise EngineError(
            "no home directory was found for the list of trusted engines; set "
            "XDG_STATE_HOME to a folder"
        )
    return folder / "engines"


def register(hashes: Iterable[str] = ()) -> None:
    """Enter engines; without any, only make sure that they could be entered.

    Several processes may enter engines at once.

    Args:
        hashes: SHA-256 of each engine, in hex.

    Raises:
        OutputError: If the list cannot be written.
        EngineError: If it is not the user's own.
    """
    known = _read()
    lines = [digest.encode() for digest in dict.fromkeys(hashes) if digest.encode() not in known]
    assert all(_HASH.fullmatch(line) for line in lines), "sidecars are checked when they are read"
    path = register_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A process that was killed in the middle of a write leaves half a line, which a line
            # break ends. If another process was only in the middle of its write, the break makes an
            # empty line, which is ignored like any line that is not a hash.
            cut = (
                os.lseek(file, 0, os.SEEK_END)
                and os.pread(file, 1, os.lseek(file, 0, os.SEEK_END) - 1) != b"\n"
            )
            text = (b"\n" if cut else b"") + b"".join(line + b"\n" for line in lines)
            # One write in append mode, so that no line of another process gets in between.
            if lines and os.write(file, text) != len(text):
                raise OutputError(f"{path}: could not be written to its end; is the disk full?")
        finally:
            os.close(file)
    except OSError as cause:
        raise OutputError(
            f"{path}: cannot be written ({cause.strerror}); set XDG_STATE_HOME to a folder of "
            "your own that can"
        ) from cause


def is_registered(digest: str) -> bool:
    """Return whether an engine may run here.

    Args:
        digest: Its SHA-256 in hex.

    Raises:
        EngineError: If the list cannot be read, or is not the user's own.
    """
    return digest.encode() in _read()


def _read() -> set[bytes]:
    path = register_path()
    try:
        with path.open("rb") as file:
            # Of the open file, not of the path, which may name another file by now.
            if not is_own(os.fstat(file.fileno())):
                raise EngineError(
                    f"{path}: can be written by others, so it proves nothing; make it your own "
                    "(chmod 600), or delete it"
                )
            return {line.strip() for line in file if _HASH.fullmatch(line.strip())}
    except FileNotFoundError:
        return set()
    except OSError as cause:
        raise EngineError(
            f"{path}: cannot be read ({cause.strerror}); it lists the engines that may run here"
        ) from cause
