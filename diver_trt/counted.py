"""Numbers with their nouns, and long lists cut short, as messages and pages write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from diver_trt.errors import shown


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 training`, `5,000 images`, `2 batches`."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def counted_with(number: int, noun: str, verb: Literal["is", "was"]) -> str:
    """Return a number, its noun and the verb in agreement: `1 image was`, `5,000 images are`."""
    plural = "are" if verb == "is" else "were"
    return f"{counted(number, noun)} {verb if number == 1 else plural}"


def few(names: Sequence[str], most: int = 3, count: int | None = None) -> str:
    """Return the first `most` names, escaped, and how many more there are: `a, b and 3 more`.

    Args:
        names: The names, or their beginning.
        most: How many are named.
        count: Their number, if `names` is only the beginning.
    """
    rest = (len(names) if count is None else count) - most
    return f"{', '.join(map(shown, names[:most]))}{f' and {rest} more' if rest > 0 else ''}"


def megabytes(size: int) -> str:
    """Return a size in bytes as tenths of a MB, at least one: `8.6 MB`."""
    return f"{max(size / 1e6, 0.1):,.1f} MB"
