"""Files of tensors joined into one set: parts of one run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.counted import counted
from diver_trt.distilled.arrays import Tensors
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    ClassMap,
    ModelClasses,
    is_imagenet,
    load_class_map,
    subset_needed,
    variant_of,
)
from diver_trt.distilled.class_map_doubts import class_map_doubts, subset_doubt
from diver_trt.distilled.labels import Labels
from diver_trt.distilled.methods import missing_part
from diver_trt.distilled.source import ImageSource, Joined, StoredImages, find_part
from diver_trt.errors import DatasetError

SoftLabel = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorSet:
    """A set of tensors, not yet cut into tiles.

    Attributes:
        images: The images as stored.
        classes: Index of each image's class in the dataset's order.
        class_map: The classes of the model that they are.
        soft_label: Returns the logits of the image at a position, [classes] float32; None if the
            set has hard labels.
        notes: What a user should know.
    """

    images: ImageSource
    classes: list[int]
    class_map: ClassMap
    soft_label: Callable[[int], SoftLabel] | None
    notes: tuple[str, ...]


def join_tensors(
    path: Path, parts: Sequence[Tensors], bundle: ModelClasses, classes: str | None
) -> TensorSet:
    """Join the parts of a set.

    Args:
        path: The input, for messages.
        parts: Its files, one or more.
        bundle: The model.
        classes: The class map that the user names (`load_class_map`), or None.

    Raises:
        DatasetError: If the parts do not belong together, or do not fit the model.
    """
    # Check that the parts and the class map fit, then collect notes.
    _require_alike(path, parts)
    sources = [StoredImages(part.path, part.images, part.normalisation) for part in parts]
    names = [part.path.parent.name for part in parts]
    num_classes = max(part.labels.num_classes for part in parts)
    class_map = _class_map(parts[0], bundle, classes, num_classes)
    # An index in a tensor could be the map's number or its position; they agree only from 0 on.
    if class_map.numbers is not None and set(class_map.numbers) != set(range(len(class_map))):
        raise DatasetError(
            f"--classes {class_map.name}: names classes by numbers that are not 0 to "
            f"{len(class_map) - 1}, and tensors number theirs from 0; expected those, or one LABEL "
            "per line without names"
        )
    indices = np.concatenate([part.labels.classes for part in parts]).tolist()
    if max(indices, default=0) >= len(class_map):
        raise DatasetError(
            f"{path}: class {max(indices)} is out of range; {class_map.owner} classes 0 to "
            f"{len(class_map) - 1}{', and labels are numbered from 0' if min(indices) > 0 else ''}"
        )
    # Parts of one run usually have the same notes.
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    notes += class_map_doubts(class_map, bundle)
    if doubt := subset_doubt(_subset(parts[0]), class_map, bundle):
        notes.append(doubt)
    if len(parts) > 1:
        notes.append(f"{len(parts)} parts, one after the other: {', '.join(names)}")
    if (missing := missing_part(names)) is not None:
        notes.append(f"part {missing} was not found: is the set complete?")
    if num_classes != len(class_map):
        notes.append(
            f"its labels are of {counted(num_classes, 'class')}, but {class_map.owner} "
            f"{len(class_map)}: is --classes right?"
        )
    # Labels that begin at 1 leave class 0 empty, and give every image the class after its own.
    if absent := sorted(set(range(num_classes)) - set(indices)):
        notes.append(
            f"{len(absent)} of the {num_classes} classes that its labels count have no images, the "
            f"first of them class {absent[0]}: are its labels numbered from 0?"
        )
    return TensorSet(
        images=sources[0] if len(parts) == 1 else Joined(list(zip(names, sources, strict=True))),
        classes=indices,
        class_map=class_map,
        soft_label=_soft_label(path, parts),
        notes=tuple(notes),
    )


def _require_alike(path: Path, parts: Sequence[Tensors]) -> None:
    first = parts[0]
    common = _facts(first)
    for part in parts[1:]:
        for name, value in _facts(part).items():
            if value != common[name]:
                raise DatasetError(
                    f"{path}: {first.path} and {part.path} differ in their {name} "
                    f"({common[name]} and {value}), so they are not parts of one set; name one of "
                    "them"
                )


def _facts(part: Tensors) -> dict[str, str]:
    """Return what all parts of a set have in common, by its name in messages."""
    return {
        "format": part.format.name,
        "size of images": f"{part.size[1]} x {part.size[0]}",
        "normalisation": part.normalisation.name,
        "collage": str(part.collage or 1),
        "classes": part.classes or "not stated",
        "transform that was undone": part.unwhitened or "none",
        "form of labels": part.labels.form,
    }


def _class_map(
    tensors: Tensors, bundle: ModelClasses, classes: str | None, num_classes: int
) -> ClassMap:
    """Return the classes that the user, the file or its path names, or else the model's own."""
    # Ten numbered classes of a model of a thousand may be any subset, so one must be named.
    if classes is not None:
        return load_class_map(variant_of(classes, tensors.format.name), bundle)
    named = None
    if is_imagenet(bundle) and num_classes < IMAGENET_CLASSES:
        named = _subset(tensors)
        if named is None:
            raise DatasetError(subset_needed(tensors.path, f"has {num_classes} classes"))
    return load_class_map(named or "model", bundle)


def _subset(tensors: Tensors) -> str | None:
    """Return the subset that a file or its path names, as the method that wrote it has it."""
    return tensors.subset and variant_of(tensors.subset, tensors.format.name)


def _soft_label(path: Path, parts: Sequence[Tensors]) -> Callable[[int], SoftLabel] | None:
    labels = [part.labels for part in parts]
    if any(label.rows is None for label in labels):
        return None
    if len({label.num_classes for label in labels}) > 1:
        raise DatasetError(
            f"{path}: its parts have soft labels of different numbers of classes; name one of them"
        )
    # Not a nested function, which could not be pickled.
    return partial(_logits, labels)


def _logits(parts: Sequence[Labels], position: int) -> SoftLabel:
    """Return the soft label at a position in the parts of a set, one after the other."""
    part, position = find_part((len(labels.classes) for labels in parts), position)
    return parts[part].logits(position)
