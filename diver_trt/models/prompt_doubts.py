"""Doubts about prompts, whose file may have the form of a class map or of a table."""

from __future__ import annotations

import re

from diver_trt.errors import shown
from diver_trt.models.prompts import Prompts

_NUMBER_FIRST = re.compile(r"\d+[\s,;:.)]+(\S.*)", re.ASCII)
_NUMBER_LAST = re.compile(r"(.*\S)[\s,;:]+\d+", re.ASCII)


def prompt_doubts(prompts: Prompts) -> list[str]:
    """Return notes on prompts that may not be what was meant."""
    doubts = []
    if numbered := _numbered(prompts.names):
        doubts.append(
            f"its classes have names with a number of each, such as {shown(repr(numbered))}, which "
            "is part of the name and of the prompt: expected the name alone on each line"
        )
    if len(prompts.names) == 1 and "," in prompts.names[0]:
        doubts.append(
            f"it has one class, {shown(repr(prompts.names[0]))}: a file has a name per line"
        )
    return doubts


def _numbered(names: tuple[str, ...]) -> str | None:
    """Return the first of names that all have a number before or behind them, or None."""
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        rest = [match[1] for name in names if (match := pattern.fullmatch(name))]
        # `digit 0` to `digit 9` are names; of `0 tench`, `1 springer`, the rest is one already.
        if 1 < len(rest) == len(names) == len(set(rest)):
            return names[0]
    return None
