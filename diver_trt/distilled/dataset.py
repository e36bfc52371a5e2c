"""A distilled dataset, whatever it lies in: `read_dataset` finds out what it is, and says so before anything is done with it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.distilled.arrays import Tensors, read_tensors
from diver_trt.distilled.class_map import (
    IMAGENET_CLASSES,
    ClassMap,
    imagenet_subsets,
    load_class_map,
    subset_needed,
    variant_of,
)
from diver_trt.distilled.collage import collage_note
from diver_trt.distilled.companion import options_beside
from diver_trt.distilled.folders import read_class_folders
from diver_trt.distilled.methods import find_method, recognise
from diver_trt.distilled.methods.base import Found, Method
from diver_trt.distilled.options import MAX_IMAGES, ReadOptions
from diver_trt.distilled.source import ImageFiles, ImageSource, Joined, StoredImages, Tiles
from diver_trt.distilled.subset_names import subset_of_path
from diver_trt.distilled.tensor_files import find_tensor_files
from diver_trt.errors import DatasetError
from diver_trt.manifest import is_recovered, read_recovered
from diver_trt.recovered.journal import JOURNAL

_OPENED = 1000
"""Images that are tried where the first cannot be opened."""

_RECOVERED = Method(
    name="recovered", title="images recovered by diver-trt", structures=("folders",)
)
"""Our own output, which `--format` does not name: its manifest says what it is."""

SoftLabel = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """One distilled image.

    Attributes:
        key: Its name in the recovered dataset, `"{index:05d}/{number:05d}"`; its noise follows from it.
        index: Its class in the dataset's own order.
        label: Its class in the model.
        position: Its place in the dataset's images.
    """

    key: str
    index: int
    label: int
    position: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What a dataset was found to be, and what was assumed where its files do not say.

    Attributes:
        format: Which methods write such files.
        files: The files of tensors, none for folders of images.
        normalisation: Name of the statistics that are undone; None for image files.
        whitening: Hash of the ZCA transform that is undone, None without one.
        collage: Images along a side of each stored one.
        image_size: Width and height of the first image that is fed to the model, in pixels.
        soft_labels: Form of the soft labels, None for hard ones.
        notes: What a user should know.
    """

    format: Method
    files: tuple[str, ...] = ()
    normalisation: str | None = None
    whitening: str | None = None
    collage: int = 1
    image_size: tuple[int, int] = (0, 0)
    soft_labels: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A distilled dataset, class by class in its own order.

    Attributes:
        root: What was given: a folder or a file.
        classes: The class map, by name: a subset, a file or `"model"`.
        samples: Every image.
        images: Where the images are.
        origin: What it was found to be.
        soft_label: Returns the logits of the image at a position, [classes] float32; None where there are none that stay valid.
    """

    root: Path
    classes: str
    samples: tuple[Sample, ...]
    images: ImageSource
    origin: Origin
    soft_label: Callable[[int], SoftLabel] | None

    @property
    def labels(self) -> dict[int, int]:
        """The model's class of each index that occurs, in order."""
        return {sample.index: sample.label for sample in self.samples}

    @property
    def summary(self) -> str:
        """One line: what it is, and as what it will be read."""
        counts = Counter(sample.index for sample in self.samples).values()
        each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        origin = self.origin
        width, height = origin.image_size
        tensors = " tensors" if origin.files else ""
        parts = [
            f"{origin.format.title}{tensors}",
            f"{len(counts)} classes x {each}",
            f"{width} px" if width == height else f"{width} x {height} px",
        ]
        if origin.whitening:
            parts.append("ZCA-whitened")
        if origin.normalisation == "none":
            parts.append("not normalised")
        elif origin.normalisation:
            parts.append(f"{origin.normalisation}-normalised")
        if origin.collage > 1:
            parts.append(f"cut from {origin.collage} x {origin.collage} collages")
        if origin.soft_labels:
            parts.append(f"labels are {origin.soft_labels}")
        parts.append(
            "the model's own classes"
            if self.classes == "model"
            else f"classes as in {self.classes}"
        )
        return ", ".join(parts)


def read_dataset(path: Path, bundle: Bundle, options: ReadOptions | None = None) -> Dataset:
    """Find out what a distilled dataset is; images are looked at only where they tell what they are.

    Args:
        path: A folder of class folders, a file of tensors, a folder of such files, or a recovered dataset.
        bundle: The model, whose classes the dataset's are mapped to.
        options: What is known of it.

    Raises:
        DatasetError: It is no distilled dataset, is ambiguous, or does not fit the model.
    """
    options = options or ReadOptions()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if (path / JOURNAL).is_file() and not is_recovered(path):
        raise DatasetError(
            f"{path}: is a recovery that has not come to its end; run the same command again to finish it first"
        )
    if is_recovered(path):
        _refuse(
            path,
            options,
            "is a recovered dataset, whose manifest says what it is",
            *(field.name for field in fields(options)),
        )
        return _from_recovered(path, bundle)
    if files := find_tensor_files(path):
        options = options_beside(path, options)
        return _from_tensors(path, [read_tensors(file, options) for file in files], bundle, options)
    _refuse(
        path, options, "holds images, which are not normalised", "normalisation", "zca_reference"
    )
    return _from_folders(path, bundle, options)


def _refuse(path: Path, options: ReadOptions, reason: str, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise DatasetError(f"--{_OPTIONS.get(name, name)}: {path} {reason}; leave it out")


_OPTIONS = {"method": "format", "zca_reference": "zca-reference"}


def _from_folders(path: Path, bundle: Bundle, options: ReadOptions) -> Dataset:
    found = read_class_folders(path, bundle, options.classes)
    method = (
        find_method(options.method, "folders")
        if options.method
        else recognise(Found("folders", found.files[0], found.folder_of(0)))
    )
    images = ImageFiles(found.root, found.files)
    stated = options.collage or method.collage_in_path(found.root)
    collage = stated or method.default_collage(min(_first_size(path, images)))
    notes = [method.advice] if method.advice else []
    notes += [*found.notes, *_shared_labels(found.class_map)]
    if doubt := collage_note(images, collage, stated=stated is not None):
        notes.append(doubt)
    if (folders := len(set(found.classes))) != len(found.class_map):
        notes.append(
            f"it has {folders} class folders, but {_owner(found.class_map)} {len(found.class_map)} classes: is --classes right?"
        )
    origin = Origin(method, collage=collage, notes=tuple(notes))
    return _assemble(
        path,
        origin,
        images,
        found.classes,
        found.class_map.name,
        dict(enumerate(found.class_map.labels)),
    )


def _from_recovered(path: Path, bundle: Bundle) -> Dataset:
    found = read_recovered(path, bundle)
    return _assemble(
        path,
        Origin(_RECOVERED),
        ImageFiles(path, found.files),
        found.indices,
        found.class_map,
        found.labels,
    )


def _from_tensors(
    path: Path, parts: Sequence[Tensors], bundle: Bundle, options: ReadOptions
) -> Dataset:
    first = parts[0]
    for part in parts[1:]:
        if (part.format, part.side, part.normalisation) != (
            first.format,
            first.side,
            first.normalisation,
        ):
            raise DatasetError(
                f"{path}: {first.path} and {part.path} are of different kinds, so they are no parts of one set; name one of them"
            )
    sources = [
        StoredImages(part.path, part.images, part.normalisation, part.whitening) for part in parts
    ]
    names = [part.path.parent.name for part in parts]
    images = sources[0] if len(parts) == 1 else Joined(list(zip(names, sources, strict=True)))
    class_map = _class_map(
        first,
        bundle,
        options.classes,
        num_classes := max(part.labels.num_classes for part in parts),
    )
    classes = np.concatenate([part.labels.classes for part in parts]).tolist()
    if max(classes, default=0) >= len(class_map):
        raise DatasetError(
            f"{path}: class {max(classes)} is out of range; {_owner(class_map)} classes 0 to {len(class_map) - 1}"
            f"{', and labels are numbered from 0' if min(classes) > 0 else ''}"
        )
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    notes += _shared_labels(class_map)
    if len(parts) > 1:
        notes.append(f"{len(parts)} parts, one after the other: {', '.join(names)}")
    if num_classes != len(class_map):
        notes.append(
            f"its labels are of {num_classes} classes, but {_owner(class_map)} {len(class_map)}: is --classes right?"
        )
    if absent := sorted(set(range(num_classes)) - set(classes)):
        notes.append(
            f"{len(absent)} of the {num_classes} classes that its labels count have no images, the first of them class "
            f"{absent[0]}: are its labels numbered from 0?"
        )
    stated = options.collage or first.collage
    collage = stated or first.format.default_collage(first.side)
    if doubt := collage_note(images, collage, stated=stated is not None):
        notes.append(doubt)
    soft = all(part.labels.rows is not None for part in parts)
    if soft and len({part.labels.num_classes for part in parts}) > 1:
        raise DatasetError(
            f"{path}: its parts have soft labels of different numbers of classes; name one of them"
        )
    if soft and collage > 1:
        notes.append(
            "its soft labels are of whole collages, not of the images in them: they are dropped"
        )
    origin = Origin(
        first.format,
        files=tuple(
            part.path.relative_to(path).as_posix() if part.path != path else path.name
            for part in parts
        ),
        normalisation=first.normalisation.name,
        whitening=first.whitening.sha256 if first.whitening else None,
        collage=collage,
        soft_labels=None if first.labels.form == "hard" else first.labels.form,
        notes=tuple(notes),
    )
    soft_label = _soft_label(parts) if soft and collage == 1 else None
    return _assemble(
        path, origin, images, classes, class_map.name, dict(enumerate(class_map.labels)), soft_label
    )


def _shared_labels(class_map: ClassMap) -> list[str]:
    """Return a note if a file of classes gives several indices one class; a known subset may do so on purpose."""
    if class_map.name in imagenet_subsets():
        return []
    shared = [label for label, count in Counter(class_map.labels).items() if count > 1]
    if not shared:
        return []
    indices = [i for i, label in enumerate(class_map.labels) if label == shared[0]]
    return [
        f"{class_map.name} gives {len(indices)} indices ({', '.join(map(str, indices[:5]))}) the same class, "
        f"{shared[0]}: is that meant?"
    ]


def _owner(class_map: ClassMap) -> str:
    return "the model has" if class_map.name == "model" else f"{class_map.name} has"


def _soft_label(parts: Sequence[Tensors]) -> Callable[[int], SoftLabel]:
    starts = list(accumulate((len(part.labels.classes) for part in parts), initial=0))

    def at(position: int) -> SoftLabel:
        part = bisect_right(starts, position) - 1
        return parts[part].labels.logits(position - starts[part])

    return at


def _class_map(tensors: Tensors, bundle: Bundle, classes: str | None, num_classes: int) -> ClassMap:
    """Return the classes that were named, or that the file or its path names, or the model's own if there are as many."""
    named = classes
    if named is None and bundle.num_classes == IMAGENET_CLASSES and num_classes < IMAGENET_CLASSES:
        named = tensors.classes or subset_of_path(tensors.path)
        if named is None:
            raise DatasetError(subset_needed(tensors.path, f"has {num_classes} classes"))
    return load_class_map(
        variant_of(named, tensors.format.name) if named else "model",
        bundle.num_classes,
        bundle.class_names,
    )


def _assemble(
    path: Path,
    origin: Origin,
    images: ImageSource,
    classes: Iterable[int],
    class_map: str,
    labels: Mapping[int, int],
    soft_label: Callable[[int], SoftLabel] | None = None,
) -> Dataset:
    """Cut collages, and number the images of each class in the order they are stored."""
    if not len(images):
        raise DatasetError(f"{path}: holds no images")
    if (count := len(images) * origin.collage**2) > MAX_IMAGES:
        raise DatasetError(f"{path}: holds {count:,} images; expected at most {MAX_IMAGES:,}")
    if origin.collage > 1:
        images = Tiles(images, origin.collage)
    # The size comes before the numbers: a collage that cannot be cut may claim millions of tiles.
    size = _first_size(path, images)
    tiles = origin.collage**2
    by_class: dict[int, list[int]] = {}
    for position, index in enumerate(classes):
        by_class.setdefault(index, []).extend(range(position * tiles, (position + 1) * tiles))
    samples = tuple(
        Sample(f"{index:05d}/{number:05d}", index, labels[index], position)
        for index in sorted(by_class)
        for number, position in enumerate(by_class[index])
    )
    return Dataset(path, class_map, samples, images, replace(origin, image_size=size), soft_label)


def _first_size(path: Path, images: ImageSource) -> tuple[int, int]:
    """Return the width and height of the first image that can be opened; what is wrong with others, a look at each finds.

    No image is decoded, and not every image is tried: a file may claim millions of them.
    """
    problem = DatasetError(f"{path}: holds no images")
    for position in range(min(len(images), _OPENED)):
        try:
            return images.size(position)
        except DatasetError as error:
            problem = error
    raise problem
