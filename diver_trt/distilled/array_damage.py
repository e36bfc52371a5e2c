"""Damaged array files: a limit on their metadata, and one line for any exception."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from diver_trt.errors import DatasetError, first_line, shown

MAX_METADATA_BYTES = 1 << 22
"""Maximum size of what describes the arrays of a file: a zip's directory, a pickle, a JSON header.

Real ones have some kilobytes.
"""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The memory address in Python's default `repr`, which some of numpy's messages quote."""


@contextmanager
def damage_reported(problem: str) -> Iterator[None]:
    """Turn any exception of the block into one line: the problem, and the exception's message.

    zipfile, pickletools, zlib and numpy raise many kinds of exceptions on damaged files.

    Raises:
        DatasetError: If the block raises an exception; one of this kind is left as it is.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as cause:
        # An address differs from run to run and would make the same damage read differently.
        found = shown(_ADDRESS.sub("", first_line(cause)))
        raise DatasetError(f"{problem} ({found})") from cause
