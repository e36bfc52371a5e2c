"""Reading training and test sets: anything that `recover` reads or writes, without a model.

A set's classes are named by what it says of them itself: its folders, its manifest, or the ImageNet
subset that its path or `--classes` names. Otherwise they are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diver_trt.bundle import MAX_CLASSES, MAX_SIDE
from diver_trt.digits import find_source
from diver_trt.distilled.arrays import Tensors, read_tensors
from diver_trt.distilled.class_map import IMAGENET_CLASSES, WNID, imagenet_wnids
from diver_trt.distilled.companion import recovered_folder
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.folders import own_classes
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.subset_names import subset_of_path
from diver_trt.distilled.tensor_files import find_tensor_files
from diver_trt.errors import DatasetError, UsageError
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.manifest import open_recovered
from diver_trt.pixels import square

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose classes a set has (`ModelClasses`): its own, or those of ImageNet-1K."""

    num_classes: int
    class_names: Names | None = None
    model_id: str = "an evaluation"


_IMAGENET = _Owner(IMAGENET_CLASSES)


@dataclass(frozen=True, slots=True)
class ListedSet:
    """A set whose images are listed, but not read.

    Attributes:
        dataset: The images and the class of each.
        names: Name of each class, or None where classes are numbers.
    """

    dataset: Dataset
    names: Names | None

    @property
    def side(self) -> int:
        """The shorter side of the first image, in pixels."""
        return min(self.dataset.origin.image_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """The sets of an evaluation, all of one size.

    Attributes:
        train: Training sets by name.
        test: The test set.
        notes: What a user should know, a sentence each.
    """

    train: Mapping[str, ImageSet]
    test: ImageSet
    notes: tuple[str, ...] = field(default=())


def read_sets(
    train: Mapping[str, Path],
    test: Path,
    *,
    side: int | None = None,
    classes: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Sets:
    """Read training sets and a test set at one size.

    Where the test set's folders are wnids, those of no training set are left out: ImageNet's
    validation images serve every subset.

    Args:
        train: Folders or files by name.
        test: A folder or file.
        side: Side in pixels; None is the smallest shorter side of the training images. Images are
            cropped to their central square and resized bicubically.
        classes: The ImageNet subset of sets with numbered classes (`load_class_map`).
        on_progress: Receives what is read, how many images are, and of how many.

    Raises:
        DatasetError: If a set cannot be read.
        UsageError: If the size is out of range, or `classes` is unknown.
    """
    listed = {name: list_set(path, classes) for name, path in train.items()}
    wanted = side or min(one.side for one in listed.values())
    if not 1 <= wanted <= MAX_SIDE:
        raise UsageError(f"--image-size {wanted}: expected a whole number from 1 to {MAX_SIDE}")
    known = {name for one in listed.values() for name in one.names or ()}
    tested = list_set(test, classes)
    left_out = _left_out(tested, known)
    notes = [
        f"{path}: {note}"
        for path, one in ((train[name], one) for name, one in listed.items())
        for note in one.dataset.origin.notes
    ]
    if left_out:
        notes.append(f"{test}: {len(left_out)} classes of no training set are left out")
    notes += [
        f"{name}: only one of it and the test set names its classes; they are matched by number, "
        f"{_first(one.names or tested.names or ())}"
        for name, one in listed.items()
        if (one.names is None) != (tested.names is None)
    ]
    return Sets(
        train={name: _load(one, wanted, name, on_progress) for name, one in listed.items()},
        test=_load(tested, wanted, "test images", on_progress, left_out),
        notes=tuple(notes),
    )


def list_set(path: Path, classes: str | None = None) -> ListedSet:
    """Detect the format of a set and list its images.

    Args:
        path: A folder of class folders, a file of tensors, a folder of such files, or a recovered
            dataset; `digits` are the distilled digits that come with diver-trt.
        classes: The ImageNet subset of a set with numbered classes (`load_class_map`), or None.

    Raises:
        DatasetError: If it cannot be read.
        UsageError: If `classes` is unknown.
    """
    path = find_source(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if folder := recovered_folder(path):
        return _list_recovered(folder)
    if files := find_tensor_files(path):
        parts = [read_tensors(file, ReadOptions(classes=classes)) for file in files]
        options = ReadOptions(classes=classes or _subset(parts[0]))
        count = max(part.labels.num_classes for part in parts)
        return _listed(path, options, _Owner(count))
    own = own_classes(path)
    if own.names is None:
        return _listed(path, ReadOptions(classes=classes), _Owner(own.count))
    return ListedSet(read_dataset(path, _Owner(own.count, own.names)), own.names)


def _subset(tensors: Tensors) -> str | None:
    return tensors.classes or subset_of_path(tensors.path)


def _listed(path: Path, options: ReadOptions, numbers: _Owner) -> ListedSet:
    """List a set with numbered classes, which `options` may name as a subset of ImageNet."""
    if options.classes is None:
        return ListedSet(read_dataset(path, numbers), None)
    dataset = read_dataset(path, _IMAGENET, options)
    labels = dataset.labels
    wnids = imagenet_wnids()
    names = (wnids[labels[i]] if i in labels else "" for i in range(max(labels) + 1))
    return ListedSet(dataset, tuple(names))


def _list_recovered(path: Path) -> ListedSet:
    classes = open_recovered(path).manifest.classes
    # The manifest has every class of the model that occurs, and that is all that is needed here.
    of_imagenet = any(entry.wnid for entry in classes)
    owner = _IMAGENET if of_imagenet else _Owner(MAX_CLASSES)
    found = {entry.index: entry.wnid or entry.name for entry in classes}
    if not all(found.values()):
        return ListedSet(read_dataset(path, owner), None)
    names = tuple(found.get(index) or "" for index in range(max(found) + 1))
    return ListedSet(read_dataset(path, owner), names)


def _left_out(tested: ListedSet, known: Collection[str]) -> set[int]:
    """Return the indices of a test set's wnids that no training set has."""
    if not known or not _has_wnids(tested) or not {*known} <= {*(tested.names or ())}:
        return set()
    return {i for i, name in enumerate(tested.names or ()) if name and name not in known}


def _has_wnids(listed: ListedSet) -> bool:
    names = [name for name in listed.names or () if name]
    return bool(names) and all(map(WNID.fullmatch, names))


def _first(names: Names) -> str:
    """Return the first numbers and names, for a note."""
    few = [f"{i} is {name}" for i, name in enumerate(names) if name][:3]
    return ", ".join(few) + ", …"


def _load(
    listed: ListedSet,
    side: int,
    what: str,
    on_progress: Callable[[str, int, int], None],
    left_out: Collection[int] = (),
) -> ImageSet:
    dataset, names = listed.dataset, listed.names
    samples = [sample for sample in dataset.samples if sample.index not in left_out]
    images = np.empty((len(samples), side, side, 3), np.uint8)
    for i, sample in enumerate(samples):
        pixels = dataset.images.read(sample.position)
        images[i] = square(pixels, side, dataset.images.name(sample.position))
        on_progress(f"reading {what}", i + 1, len(samples))
    indices = [sample.index for sample in samples]
    if names is not None and _has_wnids(listed):
        # Numbered anew, so that networks have no outputs for the rest of ImageNet. Wnids are always
        # matched by name.
        occurring = sorted({*indices})
        indices = [occurring.index(index) for index in indices]
        names = tuple(names[index] for index in occurring)
    return ImageSet(images, np.array(indices, np.int64), names)
