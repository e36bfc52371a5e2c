"""A number and its noun, as messages and pages write them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 training`, `5,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def megabytes(size: int) -> str:
    """Return a size in bytes as tenths of a MB, at least one: `8.6 MB`."""
    return f"{max(size / 1e6, 0.1):,.1f} MB"
