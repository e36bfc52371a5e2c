"""Distilled tensors: the method that wrote a file, its images, labels and normalisation.

Most facts follow from the structure of the file (`structure`), the normalisation from its name and
its values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diver_trt.distilled.brightness import brightness
from diver_trt.distilled.image_array import channels_last, sample_images
from diver_trt.distilled.labels import Labels, read_labels
from diver_trt.distilled.methods import find_method
from diver_trt.distilled.methods.base import Kind, Method
from diver_trt.distilled.normalisation import Normalisation, find_normalisation, implausible
from diver_trt.distilled.options import ReadOptions, require_count
from diver_trt.distilled.stored_array import Array
from diver_trt.distilled.structure import TensorStructure, read_structure
from diver_trt.distilled.subset_names import subset_of_path
from diver_trt.distilled.value_range import contradiction, is_mostly_outside, read_range, recognise
from diver_trt.distilled.whitening import (
    Examined,
    convert_command,
    is_taken_as_whitened,
    refusal,
    seen_whitening,
)
from diver_trt.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Tensors:
    """One file of distilled tensors, with everything needed to read its images.

    Attributes:
        path: The file.
        format: The methods that write such files.
        images: [n, c, H, W] or [n, H, W, c], as stored.
        labels: The class of each image.
        normalisation: The normalisation of the values.
        whitened: How the values are whitened, as only `convert` takes them; else None.
        unwhitened: SHA-256 of the ZCA transform that `convert` undid, if it did.
        collage: The collage factor that the file states, as converted ones do, or a folder around
            it, as IDC's do.
        classes: The ImageNet subset that the file itself states, as converted ones do.
        notes: What a user should know.
    """

    path: Path
    format: Method
    images: Array
    labels: Labels
    normalisation: Normalisation
    whitened: Kind | None
    unwhitened: str | None
    collage: int | None
    classes: str | None
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a stored image in pixels."""
        last = channels_last(self.path, self.images)
        height, width = self.images.shape[1:3] if last else self.images.shape[2:4]
        return height, width

    @property
    def subset(self) -> str | None:
        """The ImageNet subset that the file or the folders around it name, or None."""
        return self.classes or subset_of_path(self.path)


def read_tensors(path: Path, options: ReadOptions) -> Tensors:
    """Read one file, whose values are pixels or normalised pixels.

    Args:
        path: A `.pt`, `.npz` or `.safetensors` file.
        options: What the user stated.

    Raises:
        DatasetError: If it is not a file of distilled images, its labels are missing, or it is
            whitened; the message is then the command that converts it.
    """
    examined = examine(path, read_structure(path), options)
    if examined.taken:
        raise refusal(examined, options)
    return understand(examined, options)


def examine(path: Path, found: TensorStructure, options: ReadOptions) -> Examined:
    """Check the images and labels of a file, and whether they look whitened.

    Args:
        path: The file.
        found: Its content.
        options: What the user stated.

    Raises:
        DatasetError: If a text in the file is unknown, its values cannot be pixels, or its labels
            do not fit.
    """
    for option, unknown in found.unknown.items():
        # A text that an option overrides is never used, so it may be unknown.
        if getattr(options, option) is None:
            raise DatasetError(f"{path}: {unknown}")
    method = find_method(options.method, "tensors") if options.method else found.format
    last = channels_last(path, found.images)
    # Before anything is read by rows: a tensor that repeats its values may claim any number.
    require_count(path, count := len(found.images))
    sample = sample_images(found.images, last=last)
    # A single bad image must not decide about the set; it is reported when every image is checked.
    if (finite := np.isfinite(sample).all(axis=(1, 2, 3))).any():
        sample = sample[finite]
    if problem := implausible(sample):
        raise DatasetError(f"{path}: {problem}")
    # The values decide the form of the labels, except where training them has blurred it.
    labels = read_labels(found.label_path, found.labels, count, centred=method.centred_labels)
    examined = Examined(path, method, found, sample, labels)
    if (seen := seen_whitening(examined)) is None:
        return examined
    return replace(examined, seen=seen, taken=is_taken_as_whitened(examined, options))


def understand(examined: Examined, options: ReadOptions) -> Tensors:
    """Decide the normalisation of a file's values, and collect the notes about it.

    Raises:
        DatasetError: If the values contradict the method's normalisation and show no other.
    """
    path, method, labels = examined.path, examined.method, examined.labels
    normalisation, doubt = _normalisation(examined, options)
    remark = method.remark and method.remark(path)
    notes = [*examined.structure.notes, *filter(None, (remark, method.advice))]
    if doubt:
        notes.append(doubt)
    if labels.note:
        notes.append(labels.note)
    if labels.form == "logits" and (wrong := _misplaced(labels)):
        notes.append(
            f"the largest logit of {wrong} images is not the class of their position; the logit "
            "decides"
        )
    if labels.form == "centred one-hot":
        notes.append(
            "its labels are regression targets, not logits: they give the class and are dropped"
        )
    return Tensors(
        path=path,
        format=method,
        images=examined.structure.images,
        labels=labels,
        normalisation=normalisation,
        whitened=examined.seen if examined.taken else None,
        unwhitened=examined.structure.unwhitened,
        collage=examined.structure.collage or method.collage_in_path(path.parent),
        classes=examined.structure.classes,
        notes=tuple(notes),
    )


def _normalisation(examined: Examined, options: ReadOptions) -> tuple[Normalisation, str | None]:
    """Return the normalisation of a file's values, and a doubt about it."""
    path, sample, method = examined.path, examined.sample, examined.method
    stated = options.normalisation or examined.structure.normalisation
    doubt = None
    # Only FRePo normalises before it whitens.
    if examined.taken and examined.seen is not Kind.FREPO:
        return find_normalisation("none"), None
    # `none` may be stated: it is how bytes are read.
    if options.normalisation not in (None, "none") and sample.dtype == np.uint8:
        raise DatasetError(
            f"{path}: holds 8-bit pixels, which are never normalised; leave out --normalisation "
            f"{options.normalisation}"
        )
    if stated:
        chosen = find_normalisation(stated)
        problem = contradiction(sample, chosen)
        # Only a doubt: the user or the file has stated it, and the values are indirect evidence.
        doubt = problem and f"{problem}: is --normalisation {chosen.name} right?"
    else:
        chosen = find_normalisation(_usual(examined))
        # The range of whitened values shows nothing about the normalisation before them.
        if not examined.seen:
            chosen, doubt = read_range(path, method, sample, chosen)
        # As a doubt alone, it would leave black and white in place of the images.
        elif not examined.taken and is_mostly_outside(sample, chosen):
            raise refusal(examined, options)
    # Statistics of red, green and blue do not apply to a single channel.
    if sample.shape[1] == 1 and len({*chosen.mean}) + len({*chosen.std}) > 2:
        raise DatasetError(
            f"{path}: holds grey images, which {chosen.name}, a normalisation of each colour by "
            "itself, would tint. Set --normalisation, such as mnist, fashionmnist or 0.5:0.5."
        )
    if examined.taken:
        return chosen, None
    if examined.seen:
        command = convert_command(path, options, examined.seen)
        doubt = (
            f"its images look ZCA-whitened ({brightness(sample)}), but are read with "
            f"--normalisation {chosen.name}; if they are whitened, run `{command}`, with the "
            "training images as IMAGES"
        )
    return chosen, doubt


def _usual(examined: Examined) -> str:
    """Return the name of the normalisation that values have unless their range shows another.

    Raises:
        DatasetError: If the method has several, and the range does not show any.
    """
    if examined.sample.dtype == np.uint8:
        return "none"
    try:
        return examined.method.normalisation(examined.stored)
    except DatasetError:
        # Whitened values may fill a range by chance.
        if examined.seen or (shown := recognise(examined.sample)) is None:
            raise
        return shown.name


def _misplaced(labels: Labels) -> int:
    """Return how many classes differ from those of a dataset sorted by class.

    Returns:
        The number; 0 if the dataset is not sorted by class at all.
    """
    # A set sorted by class has the same number of images of each, one class after the other.
    per_class, rest = divmod(len(labels.classes), labels.num_classes)
    expected = np.arange(len(labels.classes)) // max(1, per_class)
    # Learned logits may have drifted to another class; more than half means another order.
    wrong = int(np.count_nonzero(labels.classes != expected))
    return 0 if rest or wrong > len(labels.classes) // 2 else wrong
