"""Listing a class-folder tree: `ROOT/CLASS/IMAGE`, where CLASS is an index, a wnid or a name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from diver_trt.counted import few
from diver_trt.distilled.array_file import SUFFIXES as TENSOR_SUFFIXES
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    ClassMap,
    ModelClasses,
    is_imagenet,
    load_class_map,
    numbering_needed,
    subset_needed,
)
from diver_trt.distilled.folder_names import (
    ClassNames,
    are_indices,
    class_of_index,
    index_of,
    is_index,
    require_printable,
)
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

_WRAPPERS = re.compile(r"syn_data|train|dataset_\d+")
"""Folders around the class folders, of RDED, torchvision's convention and MGD3."""

_NESTED = "images"
"""The folder within a class folder that holds the images of Tiny-ImageNet."""

_SEARCHED = 1000
"""Maximum number of folders that are searched for a set when the given folder holds none."""


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """A class-folder tree, listed.

    Attributes:
        root: The folder that holds the class folders.
        class_map: The map that resolved their names.
        files: Every image, class by class in the dataset's order.
        classes: The index of each image's class.
        notes: The rest of the tree, which is not read.
    """

    root: Path
    class_map: ClassMap
    files: tuple[Path, ...]
    classes: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def folder_of(self, position: int) -> Path:
        """Return the class folder of an image, which may lie in a folder `images` in it."""
        return self.root / self.files[position].relative_to(self.root).parts[0]


def read_class_folders(
    path: Path, bundle: ModelClasses, classes: str | None = None
) -> ClassFolders:
    """List a class-folder tree and decide each folder's class, without opening the images.

    Folders are class indices (`3`, `00003`, `new003`), wnids (`n02086240`) or names of the class
    map or the model. Within a class, files are in natural order: `2.png` before `10.png`. A lone
    folder `syn_data`, `train` or `dataset_0` is entered, and so is a folder `images` that holds a
    class's only images. Folders that are not a class and hold no images, files of other kinds and
    folders within classes are not read; a note lists them.

    Args:
        path: The tree.
        bundle: The model, whose classes the folders are mapped to.
        classes: A class map (`load_class_map`); None takes the folders to be classes of the model
            itself, all of them if it is of ImageNet.

    Raises:
        DatasetError: If class folders or the images in them are missing, a class is
            unknown, ambiguous or out of range, or a symlink leads out of the tree.
    """
    left_out = LeftOut(path)
    root, folders = _class_folders(path, left_out)
    numbers = are_indices(folders, _may_be_class)
    numbered = [folder for folder in folders if is_index(folder)]
    # Ten folders `0` to `9` may be any subset: each method has an order of its own.
    if numbers and classes is None and is_imagenet(bundle) and len(numbered) < IMAGENET_CLASSES:
        raise DatasetError(subset_needed(root, f"has {len(numbered)} index folders"))
    class_map = load_class_map("model" if classes is None else classes, bundle)
    # A map or a model may use numbers as names: there, folder `7` is the class called "7".
    if {folder.name for folder in numbered} <= set(class_map.names):
        numbers = False  # these numbers are names in the map, not indices
    found = _by_index(folders, class_map, bundle, numbers, left_out)
    # Wnids show the classes of a subset, but not how trainers number them.
    if classes is None and is_imagenet(bundle) and len(found) < IMAGENET_CLASSES:
        raise DatasetError(numbering_needed(root, found.keys()))
    # Classes in the order of their indices: that of the folders' names is another one for wnids and
    # unpadded numbers.
    files = {index: _image_files(found[index], left_out) for index in sorted(found)}
    return ClassFolders(
        root,
        class_map,
        tuple(path for paths in files.values() for path in paths),
        tuple(index for index, paths in files.items() for _ in paths),
        left_out.notes(),
    )


@dataclass(frozen=True, slots=True)
class OwnClasses:
    """The classes of a tree by its own folder names.

    Attributes:
        count: Number of classes; of numbered ones, one more than the largest number.
        names: The folders' names, sorted; None where they are class indices.
    """

    count: int
    names: tuple[str, ...] | None


def own_classes(path: Path) -> OwnClasses:
    """Return the classes of a tree by its own folder names, where no model has classes to map to.

    Raises:
        DatasetError: If class folders are missing, or a symlink leads out of the tree.
    """
    root, folders = _class_folders(path, LeftOut(path))
    classes = [folder for folder in folders if _may_be_class(folder)]
    if not classes:
        raise DatasetError(f"{root}: its folders hold no images; expected one folder per class")
    if are_indices(folders, _may_be_class):
        return OwnClasses(max(map(index_of, classes)) + 1, None)
    return OwnClasses(len(classes), tuple(folder.name for folder in classes))


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


def _by_index(
    folders: Sequence[Path],
    class_map: ClassMap,
    bundle: ModelClasses,
    numbers: bool,
    left_out: LeftOut,
) -> dict[int, Path]:
    """Return the folder of each class; `left_out` gets folders that do not look like classes."""
    names = ClassNames(class_map, bundle)
    found: dict[int, Path] = {}
    unknown: DatasetError | None = None
    for folder in folders:
        try:
            if numbers and not is_index(folder):
                raise DatasetError(f"{folder}: is not a class index")
            index = class_of_index(folder, class_map) if numbers else names.find(folder)
        except DatasetError as error:
            # The tree is not read by index because of one folder; the error names that one.
            if not numbers and is_index(folder) and _may_be_class(folder):
                _refuse_odd_one_out(folders)
            if (numbers and is_index(folder)) or _may_be_class(folder):
                raise
            unknown = unknown or error
            left_out.strays.append(folder)
            continue
        if twin := next((other for other in found.values() if _are_one(other, folder)), None):
            raise DatasetError(
                f"{folder}: is the same folder as {twin.name}, by a symlink; expected one folder "
                "per class. Copy it, or remove the symlink."
            )
        if index in found:
            raise DatasetError(
                f"{folder.parent}: {found[index].name} and {folder.name} are both class {index}; "
                "expected one folder per class"
            )
        found[index] = folder
    if unknown and not found:
        raise unknown
    return found


def _are_one(first: Path, second: Path) -> bool:
    # `samefile` costs two system calls, and only a symlink makes two folders of a tree one.
    return (first.is_symlink() or second.is_symlink()) and first.samefile(second)


def _refuse_odd_one_out(folders: Sequence[Path]) -> None:
    """Raise an error for a folder without an index, if most of the others have one."""
    others = [folder for folder in folders if not is_index(folder) and _may_be_class(folder)]
    count = sum(map(is_index, folders))
    if others and len(others) <= count:
        raise DatasetError(
            f"{others[0]}: {others[0].name!r} holds images or tensors but is not a class index, "
            f"expected one since {others[0].parent} has {count} folders of that kind. Rename it to "
            "its index, or move it out of the dataset."
        )


def _class_folders(root: Path, left_out: LeftOut) -> tuple[Path, list[Path]]:
    """Return the folder that holds the class folders, and those."""
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
        return _class_folders(sets[0], left_out)
    _require_images(root, folders)
    return root, folders


def _folders_in(root: Path, left_out: LeftOut) -> list[Path]:
    """Return the folders of a folder in order, and note its images and system folders."""
    folders = []
    # `scandir` has no order, and messages and notes must not differ between machines.
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
                f"CLASS/IMAGE or CLASS/{_NESTED}/IMAGE. Move the images up."
            )
        raise DatasetError(
            f"{root}: holds no images itself; name a set in it, perhaps {' or '.join(deeper)}"
        )


def _may_be_class(folder: Path) -> bool:
    """Return whether a folder looks like a class or a set."""
    # Such a folder is never left out silently: images would be lost.
    return not is_companion(folder.name) and (
        holds_images(folder) or _holds(folder, TENSOR_SUFFIXES)
    )


def holds_images(folder: Path) -> bool:
    """Return whether image files lie directly in a folder, or in a folder `images` in it."""
    return _holds(folder, SUFFIXES) or _holds(folder / _NESTED, SUFFIXES)


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


def _image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return a class's images in natural order, from its folder or a folder `images` in it."""
    images, folders = _listed(folder, left_out)
    nested = folder / _NESTED
    # Only if there are no others: beside images, such a folder holds something else.
    if not images and nested in folders:
        folders.remove(nested)
        images, deeper = _listed(nested, left_out)
        folders += deeper
    left_out.folders += folders
    if not images:
        # The images may lie one folder too deep, which the message then names.
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
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not is_system_file(entry.name)]
    except OSError as cause:
        raise DatasetError(f"{folder}: cannot be listed ({cause.strerror})") from cause
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
