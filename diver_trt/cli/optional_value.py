"""Options that may stand without a value, as `--ray` does for `--ray local`.

Typer has no such options (its `flag_value` is not supported), so the value is added to the
arguments before they are parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from typer.core import TyperCommand

VALUES_WITHOUT_ONE: Mapping[str, str] = {"--ray": "local"}
"""What each such option means where it stands alone: at the end, or before another option."""


class OptionalValues(TyperCommand):
    """A command with options of `VALUES_WITHOUT_ONE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with the values that were left out."""
        return super().parse_args(ctx, list(completed(args)))


def completed(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, and after each option that stands alone its value."""
    only_positional = False
    for argument, following in zip_longest(args, args[1:]):
        yield argument
        only_positional |= argument == "--"
        alone = following is None or following.startswith("-")
        if argument in VALUES_WITHOUT_ONE and alone and not only_positional:
            yield VALUES_WITHOUT_ONE[argument]
