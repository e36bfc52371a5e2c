"""What is done to a command's arguments before Typer parses them.

An option may stand without a value, as `--ray` does for `--ray local`: Typer has no such options
(its `flag_value` is not supported). And an empty argument is refused: it is that of an unset shell
variable, and as a path it would be the current folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import typer
from typer.core import TyperCommand

VALUES_WITHOUT_ONE: Mapping[str, str] = {"--ray": "local"}
"""What each such option means where it stands alone."""

VALUES: Mapping[str, re.Pattern[str]] = {"--ray": re.compile(r"local|auto|[^/]+:\d+")}
"""What is a value of each such option; anything else after it is an argument of its own."""

MAY_BE_EMPTY = ("--negative-prompt",)
"""Options whose value may be an empty text."""


class Command(TyperCommand):
    """A command whose arguments are completed and checked before they are parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            typer.BadParameter: If one is empty.
        """
        refuse_empty(args)
        return super().parse_args(ctx, list(completed(args)))


def refuse_empty(args: Sequence[str]) -> None:
    """Refuse empty arguments.

    Raises:
        typer.BadParameter: If one is empty, and not the value of an option that may be.
    """
    for before, argument in pairwise(["", *args]):
        option, equals, value = argument.partition("=")
        if argument == "":
            name = before if before.startswith("--") else "an argument"
        elif argument.startswith("--") and equals and not value:
            name = option
        else:
            continue
        if name not in MAY_BE_EMPTY:
            raise typer.BadParameter(f"{name} is empty, as an unset shell variable is; give a text")


def completed(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, and after each option that stands alone its value."""
    only_positional = False
    for argument, following in zip_longest(args, args[1:]):
        yield argument
        only_positional |= argument == "--"
        if only_positional or argument not in VALUES_WITHOUT_ONE:
            continue
        if following is None or not VALUES[argument].fullmatch(following):
            yield VALUES_WITHOUT_ONE[argument]
