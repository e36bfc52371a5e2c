"""Reading distilled datasets.

`read_dataset` detects the format and reports it before any work starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from diver_trt.counted import counted
from diver_trt.distilled.arrays import read_tensors
from diver_trt.distilled.class_map import ModelClasses
from diver_trt.distilled.class_map_doubts import class_map_doubts, subset_doubt
from diver_trt.distilled.collage import collage_note, sample_pixels
from diver_trt.distilled.companion import recovered_folder
from diver_trt.distilled.folder_names import is_index
from diver_trt.distilled.folders import read_class_folders
from diver_trt.distilled.methods import find_method, recognise
from diver_trt.distilled.methods.base import Found, Method
from diver_trt.distilled.methods.plain import RECOVERED
from diver_trt.distilled.options import ReadOptions, require_count
from diver_trt.distilled.source import ImageFiles, ImageSource, Tiles
from diver_trt.distilled.subset_names import subset_of_path
from diver_trt.distilled.tensor_files import find_tensor_files
from diver_trt.distilled.tensor_set import SoftLabel, join_tensors
from diver_trt.errors import DatasetError
from diver_trt.manifest import JOURNAL, is_recovered, read_recovered

_DARK = 32
"""The largest pixel of a set below which its scale is doubted."""

_MAX_TRIES = 1000
"""How many images to try before giving up on finding a readable one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One distilled image.

    Attributes:
        key: Its name in the recovered dataset, `"{index:05d}/{number:05d}"`, from which its noise
            is seeded.
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
    """The format of a dataset, and the assumptions where its files do not state it.

    Attributes:
        format: The methods that write such files.
        files: The files of tensors; empty for folders of images.
        normalisation: Name of the statistics that are undone; None for image files.
        whitening: SHA-256 of the ZCA transform that `diver-trt convert` undid, None without one.
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
        root: The input: a folder or a file.
        classes: Name of the class map: a subset, a file or `"model"`.
        samples: Every image.
        images: The images by position.
        origin: Its format, and how it was recognised.
        soft_label: Returns the logits of the image at a position, [classes] float32; None if
            the set has no soft labels, or none that are still valid.
        copies: How often each image is among the samples (`diver_trt.distilled.copies`).
        own_names: The names that a class map's file gives to classes, by index.
    """

    root: Path
    classes: str
    samples: tuple[Sample, ...]
    images: ImageSource
    origin: Origin
    soft_label: Callable[[int], SoftLabel] | None
    copies: int = 1
    own_names: Mapping[int, str] = field(default_factory=dict)

    @property
    def labels(self) -> dict[int, int]:
        """The model's class of each index that occurs, in order."""
        return {sample.index: sample.label for sample in self.samples}

    @property
    def summary(self) -> str:
        """One line: the format, and how it will be read."""
        counts = Counter(sample.index for sample in self.samples).values()
        each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        origin = self.origin
        width, height = origin.image_size
        tensors = " tensors" if origin.files else ""
        parts = [
            f"{origin.format.title}{tensors}",
            f"{counted(len(counts), 'class')} x {each}",
            f"{width} px" if width == height else f"{width} x {height} px",
        ]
        if origin.whitening:
            parts.append("ZCA whitening undone")
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


def read_dataset(path: Path, bundle: ModelClasses, options: ReadOptions | None = None) -> Dataset:
    """Detect the format of a distilled dataset and list its images.

    Images are decoded only where their pixels decide the format.

    Args:
        path: A folder of class folders, a file of tensors, a folder of such files, or a recovered
            dataset or a file beside its images.
        bundle: The model, whose classes the dataset's are mapped to.
        options: What the user states.

    Raises:
        DatasetError: If it is not a distilled dataset, is ambiguous, or does not fit the model.
    """
    options = options or ReadOptions()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    # Otherwise the images that are finished so far would pass for a distilled set of folders.
    if (path / JOURNAL).is_file() and not is_recovered(path):
        raise DatasetError(
            f"{path}: unfinished recovery; run the same command again to complete it first"
        )
    # The manifest decides before any detection: a recovery has the class folders of any format.
    if folder := recovered_folder(path):
        reason = "is a recovered dataset, whose manifest states its format"
        _refuse(path, options, reason, *(option.name for option in fields(options)))
        return _from_recovered(folder, bundle)
    # Before folders of images: methods save folders of previews beside their tensors.
    if files := find_tensor_files(path):
        return _from_tensors(path, files, bundle, options)
    _refuse(path, options, "holds images, which are not normalised", "normalisation")
    return _from_folders(path, bundle, options)


def _refuse(path: Path, options: ReadOptions, reason: str, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            option = "format" if name == "method" else name
            raise DatasetError(f"--{option}: {path} {reason}; leave it out")


def _from_folders(path: Path, bundle: ModelClasses, options: ReadOptions) -> Dataset:
    found = read_class_folders(path, bundle, options.classes)
    method = (
        find_method(options.method, "folders")
        if options.method
        # One image and its folder show the method, whose code names all of them alike.
        else recognise(Found("folders", found.files[0], found.folder_of(0)))
    )
    images = ImageFiles(found.root, found.files)
    stated = options.collage or method.collage_in_path(found.root)
    # A method has another factor for ImageNet than for CIFAR, which the size tells apart.
    collage = stated or method.default_collage(min(_first_size(path, images)))
    notes = [method.advice] if method.advice else []
    notes += [*found.notes, *class_map_doubts(found.class_map, bundle)]
    # Folders that are not numbered are matched by their names.
    if is_index(found.folder_of(0)) and (
        doubt := subset_doubt(subset_of_path(found.root), found.class_map, bundle)
    ):
        notes.append(doubt)
    notes += pixel_notes(images, collage, stated=stated is not None)
    if (folders := len(set(found.classes))) != len(found.class_map):
        missing = min(set(range(len(found.class_map))) - set(found.classes))
        notes.append(
            f"it has {counted(folders, 'class folder')}, but {found.class_map.owner} "
            f"{counted(len(found.class_map), 'class')} (no folder for class {missing}): is "
            "--classes right?"
        )
    origin, named = Origin(method, collage=collage, notes=tuple(notes)), found.class_map
    return _assemble(path, origin, images, found.classes, named.name, named.labels, named.own_names)


def _from_recovered(path: Path, bundle: ModelClasses) -> Dataset:
    found = read_recovered(path, bundle)
    notes = ["its soft labels are not read: they are dropped"] if found.soft_labels else []
    if found.unlisted:
        notes.append(found.unlisted)
    origin, images = Origin(RECOVERED, notes=tuple(notes)), ImageFiles(path, found.files)
    return _assemble(
        path, origin, images, found.indices, found.class_map, found.labels, found.own_names
    )


def _from_tensors(
    path: Path, files: Iterable[Path], bundle: ModelClasses, options: ReadOptions
) -> Dataset:
    # Join the files, decide the collage factor, then cut and number the images.
    parts = [read_tensors(file, options) for file in files]
    first, found = parts[0], join_tensors(path, parts, bundle, options.classes)
    stated = options.collage or first.collage
    collage = stated or first.format.default_collage(min(first.size))
    notes, soft_label = [*found.notes], found.soft_label
    notes += pixel_notes(found.images, collage, stated=stated is not None)
    # One label describes a whole collage, and its tiles go to the model one by one.
    if soft_label and collage > 1:
        soft_label = None
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
        whitening=first.unwhitened,
        collage=collage,
        soft_labels=None if first.labels.form == "hard" else first.labels.form,
        notes=tuple(notes),
    )
    named = found.class_map
    return _assemble(
        path,
        origin,
        found.images,
        found.classes,
        named.name,
        named.labels,
        named.own_names,
        soft_label,
    )


def pixel_notes(images: ImageSource, collage: int, *, stated: bool) -> list[str]:
    """Return the doubts that the pixels of some images raise.

    Args:
        images: The images as stored, uncut.
        collage: Images along a side of each.
        stated: Whether the user, the file or its folder states that factor.
    """
    sample = sample_pixels(images)
    if sample is None:
        return []
    doubt = collage_note(sample, collage, stated=stated)
    notes = [doubt] if doubt else []
    # Values in 0 to 1 or 0 to 16 that were saved as bytes; plain black images are left alone.
    if 0 < (largest := int(sample.max())) < _DARK:
        notes.append(
            f"its images are nearly black, with pixels of 0 to {largest} in place of 0 to 255: "
            "were they saved in another scale?"
        )
    return notes


def _assemble(
    path: Path,
    origin: Origin,
    images: ImageSource,
    classes: Iterable[int],
    class_map: str,
    labels: Mapping[int, int] | Sequence[int],
    own_names: Mapping[int, str],
    soft_label: Callable[[int], SoftLabel] | None = None,
) -> Dataset:
    """Cut collages, and number the images of each class in the order they are stored."""
    if not len(images):
        raise DatasetError(f"{path}: holds no images")
    # Each tile becomes a sample.
    tiles = origin.collage**2
    require_count(path, len(images) * tiles)
    if origin.collage > 1:
        images = Tiles(images, origin.collage)
    # The size comes before the numbers: a collage that cannot be cut may claim millions of tiles.
    size = _first_size(path, images)
    by_class: dict[int, list[int]] = {}
    for position, index in enumerate(classes):
        by_class.setdefault(index, []).extend(range(position * tiles, (position + 1) * tiles))
    samples = tuple(
        Sample(f"{index:05d}/{number:05d}", index, labels[index], position)
        # Not in the order of the file: NCFM joins the lists of its processes, and SeqMatch its
        # stages, so the images of a class need not be together.
        for index in sorted(by_class)
        for number, position in enumerate(by_class[index])
    )
    return Dataset(
        root=path,
        classes=class_map,
        samples=samples,
        images=images,
        origin=replace(origin, image_size=size),
        soft_label=soft_label,
        own_names=own_names,
    )


def _first_size(path: Path, images: ImageSource) -> tuple[int, int]:
    """Return the width and height of the first image that can be opened, without decoding it."""
    problem = DatasetError(f"{path}: holds no images")
    # Not every image is tried: a file may claim millions. The others' problems are reported when
    # every image is checked.
    for position in range(min(len(images), _MAX_TRIES)):
        try:
            return images.size(position)
        except DatasetError as error:
            problem = error
    raise problem
