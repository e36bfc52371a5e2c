"""What is done to a command's arguments before Typer parses them.

`--ray` may stand without a value, for `--ray local`; Typer does not support such options. An empty
argument is refused: an unset shell variable leaves one, and as a path it would mean the current
folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import typer
from typer.core import TyperCommand

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
    # The message names the option in front of an empty argument.
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
    """Yield the arguments, and `local` after a `--ray` that no address follows."""
    only_positional = False
    for argument, following in zip_longest(args, args[1:]):
        yield argument
        # Behind `--` everything is positional, and `--ray` is the name of a file.
        only_positional |= argument == "--"
        if argument == "--ray" and not only_positional:
            # Not above: other commands, and every help, do without it.
            from diver_trt.ray.cluster import LOCAL, is_address

            if not is_address(following):
                yield LOCAL
