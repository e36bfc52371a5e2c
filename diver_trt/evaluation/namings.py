"""How the classes of a set may be named, and the naming that a training and the test set share.

The classes of a recovered dataset have the names that its model gives them, and those of the
folders that the distilled images were in. Those of a class map have its own names, and wnids. Which
of them the test images have is known only when both sets are listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from diver_trt.distilled.class_map import WNID, plain_name
from diver_trt.distilled.folder_names import is_index
from diver_trt.distilled.folder_tree import NESTED
from diver_trt.records import Manifest

Names = tuple[str, ...]
"""The name of each class by its index, `""` for an index without images."""


def are_wnids(names: Collection[str]) -> bool:
    """Return whether classes are named by wnids."""
    named = [name for name in names if name]
    return bool(named) and all(map(WNID.fullmatch, named))


def namings(candidates: Iterable[Mapping[int, str | None]]) -> tuple[Names, ...]:
    """Return the usable ones of some namings, each as a name for every index.

    A naming that lacks a name is not usable, and neither is one that only repeats the indices.
    """
    found = []
    for names in candidates:
        if all(names.values()) and any(name != str(index) for index, name in names.items()):
            found.append(tuple(names.get(index) or "" for index in range(max(names) + 1)))
    return tuple(dict.fromkeys(found))


def folder_names(manifest: Manifest) -> dict[int, str | None]:
    """Return the name of the folder that each class's distilled images were in.

    None stands for a class without a folder of its own, and for a number, which names nothing.
    """
    folders: dict[int, set[PurePosixPath]] = {}
    for entry in (*manifest.samples, *manifest.skipped):
        folder = PurePosixPath(entry.source).parent
        # CLASS/images/IMAGE, as in Tiny-ImageNet.
        folder = folder.parent if folder.name == NESTED else folder
        folders.setdefault(entry.index, set()).add(folder)
    # A folder that holds several classes does not name a class.
    uses = Counter(folder for found in folders.values() for folder in found)
    own: dict[int, str | None] = {}
    for index, found in folders.items():
        first = next(iter(found))
        is_own = len(found) == 1 and uses[first] == 1 and not is_index(first)
        own[index] = first.name if is_own else None
    return own


def shared(ours: Sequence[Names], theirs: Names) -> Names | None:
    """Return the first naming that has the same classes as another, or None.

    Wnids may be some of the other's: ImageNet's validation images serve every subset.
    """
    known = _plain(theirs)
    for names in ours:
        found = _plain(names)
        # Other names have to be all of them: a class that is missing is an error to report.
        if found == known or (are_wnids(names) and found <= known):
            return names
    return None


def _plain(names: Names) -> set[str]:
    return {plain_name(name) for name in names if name}
