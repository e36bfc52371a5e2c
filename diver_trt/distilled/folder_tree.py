"""Listing a class-folder tree, `ROOT/CLASS/IMAGE`: which folders are classes, and their images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from diver_trt.counted import few
from diver_trt.distilled.array_file import SUFFIXES as TENSOR_SUFFIXES
from diver_trt.distilled.folder_names import is_index, require_printable
from diver_trt.distilled.image_kinds import EXPECTED, SUFFIXES
from diver_trt.distilled.left_out import (
    LeftOut,
    count_images,
    is_companion,
    is_system_file,
    is_system_folder,
)
from diver_trt.distilled.natural_order import natural
from diver_trt.errors import DatasetError
from diver_trt.files import reported

_WRAPPERS = re.compile(r"syn_data|train|dataset_\d+")
"""Folders around the class folders, of RDED, torchvision's convention and MGD3."""

NESTED = "images"
"""The folder within a class folder that holds the images of Tiny-ImageNet."""

_SEARCHED = 1000
"""Maximum number of folders that are searched for a set when the given folder holds none."""


def class_folders(root: Path, left_out: LeftOut) -> tuple[Path, list[Path]]:
    """Return the folder that holds the class folders, and those.

    Args:
        root: The tree.
        left_out: Gets what else is in it.

    Raises:
        DatasetError: If there are none, their images are elsewhere, or a symlink leads out of the
            tree.
    """
    if not root.is_dir():
        raise DatasetError(
            f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected a folder with "
            "one folder of images per class"
        )
    folders = _folders_in(root, left_out)
    if not folders:
        found = (
            f"holds images but no class folders ({left_out.loose[0].name}, …)"
            if left_out.loose
            else "holds no class folders"
        )
        raise DatasetError(
            f"{root}: {found}; expected one folder of images per class, or a file of tensors"
        )
    # Logs beside a `syn_data` must not keep it from being entered.
    sets = [folder for folder in folders if not is_companion(folder.name)]
    if all(_WRAPPERS.fullmatch(folder.name) for folder in sets) and sets:
        if len(sets) > 1:
            raise DatasetError(
                f"{root}: holds {few([folder.name for folder in sets], 5)}; name one of them"
            )
        left_out.strays += [folder for folder in folders if folder not in sets]
        return class_folders(sets[0], left_out)
    _require_images(root, folders)
    return root, folders


def _folders_in(root: Path, left_out: LeftOut) -> list[Path]:
    """Return the folders of a folder in order, and note its images and system folders."""
    folders = []
    # The order of `scandir` is arbitrary, and messages must not differ between machines.
    for entry in sorted(_scan(root, left_out.root), key=lambda entry: entry.name):
        if not entry.is_dir():
            if entry.name.lower().endswith(SUFFIXES):
                left_out.loose.append(Path(entry))
        elif is_system_folder(entry.name):
            left_out.strays.append(Path(entry))
        else:
            folders.append(Path(entry))
    return folders


def _require_images(root: Path, folders: Sequence[Path]) -> None:
    """Refuse class folders whose images are elsewhere: soft labels of FKD, or sets further down."""
    # FKD: `epoch_0/batch_0.tar`. https://github.com/VILA-Lab/SRe2L
    if folders[0].name.startswith("epoch_") and any(folders[0].glob("batch_*.tar")):
        raise DatasetError(
            f"{root}: holds soft labels (FKD), which belong to images elsewhere; give the folder "
            "of the images"
        )
    if not any(map(holds_images, folders)) and (deeper := _sets_below(root)):
        indices = {folder.name for folder in filter(is_index, folders)}
        # Class folders with folders in them look like several sets; their names tell them apart.
        if any(Path(name).parts[0] in indices for name in deeper):
            raise DatasetError(
                f"{root}: its class folders hold no images, but folders in them do; expected "
                f"CLASS/IMAGE or CLASS/{NESTED}/IMAGE. Move the images up."
            )
        raise DatasetError(
            f"{root}: holds no images itself; name a set in it, perhaps {' or '.join(deeper)}"
        )


def may_be_class(folder: Path) -> bool:
    """Return whether a folder looks like a class or a set."""
    # Such a folder is never left out silently: images would be lost.
    return not is_companion(folder.name) and (
        holds_images(folder) or _holds(folder, TENSOR_SUFFIXES)
    )


def holds_images(folder: Path) -> bool:
    """Return whether image files lie directly in a folder, or in a folder `images` in it."""
    return _holds(folder, SUFFIXES) or _holds(folder / NESTED, SUFFIXES)


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower().endswith(suffixes) and not is_system_file(entry.name)
                for entry in entries
            )
    except OSError:
        return False


def _sets_below(root: Path) -> list[str]:
    """Return the names, below `root`, of up to three folders that look like distilled sets."""
    found = dict[str, None]()
    # Bounded, since the path may be the root of a disk: it serves a hint in a message only.
    for folder, folders, _ in islice(os.walk(root), _SEARCHED):
        folders.sort()
        path = Path(folder)
        if path != root and (holds_images(path) or _holds(path, TENSOR_SUFFIXES)):
            whole = path.parent if holds_images(path) else path  # a class folder's parent is a set
            found[whole.relative_to(root).as_posix()] = None
            # Below a set there are only its classes.
            folders.clear()
        if len(found) == 3:
            break
    # These folders were not listed by `_scan`, which refuses names that cannot be printed.
    return [name for name in found if name.isprintable() and name != "."]


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return a class's images in natural order, from its folder or a folder `images` in it.

    Raises:
        DatasetError: If there are none, or a symlink leads out of the tree.
    """
    images, folders = _listed(folder, left_out)
    nested = folder / NESTED
    # Only without other images: beside them, such a folder holds something else.
    if not images and nested in folders:
        folders.remove(nested)
        images, deeper = _listed(nested, left_out)
        folders += deeper
    left_out.folders += folders
    if not images:
        # The images may be one folder too deep, which the message then names.
        below = [path for path in folders if count_images(path)]
        where = f" itself, but {below[0].name} in it does" if below else ""
        raise DatasetError(
            f"{folder}: holds no images{where}; expected {EXPECTED} files, or no folder for a "
            "class without images"
        )
    return images


def _listed(folder: Path, left_out: LeftOut) -> tuple[list[Path], list[Path]]:
    """Return the images and the folders in a folder; `left_out` gets the rest."""
    images, folders = [], []
    for path, entry in sorted(
        ((Path(entry), entry) for entry in _scan(folder, left_out.root)),
        key=lambda pair: natural(pair[0]),
    ):
        if entry.is_dir():
            if not is_system_folder(entry.name):
                folders.append(path)
        elif not entry.name.lower().endswith(SUFFIXES):
            left_out.files.append(path)
        # A FIFO or a device may have the name of an image.
        elif entry.is_file():
            images.append(path)
        else:
            left_out.irregular.append(path)
    return images, folders


def _scan(folder: Path, root: Path) -> Sequence[os.DirEntry[str]]:
    """List a folder of the tree under `root`.

    Raises:
        DatasetError: If a name cannot be printed, or a symlink leads out of the tree.
    """
    with reported(folder, "listed", DatasetError), os.scandir(folder) as found:
        entries = [entry for entry in found if not is_system_file(entry.name)]
    for entry in entries:
        require_printable(Path(entry))
        if entry.is_symlink() and not _leads_inside(Path(entry), root):
            raise DatasetError(
                f"{Path(entry)}: is a symlink out of the dataset, or a broken one; copy its target"
            )
    return entries


def _leads_inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root.resolve())
    # A symlink loop is a RuntimeError until Python 3.13:
    # https://docs.python.org/3/library/pathlib.html#pathlib.Path.resolve
    except (OSError, RuntimeError):
        return False


def image_files_below(root: Path) -> Iterator[Path]:
    """Yield the image files in a folder at any depth, in the order of their paths.

    Raises:
        DatasetError: If a folder cannot be listed, a name cannot be printed, or a symlink leads out
            of the folder.
    """
    folders, files = [root], []
    while folders:
        for entry in _scan(folders.pop(), root):
            # Not through symlinks, which may lead in circles.
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry))
            elif entry.name.lower().endswith(SUFFIXES):
                files.append(Path(entry))
    yield from sorted(files)
