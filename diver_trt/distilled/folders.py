"""Listing a class-folder tree: `ROOT/CLASS/IMAGE`, where CLASS is an index, a wnid or a name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    WNID,
    ClassMap,
    imagenet_wnids,
    load_class_map,
    numbering_needed,
    subset_needed,
    wnid_of,
)
from diver_trt.distilled.image_file import OTHER_SUFFIXES, SUFFIXES
from diver_trt.distilled.stored_array import SUFFIXES as TENSOR_SUFFIXES
from diver_trt.errors import DatasetError

_INDEX = re.compile(r"(new)?(\d{1,9})", re.ASCII)
"""A class index, as SRe2L and its descendants write it too: `new007`."""

_WRAPPERS = re.compile(r"syn_data|train|dataset_\d+")
"""Folders around the class folders, of RDED, torchvision's convention and MGD3."""

_LOOKED_THROUGH = 1000
"""Folders that are looked through for a set when none is where it was said to be."""


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """A class-folder tree, listed.

    Attributes:
        root: The folder that holds the class folders.
        class_map: What resolved them.
        files: Every image, class by class in the dataset's order.
        classes: The index of each image's class.
    """

    root: Path
    class_map: ClassMap
    files: tuple[Path, ...]
    classes: tuple[int, ...]


def read_class_folders(path: Path, bundle: Bundle, classes: str | None = None) -> ClassFolders:
    """List a class-folder tree and decide each folder's class; the images themselves are not opened.

    Folders are class indices (`3`, `00003`, `new003`), wnids (`n02086240`) or names of the class map or the model. Within a class, files
    are in natural order: `2.png` before `10.png`. `syn_data`, `train` or `dataset_0` alone in a folder is entered.

    Args:
        path: The tree.
        bundle: The model, whose classes the folders are mapped to.
        classes: A class map (`load_class_map`); None takes the folders to be classes of the model itself, all of them if it is of ImageNet.

    Raises:
        DatasetError: There are no class folders or no images in them, a folder's class is unknown, ambiguous or out of range, or a link
            leads out of the tree.
    """
    root, folders = _class_folders(path)
    index_folders = all(_INDEX.fullmatch(folder.name) for folder in folders)
    if (
        index_folders
        and classes is None
        and bundle.num_classes == IMAGENET_CLASSES
        and len(folders) < IMAGENET_CLASSES
    ):
        raise DatasetError(subset_needed(root, f"has {len(folders)} index folders"))
    class_map = load_class_map(classes or "model", bundle.num_classes, bundle.class_names)
    if {folder.name for folder in folders} <= set(class_map.names):
        index_folders = False  # the map calls these very folders by their numbers
    by_index: dict[int, Path] = {}
    for folder in folders:
        index = _index_of(folder, class_map, bundle, index_folders)
        if index in by_index:
            raise DatasetError(
                f"{root}: {by_index[index].name} and {folder.name} are both class {index}; expected one folder per class"
            )
        by_index[index] = folder
    if (
        classes is None
        and bundle.num_classes == IMAGENET_CLASSES
        and len(by_index) < IMAGENET_CLASSES
    ):
        raise DatasetError(numbering_needed(root, by_index.keys()))
    files = {index: _image_files(by_index[index]) for index in sorted(by_index)}
    return ClassFolders(
        root,
        class_map,
        tuple(path for paths in files.values() for path in paths),
        tuple(index for index, paths in files.items() for _ in paths),
    )


def _class_folders(root: Path) -> tuple[Path, list[Path]]:
    """Return the folder that holds the class folders, and those."""
    if not root.is_dir():
        raise DatasetError(
            f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected a folder with one folder of images per class"
        )
    folders = sorted(Path(entry) for entry in _scan(root, root) if entry.is_dir())
    if all(_WRAPPERS.fullmatch(folder.name) for folder in folders) and folders:
        if len(folders) > 1:
            raise DatasetError(
                f"{root}: holds {', '.join(folder.name for folder in folders[:5])}; name the one that is meant"
            )
        return _class_folders(folders[0])
    if not folders:
        loose = [
            entry.name for entry in _scan(root, root) if Path(entry).suffix.lower() in SUFFIXES
        ]
        found = (
            f"holds images but no class folders ({loose[0]}, …)"
            if loose
            else "holds no class folders"
        )
        raise DatasetError(
            f"{root}: {found}; expected one folder of images per class, or a file of tensors"
        )
    if folders[0].name.startswith("epoch_") and any(folders[0].glob("batch_*.tar")):
        raise DatasetError(
            f"{root}: holds soft labels (FKD), which belong to images elsewhere; give the folder of the images"
        )
    if not any(map(holds_images, folders)) and (deeper := _sets_below(root)):
        raise DatasetError(
            f"{root}: holds no images itself; name the set that is meant, perhaps {' or '.join(deeper)}"
        )
    return root, folders


def holds_images(folder: Path) -> bool:
    """Return whether image files lie directly in a folder."""
    return _holds(folder, (*SUFFIXES, *OTHER_SUFFIXES))


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(suffixes) for entry in entries)
    except OSError:
        return False


def _sets_below(root: Path) -> list[str]:
    """Return up to three folders that look like distilled sets, by their printable names below `root`."""
    found = dict[str, None]()
    for folder, folders, _ in islice(os.walk(root), _LOOKED_THROUGH):
        folders.sort()
        path = Path(folder)
        if path != root and (holds_images(path) or _holds(path, TENSOR_SUFFIXES)):
            whole = path.parent if holds_images(path) else path
            found[whole.relative_to(root).as_posix()] = None
            folders.clear()
        if len(found) == 3:
            break
    return [name for name in found if name.isprintable() and name != "."]


def _image_files(folder: Path) -> list[Path]:
    paths = [Path(entry) for entry in _scan(folder, folder.parent) if entry.is_file()]
    if other := next((path for path in paths if path.suffix.lower() in OTHER_SUFFIXES), None):
        raise DatasetError(
            f"{other}: images of this kind are not read; convert it to PNG, JPEG or WebP"
        )
    images = sorted((path for path in paths if path.suffix.lower() in SUFFIXES), key=natural)
    if not images:
        raise DatasetError(
            f"{folder}: holds no images; expected {', '.join(SUFFIXES)} files, or no folder for a class without images"
        )
    return images


def _scan(folder: Path, root: Path) -> Sequence[os.DirEntry[str]]:
    """List a folder of the tree under `root`; nothing whose name cannot be printed, or that lies elsewhere, is taken along."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as cause:
        raise DatasetError(f"{folder}: cannot be listed ({cause.strerror})") from cause
    for entry in entries:
        if not entry.name.isprintable():
            raise DatasetError(
                f"{folder}: holds a name that cannot be printed, {entry.name!a}; rename it"
            )
        if entry.is_symlink() and not _leads_inside(Path(entry), root):
            raise DatasetError(
                f"{Path(entry)}: is a link out of the dataset, or to nothing; copy what it points to"
            )
    return entries


def _leads_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link to itself is a RuntimeError until Python 3.13
        return False


def _index_of(folder: Path, class_map: ClassMap, bundle: Bundle, index_folders: bool) -> int:
    if index_folders:
        index = int(folder.name.removeprefix("new"))
        if index >= len(class_map):
            whose = "the model has" if class_map.name == "model" else f"{class_map.name} has"
            raise DatasetError(
                f"{folder}: class {index} is out of range; {whose} classes 0 to {len(class_map) - 1}"
            )
        return index
    if WNID.fullmatch(folder.name):
        return _index_of_wnid(folder, class_map, bundle)
    name = _plain(folder.name)
    matches = [i for i in range(len(class_map)) if name in _names(class_map, i, bundle)]
    if len(matches) == 1:
        return matches[0]
    problem = (
        f"is the name of {len(matches)} classes"
        if matches
        else "is no class index, wnid or known class name"
    )
    raise DatasetError(
        f"{folder}: {folder.name!r} {problem}; rename it to its index, or give a class map: --classes FILE with lines NAME LABEL"
    )


def _index_of_wnid(folder: Path, class_map: ClassMap, bundle: Bundle) -> int:
    wnid = folder.name
    if wnid not in class_map.names:
        if bundle.num_classes != IMAGENET_CLASSES:
            raise DatasetError(
                f"{folder}: is a wnid of ImageNet, but the model has {bundle.num_classes} classes; use a model of ImageNet-1K"
            )
        if wnid not in imagenet_wnids():
            raise DatasetError(
                f"{folder}: is no wnid of ImageNet-1K; expected one of its 1000 classes"
            )
    known = zip(class_map.names, class_map.labels, strict=True)
    matches = [
        i
        for i, (name, label) in enumerate(known)
        if wnid in (name, wnid_of(label, bundle.num_classes))
    ]
    if len(matches) != 1:
        problem = "stands twice in" if matches else "is not among the classes of"
        raise DatasetError(
            f"{folder}: this wnid {problem} {class_map.name}; choose another class map with --classes"
        )
    return matches[0]


def _names(class_map: ClassMap, index: int, bundle: Bundle) -> set[str]:
    names = {class_map.names[index]} if class_map.names[index] else set()
    if bundle.class_names:
        names.update(
            bundle.class_names[class_map.labels[index]].split(",")
        )  # ImageNet's names are lists of synonyms
    return {_plain(name) for name in names if name}


def _plain(name: str) -> str:
    return name.strip().replace("_", " ").casefold()


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names with their numbers as numbers: `2.png` before `10.png`."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [
        (True, int(part), part) if part.isascii() and part.isdigit() else (False, 0, part)
        for part in parts
    ]
