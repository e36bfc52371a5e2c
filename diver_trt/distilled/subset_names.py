"""The ImageNet subset in the names of the folders around a file."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

_SUBSET_NAMES = {
    "imagefruits": "imagefruit",
    "imagenetfruits": "imagefruit",
    "imagenetcats": "imagemeow",
    "imagenetbirds": "imagesquawk",
    **{
        f"{start}{end}": f"image{end}"
        for start in ("image", "imagenet")
        for end in ("nette", "woof", "fruit", "yellow", "meow", "squawk")
    },
    **{f"imagenet{letter}": f"imagenet-{letter}" for letter in "abcde"},
    **{f"imagenet{count}": f"imagenet-{count}" for count in (10, 100)},
}
"""The methods' names of the subsets in folder names, without punctuation."""


def subset_of_path(path: Path) -> str | None:
    """Return the ImageNet subset that a path names, if its last folders name exactly one."""
    found = set()
    # Resolved, so that a file named relative to its own folder has its folders around it; but not a
    # file itself, which may be a symlink into a cache.
    resolved = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    for part in resolved.parts[-5:]:
        words = [word for word in re.split(r"[^a-z0-9]+", part.lower()) if word]
        # Pairs of words, because of imagenet-10 and imagenet_fruits.
        pairs = (first + second for first, second in pairwise(words))
        found |= {_SUBSET_NAMES[name] for name in (*pairs, *words) if name in _SUBSET_NAMES}
    # Two subsets in one path contradict each other, and neither is taken.
    return found.pop() if len(found) == 1 else None
