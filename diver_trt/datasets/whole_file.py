"""Files that appear under their name only when they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diver_trt.errors import OutputError


def temporary_of(path: Path) -> Path:
    """Return where a file is written until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block another path to write, and the file its name at the end; of a block that fails nothing is left."""
    temporary = temporary_of(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def reported(path: Path, done: str = "written") -> Iterator[None]:
    """Turn a failure of the system at a file into one line.

    Raises:
        OutputError: The block raised an OSError.
    """
    try:
        yield
    except OSError as cause:
        raise OutputError(f"{path}: cannot be {done} ({cause.strerror or cause})") from cause
