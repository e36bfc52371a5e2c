"""Edits of a JSON document, as tests give them to whatever applies them to a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def set_in(*path: Any, to: Any) -> Callable[[Any], None]:
    """Return an edit that sets one value, or deletes it where `to` is `...`."""

    def apply(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        if to is ...:
            del document[path[-1]]
        else:
            document[path[-1]] = to

    return apply
