"""The classes of a class-folder tree, whose folders are named by indices, wnids or names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diver_trt.counted import counted
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    ClassMap,
    ModelClasses,
    is_imagenet,
    load_class_map,
    numbering_needed,
    subset_needed,
)
from diver_trt.distilled.folder_names import ClassNames, class_of_index, index_of, is_index
from diver_trt.distilled.folder_tree import class_folders, image_files, may_be_class
from diver_trt.distilled.left_out import LeftOut
from diver_trt.errors import DatasetError


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
    root, folders = class_folders(path, left_out)
    numbers = _are_indices(folders)
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
    by_class = {index: image_files(found[index], left_out) for index in sorted(found)}
    files = tuple(path for paths in by_class.values() for path in paths)
    return ClassFolders(
        root,
        class_map,
        files,
        tuple(index for index, paths in by_class.items() for _ in paths),
        (*left_out.notes(), *_same_names(root, files)),
    )


def _are_indices(folders: Sequence[Path]) -> bool:
    """Return whether folders are named by index: all that hold images are, and one at least."""
    # A folder of previews or logs beside the classes must not turn indices into names.
    return any(map(is_index, folders)) and not any(
        may_be_class(folder) for folder in folders if not is_index(folder)
    )


def _same_names(root: Path, files: Sequence[Path]) -> list[str]:
    """Return a note on images whose names differ in their suffix alone: `0.jpg` and `0.png`."""
    first: dict[str, Path] = {}
    twins = []
    for file in files:
        other = first.setdefault(str(file.with_suffix("")), file)
        if other is not file:
            twins.append((other, file))
    if not twins:
        return []
    names = " and ".join(file.relative_to(root).as_posix() for file in twins[0])
    return [
        f"the names of {counted(len(twins), 'image')} differ from another one's in the suffix "
        f"alone, such as {names}, and both are read: is one a copy in another format?"
    ]


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
    root, folders = class_folders(path, LeftOut(path))
    classes = [folder for folder in folders if may_be_class(folder)]
    if not classes:
        raise DatasetError(f"{root}: its folders hold no images; expected one folder per class")
    if _are_indices(folders):
        return OwnClasses(max(map(index_of, classes)) + 1, None)
    return OwnClasses(len(classes), tuple(folder.name for folder in classes))


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
            if not numbers and is_index(folder) and may_be_class(folder):
                _refuse_odd_one_out(folders)
            if (numbers and is_index(folder)) or may_be_class(folder):
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
    others = [folder for folder in folders if not is_index(folder) and may_be_class(folder)]
    count = sum(map(is_index, folders))
    if others and len(others) <= count:
        raise DatasetError(
            f"{others[0]}: {others[0].name!r} holds images or tensors but is not a class index, "
            f"expected one since {others[0].parent} has {count} folders of that kind. Rename it to "
            "its index, or move it out of the dataset."
        )
