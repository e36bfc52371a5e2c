"""Whole numbers that callers give: Python's own, and those of numpy and torch."""

from __future__ import annotations

from operator import index
from typing import Any


def whole_number(value: Any) -> int | None:
    """Return a whole number as an int, or None for anything else: a float, a text, a bool."""
    # A bool is an int in Python, and one of torch's has __index__; neither is meant as a number.
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return index(value)
    except (TypeError, ValueError):
        return None
