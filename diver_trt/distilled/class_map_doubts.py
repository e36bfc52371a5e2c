"""Doubts about a file of classes, whose labels may not be the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from diver_trt.counted import counted
from diver_trt.distilled.class_map import (
    WNID,
    ClassMap,
    ModelClasses,
    imagenet_names,
    imagenet_subsets,
    imagenet_wnids,
    is_imagenet,
    number_of,
    plain_name,
    synonyms,
)
from diver_trt.errors import shown


def class_map_doubts(class_map: ClassMap, model: ModelClasses) -> list[str]:
    """Return notes on the labels that a file of classes gives; other maps have no doubts.

    Args:
        class_map: The classes of a dataset.
        model: The model.
    """
    # The authors of a subset may have repeated a class on purpose.
    if class_map.name == "model" or class_map.name in imagenet_subsets():
        return []
    doubts = (_repeated(class_map), _contradicted(class_map, model), _numbered_as_text(class_map))
    return [doubt for doubt in doubts if doubt]


def subset_doubt(subset: str | None, class_map: ClassMap, model: ModelClasses) -> str | None:
    """Return a note if the model's classes are not those of the subset that a set's path names.

    Args:
        subset: The subset of ImageNet that the path, or a text in the file, names.
        class_map: The classes of a dataset that are numbers.
        model: The model, which may be of such a subset itself.
    """
    # A model of all ImageNet needs the subset, and a file of classes replaces its order.
    if subset is None or class_map.name != "model" or is_imagenet(model) or not model.class_names:
        return None
    known = _imagenet_labels()
    wrong = []
    for index, (label, names) in enumerate(
        zip(imagenet_subsets()[subset], model.class_names, strict=False)
    ):
        # Names that are not ImageNet's do not show which classes these are.
        labels = set[int]().union(*(known.get(synonym, ()) for synonym in synonyms(names)))
        if labels and label not in labels:
            wrong.append((index, label, names))
    if not wrong:
        return None
    index, label, names = wrong[0]
    there = imagenet_wnids()[label] if WNID.fullmatch(names) else imagenet_names()[label]
    return (
        f"its path names {subset}, whose classes are not the model's in this order: class {index} "
        f"is {there!r} there, and {shown(repr(names))} in the model ({len(wrong)} of "
        f"{len(imagenet_subsets()[subset])} differ). They are matched by number: is that right? "
        "--classes FILE states the model's label of each"
    )


@cache
def _imagenet_labels() -> dict[str, set[int]]:
    """Return the labels of ImageNet-1K that each of its names and wnids stands for."""
    return _labels_of(imagenet_names()) | _labels_of(imagenet_wnids())


def _labels_of(names: Sequence[str]) -> dict[str, set[int]]:
    """Return the labels that each synonym in the names of classes stands for."""
    known: dict[str, set[int]] = {}
    for label, name in enumerate(names):
        for synonym in synonyms(name):
            known.setdefault(synonym, set()).add(label)
    return known


def _repeated(class_map: ClassMap) -> str | None:
    """Return a note if several indices have the same class."""
    repeated = [label for label, count in Counter(class_map.labels).items() if count > 1]
    if not repeated:
        return None
    indices = [i for i, label in enumerate(class_map.labels) if label == repeated[0]]
    return (
        f"{class_map.name} gives {len(indices)} indices ({', '.join(map(str, indices[:5]))}) the "
        f"same class, {repeated[0]}: is that intended?"
    )


def _contradicted(class_map: ClassMap, model: ModelClasses) -> str | None:
    """Return a note if a name is that of another class of the model than its label."""
    # torchvision's `class_to_idx` has the form of a class map, but numbers the dataset's classes.
    known = _labels_of(model.class_names or ())
    if is_imagenet(model):
        known |= _labels_of(imagenet_wnids())
    wrong = [
        (name, label, labels)
        for name, label in zip(class_map.names, class_map.labels, strict=True)
        # A number is an index, whatever the model calls its classes.
        if name and number_of(name) is None
        if label not in (labels := known.get(plain_name(name), {label}))
    ]
    if not wrong:
        return None
    name, label, labels = wrong[0]
    return (
        f"{class_map.name} gives {counted(len(wrong), 'class')} another label than the model has "
        f"for that name, the first of them {shown(repr(name))}: {label} instead of {min(labels)}: "
        "are its numbers the model's labels?"
    )


def _numbered_as_text(class_map: ClassMap) -> str | None:
    """Return a note if labels count the numbers of classes in the order of their digits."""
    # As `class_to_idx` does for folders `0`, `1`, `10`, `2`, which are indices here.
    if class_map.numbers is None:
        return None
    # A file that names classes by numbers is in their order.
    by_number = [name for name in class_map.names if name]
    as_texts = sorted(by_number)
    ranks = {name: rank for rank, name in enumerate(as_texts)}
    # Numbers of one length, such as `00000` to `00010`, have the same order as texts.
    if as_texts == by_number or class_map.labels != tuple(ranks[name] for name in by_number):
        return None
    places = {name: place for place, name in enumerate(by_number)}
    turn = next(pair for pair in pairwise(as_texts) if places[pair[0]] > places[pair[1]])
    return (
        f"{class_map.name} gives its names labels in the order of texts ({turn[0]!r} before "
        f"{turn[1]!r}), as torchvision's class_to_idx does: are its numbers the model's labels?"
    )
