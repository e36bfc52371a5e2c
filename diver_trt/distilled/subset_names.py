"""The ImageNet subset that the folders around a file name, as methods call it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

_SUBSET_NAMES = {
    "imagefruits": "imagefruit",
    "imagenetfruits": "imagefruit",
    "imagenetfruit": "imagefruit",
    "imagenetyellow": "imageyellow",
    "imagenetcats": "imagemeow",
    "imagenetmeow": "imagemeow",
    "imagenetbirds": "imagesquawk",
    "imagenetsquawk": "imagesquawk",
    "imagenetnette": "imagenette",
    "imagenetwoof": "imagewoof",
    **{
        name: name
        for name in (
            "imagenette",
            "imagewoof",
            "imagefruit",
            "imageyellow",
            "imagemeow",
            "imagesquawk",
        )
    },
    **{f"imagenet{letter}": f"imagenet-{letter}" for letter in "abcde"},
    **{f"imagenet{count}": f"imagenet-{count}" for count in (10, 100)},
}
"""How methods call the subsets in the names of their folders, without punctuation."""


def subset_of_path(path: Path) -> str | None:
    """Return the ImageNet subset that a path names, if its last folders name one and no other."""
    found = set()
    for part in path.resolve().parts[-5:]:
        words = [word for word in re.split(r"[^a-z0-9]+", part.lower()) if word]
        # As in imagenet-10 and imagenet_fruits.
        pairs = (first + second for first, second in pairwise(words))
        found |= {_SUBSET_NAMES[name] for name in (*pairs, *words) if name in _SUBSET_NAMES}
    return found.pop() if len(found) == 1 else None
