"""The dictionaries, lists and settings that a checkpoint is made of, each once.

A file may have a list contain itself, or refer to one list a million times in another: whoever
follows every reference then recurses for ever, or takes hours over a few kilobytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def contents(held: Any, longest: int = sys.maxsize) -> Iterator[tuple[Any, Collection[Any]]]:
    """Yield every container in a checkpoint, from the outermost inwards, with its values.

    Args:
        held: What the file holds.
        longest: Maximum length of a list; longer ones are skipped with everything in them.
    """
    waiting, seen = deque([held]), set[int]()
    while waiting:
        container = waiting.popleft()
        if id(container) in seen:
            continue
        seen.add(id(container))
        if isinstance(container, argparse.Namespace):
            container = vars(container)
        if isinstance(container, Mapping):
            values: Collection[Any] = container.values()
        elif isinstance(container, (list, tuple)) and len(container) <= longest:
            values = container
        else:
            continue
        yield container, values
        waiting.extend(values)
