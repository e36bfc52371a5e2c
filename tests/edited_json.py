"""Edits of a JSON document, and of a file that holds one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def json_file(path: Path) -> Iterator[Any]:
    """Let a block change the document that a file holds."""
    document = json.loads(path.read_text())
    yield document
    path.write_text(json.dumps(document))
