"""A number and its noun, as messages and pages write them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 training`, `5,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
