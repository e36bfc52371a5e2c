"""Reading training and test sets: anything that `recover` reads or writes, without a model.

A set's classes are named by what it states of them itself: its folders, its manifest, or the class
map that `--classes` or a file of tensors names (`diver_trt.evaluation.namings`). Otherwise they are
numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diver_trt.bundle import MAX_CLASSES, MAX_SIDE
from diver_trt.counted import counted
from diver_trt.digits import find_source
from diver_trt.distilled.arrays import read_tensors
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    Classes,
    imagenet_subsets,
    imagenet_wnids,
    load_class_map,
)
from diver_trt.distilled.companion import recovered_folder
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.folders import own_classes
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.tensor_files import find_tensor_files
from diver_trt.errors import DatasetError, UsageError
from diver_trt.evaluation.image_set import ImageSet, count_shared
from diver_trt.evaluation.namings import Names, are_wnids, folder_names, namings, shared
from diver_trt.manifest import open_recovered
from diver_trt.pixels import square
from diver_trt.progress import OnProgress

_IMAGENET = Classes(IMAGENET_CLASSES, owner="ImageNet-1K has")


@dataclass(frozen=True, slots=True)
class ListedSet:
    """A set whose images are listed, but not read.

    Attributes:
        dataset: The images and the class of each.
        namings: The ways in which its classes are named, the preferred one first; none where they
            are numbers.
    """

    dataset: Dataset
    namings: tuple[Names, ...] = ()

    @property
    def names(self) -> Names | None:
        """Name of each class in the preferred way, or None."""
        return self.namings[0] if self.namings else None

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
    notes: tuple[str, ...]


def read_sets(
    train: Mapping[str, Path],
    test: Path,
    *,
    side: int | None = None,
    options: ReadOptions | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Sets:
    """Read training sets and a test set at one size.

    Where the test set's folders are wnids, those of no training set are left out: ImageNet's
    validation images serve every subset.

    Args:
        train: Folders or files by name.
        test: A folder or file.
        side: Side in pixels; None is the shorter side of each training set's first image, the
            smallest of them. Images are cropped to their central square and resized bicubically.
        options: What the user states of the training sets that are not recovered ones; the class
            map is that of every set whose classes are numbers.
        on_progress: Receives what is read, how many images are, and of how many.

    Raises:
        DatasetError: If a set cannot be read.
        UsageError: If there is no training set, the size is out of range, or the class map is
            unknown.
    """
    if not train:
        raise UsageError("found no training set; expected one or more")
    options = options or ReadOptions()
    listed = {name: list_set(path, options) for name, path in train.items()}
    wanted = min(one.side for one in listed.values()) if side is None else side
    if not 1 <= wanted <= MAX_SIDE:
        raise UsageError(f"--image-size {wanted}: expected a whole number from 1 to {MAX_SIDE}")
    # Only the class map: the other options are stated of the training sets.
    listed, tested = _agreed(listed, list_set(test, ReadOptions(options.classes)))
    known = {name for one in listed.values() for name in one.names or () if name}
    left_out = _left_out(tested, known)
    notes = [
        f"{path}: {note}"
        for path, one in (*((train[name], one) for name, one in listed.items()), (test, tested))
        for note in one.dataset.origin.notes
    ]
    if left_out:
        notes.append(f"{test}: left out {counted(len(left_out), 'class')} of no training set")
    notes += [
        f"{name}: only one of it and the test set names its classes; they are matched by number, "
        f"{_first(one.names or tested.names or ())}"
        for name, one in listed.items()
        if (one.names is None) != (tested.names is None)
        # Those are refused when they are matched.
        and not are_wnids(one.names or tested.names or ())
    ]
    loaded = {name: _load(one, wanted, name, on_progress) for name, one in listed.items()}
    test_images = _load(tested, wanted, "test images", on_progress, left_out)
    notes += [
        f"{name}: {count:,} of its {len(loaded[name].labels):,} images are test images too, so its "
        "accuracy is not that on unseen images"
        for name, count in count_shared(loaded, test_images).items()
        if count
    ]
    return Sets(train=loaded, test=test_images, notes=tuple(notes))


def list_set(path: Path, options: ReadOptions | None = None) -> ListedSet:
    """Detect the format of a set and list its images.

    Args:
        path: A folder of class folders, a file of tensors, a folder of such files, or a recovered
            dataset; `digits` are the distilled digits that come with diver-trt.
        options: What the user states of it.

    Raises:
        DatasetError: If it cannot be read.
        UsageError: If the class map is unknown.
    """
    options = options or ReadOptions()
    path = find_source(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if folder := recovered_folder(path):
        return _list_recovered(folder, options.classes)
    if files := find_tensor_files(path):
        parts = [read_tensors(file, options) for file in files]
        if options.classes is None:
            options = replace(options, classes=parts[0].subset)
        count = max(part.labels.num_classes for part in parts)
        return _listed(path, options, Classes(count))
    own = own_classes(path)
    if own.names is None:
        return _listed(path, options, Classes(own.count))
    dataset = read_dataset(path, Classes(own.count, own.names), replace(options, classes=None))
    return ListedSet(dataset, (own.names,))


def _listed(path: Path, options: ReadOptions, numbers: Classes) -> ListedSet:
    """List a set with numbered classes, whose class map `options` may name."""
    if options.classes is None:
        return ListedSet(read_dataset(path, numbers, options))
    # As classes of ImageNet, whose labels give the wnids.
    dataset = read_dataset(path, _IMAGENET, options)
    wnids = imagenet_wnids()
    # A subset as it was read, since some methods have an order of their own.
    subset = dataset.classes in imagenet_subsets()
    of_map = load_class_map(dataset.classes if subset else options.classes, _IMAGENET).names
    return ListedSet(
        dataset,
        namings(
            (
                {index: of_map[index] for index in dataset.labels},
                {index: wnids[label] for index, label in dataset.labels.items()},
            )
        ),
    )


def _list_recovered(path: Path, classes: str | None) -> ListedSet:
    """List a recovered set, which has its model's names and those of the distilled images."""
    manifest = open_recovered(path).manifest
    # The manifest has every class of the model that occurs, and that is all that is needed here.
    of_imagenet = any(entry.wnid for entry in manifest.classes)
    dataset = read_dataset(path, _IMAGENET if of_imagenet else Classes(MAX_CLASSES))
    # In the order of preference.
    found = [
        {entry.index: entry.wnid or entry.name for entry in manifest.classes},
        {entry.index: entry.own_name for entry in manifest.classes},
        folder_names(manifest),
    ]
    # Behind the manifest's own names: the map is that of sets whose classes are numbers.
    if classes is not None and not of_imagenet:
        of_map = dict(enumerate(load_class_map(classes, Classes(MAX_CLASSES)).names))
        found.append({index: of_map.get(index) for index in dataset.labels})
    return ListedSet(dataset, namings(found))


def _agreed(
    listed: Mapping[str, ListedSet], tested: ListedSet
) -> tuple[dict[str, ListedSet], ListedSet]:
    """Return the sets, each with the one naming that the test set shares, where there is one."""
    if not tested.namings:
        return {**listed}, tested

    def found(theirs: Names) -> dict[str, Names | None]:
        return {name: shared(one.namings, theirs) for name, one in listed.items()}

    def all_agree(theirs: Names) -> bool:
        return all(names or not listed[name].namings for name, names in found(theirs).items())

    # If no naming suits every set, the refusal names the classes in the preferred way.
    theirs = next(filter(all_agree, tested.namings), tested.namings[0])
    chosen = {
        name: replace(listed[name], namings=(names,)) if names else listed[name]
        for name, names in found(theirs).items()
    }
    return chosen, replace(tested, namings=(theirs,))


def _left_out(tested: ListedSet, known: Collection[str]) -> set[int]:
    """Return the indices of a test set's wnids that no training set has."""
    # A training class that the test images lack is an error to report, and no reason to leave test
    # images out.
    if not known or not are_wnids(tested.names or ()) or not {*known} <= {*(tested.names or ())}:
        return set()
    return {i for i, name in enumerate(tested.names or ()) if name and name not in known}


def _first(names: Names) -> str:
    """Return the first numbers and names, for a note."""
    few = [f"{i} is {name}" for i, name in enumerate(names) if name][:3]
    return ", ".join(few) + ", …"


def _load(
    listed: ListedSet,
    side: int,
    what: str,
    on_progress: OnProgress,
    left_out: Collection[int] = (),
) -> ImageSet:
    dataset, names = listed.dataset, listed.names
    samples = [sample for sample in dataset.samples if sample.index not in left_out]
    # One array, filled image by image: a list of arrays would be in memory a second time.
    images = np.empty((len(samples), side, side, 3), np.uint8)
    for i, sample in enumerate(samples):
        pixels = dataset.images.read(sample.position)
        images[i] = square(pixels, side, dataset.images.name(sample.position))
        on_progress(f"reading {what}", i + 1, len(samples))
    loaded = ImageSet(images, np.array([sample.index for sample in samples], np.int64), names)
    if names is not None and are_wnids(names):
        # A few classes of ImageNet have its indices; wnids are always matched by name.
        return loaded.renumbered(np.unique(loaded.labels))
    return loaded
