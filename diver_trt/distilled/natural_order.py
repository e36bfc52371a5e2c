"""The order of numbered files: `2.png` before `10.png`."""

from __future__ import annotations

import re
from pathlib import Path


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names with their numbers as numbers: `2.png` before `10.png`."""
    parts = re.findall(r"\d+|\D+", path.name)
    # The flag keeps numbers and texts from being compared; `isascii`, because `int` reads digits of
    # other scripts, and `isdigit` accepts superscripts, which it does not.
    return [
        (True, int(part), part) if part.isascii() and part.isdigit() else (False, 0, part)
        for part in parts
    ]
