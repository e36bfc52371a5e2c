"""Whole numbers that callers give: Python's own, and those of numpy and torch."""

from __future__ import annotations

from operator import index
from typing import Any

from diver_trt.errors import UsageError, shown_value


def whole_number(value: Any) -> int | None:
    """Return a whole number as an int, or None for anything else: a float, a text, a bool."""
    # A bool is an int in Python, and one of torch's has __index__; neither is meant as a number.
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return index(value)
    except (TypeError, ValueError):
        return None


def at_least(least: int, name: str, value: object, also: str = "") -> int:
    """Return a whole number as an int.

    Args:
        least: The smallest that is accepted.
        name: What messages call it.
        value: What a caller gave.
        also: What the caller may give instead, for messages: `", or None"`.

    Raises:
        UsageError: If it is anything else, or less than that; it begins with the name.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise UsageError(
            f"{name} is {shown_value(value)}; expected a whole number, {least} or more{also}"
        )
    return number
