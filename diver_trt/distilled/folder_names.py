"""The class that a folder's name stands for: an index, a wnid, or a name of a class."""

from __future__ import annotations

from pathlib import Path, PurePath

from diver_trt.distilled.class_map import (
    WNID,
    ClassMap,
    ModelClasses,
    imagenet_wnids,
    is_imagenet,
    number_of,
    other_classes,
    plain_name,
    synonyms,
    without_bom,
)
from diver_trt.errors import DatasetError, shown


def require_printable(path: Path) -> None:
    """Refuse a file or folder whose name would garble a message or the manifest.

    Raises:
        DatasetError: If the name has characters that cannot be printed.
    """
    # Names are quoted in messages, where a line break or an escape sequence could fake another
    # line.
    if not without_bom(path.name).isprintable():
        raise DatasetError(
            f"{path.parent}: holds a name that cannot be printed, {path.name!a}; rename it"
        )


def is_index(folder: PurePath) -> bool:
    """Return whether a folder's name is a class index."""
    return number_of(folder.name) is not None


def index_of(folder: Path) -> int:
    """Return the number in the name of a folder that `is_index`."""
    number = number_of(folder.name)
    assert number is not None, "its name is an index"
    return number


def class_of_index(folder: Path, class_map: ClassMap) -> int:
    """Return the class of a folder whose name is an index, or a number that the map names.

    Raises:
        DatasetError: If the index is out of range, or the map names other numbers.
    """
    index = index_of(folder)
    if (numbers := class_map.numbers) is not None:
        if index not in numbers:
            raise DatasetError(
                f"{folder}: {class_map.name} names classes by number, and {index} is not among "
                "them; add it, or remove the folder"
            )
        return numbers[index]
    if index >= len(class_map):
        raise DatasetError(
            f"{folder}: class {index} is out of range; {class_map.owner} classes 0 to "
            f"{len(class_map) - 1}"
        )
    return index


class ClassNames:
    """The names of a class map and a model, looked up regardless of case, `_` and Unicode form.

    Args:
        class_map: The classes of the dataset.
        bundle: The model, whose class names and wnids the folders may have too.
    """

    def __init__(self, class_map: ClassMap, bundle: ModelClasses) -> None:
        self._class_map, self._bundle = class_map, bundle
        own: dict[str, list[int]] = {}
        models: dict[str, list[int]] = {}
        for index, (name, label) in enumerate(zip(class_map.names, class_map.labels, strict=True)):
            if name:
                own.setdefault(plain_name(name), []).append(index)
            for synonym in synonyms(bundle.class_names[label]) if bundle.class_names else ():
                models.setdefault(synonym, []).append(index)
        # The map takes precedence over the model's own name.
        self._indices = {**models, **own}

    def find(self, folder: Path) -> int:
        """Return the class of a folder named by a wnid or a class name.

        Raises:
            DatasetError: If the name is unknown, or that of several classes.
        """
        if WNID.fullmatch(without_bom(folder.name)):
            return _class_of_wnid(folder, self._class_map, self._bundle)
        matches = self._indices.get(plain_name(folder.name), [])
        if len(matches) == 1:
            return matches[0]
        problem = (
            f"is the name of {len(matches)} classes"
            if matches
            else "is not a class index, wnid or known class name"
        )
        raise DatasetError(
            f"{folder}: {folder.name!r} {problem}; {self._remedy()} If it is not a class, move it "
            "out of the dataset."
        )

    def _remedy(self) -> str:
        names = [name for name in self._class_map.names if name]
        if self._class_map.name == "model" or not names:
            return (
                "rename it to its index, or give a class map: --classes FILE with lines NAME LABEL."
            )
        few = ", ".join(shown(repr(name)) for name in names[:3])
        more = ", …" if len(names) > 3 else ""
        return f"{self._class_map.name} names {few}{more}. Correct it, or rename the folder."


def _class_of_wnid(folder: Path, class_map: ClassMap, bundle: ModelClasses) -> int:
    wnid = without_bom(folder.name)
    # A map may name classes by any wnid, also one that is not among ImageNet-1K's.
    if wnid not in class_map.names:
        if not is_imagenet(bundle):
            raise DatasetError(
                f"{folder}: is a wnid of ImageNet, but the model has {other_classes(bundle)}; use "
                "a model of ImageNet-1K"
            )
        if wnid not in imagenet_wnids():
            raise DatasetError(
                f"{folder}: is not a wnid of ImageNet-1K; expected one of its 1000 classes"
            )
    # Once, and not for each of a thousand classes.
    is_known = wnid in imagenet_wnids() and is_imagenet(bundle)
    label = imagenet_wnids().index(wnid) if is_known else None
    known = zip(class_map.names, class_map.labels, strict=True)
    matches = [i for i, named in enumerate(known) if wnid == named[0] or label == named[1]]
    if len(matches) != 1:
        problem = "occurs twice in" if matches else "is not among the classes of"
        raise DatasetError(
            f"{folder}: this wnid {problem} {class_map.name}; choose another class map with "
            "--classes"
        )
    return matches[0]
