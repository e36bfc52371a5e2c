"""Damaged array files: a limit on their metadata, and one line for any exception."""

from __future__ import annotations

import re

from diver_trt.errors import first_line, shown

MAX_METADATA_BYTES = 1 << 22
"""Maximum size of what describes the arrays of a file: a zip's directory, a pickle, a JSON header.

Real ones have some kilobytes.
"""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The memory address in Python's default `repr`, which some of numpy's messages quote."""


def damage(cause: Exception) -> str:
    """Return an exception's message on one line, without memory addresses."""
    # An address differs from run to run and would make the same damage read differently.
    return shown(_ADDRESS.sub("", first_line(cause)))
