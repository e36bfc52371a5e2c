"""Distilled tensors: which method wrote a file, and what its images and labels are.

Most follows from the structure of the file (`tensor_structure`); how its values were normalised and whitened follows from its name and
the values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.labels import Labels, read_labels
from diver_trt.distilled.methods import find_method
from diver_trt.distilled.methods.base import Kind, Method, Stored
from diver_trt.distilled.normalisation import Normalisation, absurdity, find_normalisation
from diver_trt.distilled.options import MAX_IMAGES, ReadOptions
from diver_trt.distilled.sampling import look_at
from diver_trt.distilled.source import channels_last
from diver_trt.distilled.stored_array import Array
from diver_trt.distilled.structure import TensorStructure, read_structure
from diver_trt.distilled.value_range import contradiction, read_range
from diver_trt.distilled.whitening import (
    SIDE,
    Whitening,
    brightness_share,
    looks_whitened,
    whitened_rows,
)
from diver_trt.distilled.zca_reference import fit_reference
from diver_trt.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Tensors:
    """One file of distilled tensors, understood.

    Attributes:
        path: The file.
        format: Which methods write such files.
        images: [n, c, H, W] or [n, H, W, c], as stored.
        labels: The class of each image.
        normalisation: What the values were normalised with.
        whitened: How they were whitened after that, if they were.
        whitening: The transform that undoes it; None also where whitened values were asked for as they are.
        collage: The collage factor that the file names, as converted ones do, or a folder around it, as IDC's do.
        classes: The ImageNet subset that the file itself names, as converted ones do.
        notes: What a user should know.
    """

    path: Path
    format: Method
    images: Array
    labels: Labels
    normalisation: Normalisation
    whitened: Kind | None
    whitening: Whitening | None
    collage: int | None
    classes: str | None
    notes: tuple[str, ...]

    @property
    def side(self) -> int:
        """The shorter side of an image in pixels."""
        height, width = (
            self.images.shape[1:3]
            if channels_last(self.path, self.images)
            else self.images.shape[2:4]
        )
        return int(min(height, width))


def read_tensors(path: Path, options: ReadOptions, *, undo: bool = True) -> Tensors:
    """Understand one file.

    Args:
        path: A `.pt`, `.npz` or `.safetensors` file.
        options: What is known of it.
        undo: Whether whitening is to be undone; else values that are whitened are taken as they are.

    Raises:
        DatasetError: It is no file of distilled images, its labels are missing, or whitening is to be undone and there is no reference.
    """
    found = read_structure(path)
    for option, unknown in found.unknown.items():
        if getattr(options, option) is None:
            raise DatasetError(f"{path}: {unknown}")
    method = find_method(options.method, "tensors") if options.method else found.format
    last = channels_last(path, found.images)
    if (count := len(found.images)) > MAX_IMAGES:
        raise DatasetError(f"{path}: holds {count:,} images; expected at most {MAX_IMAGES:,}")
    sample = look_at(found.images, last=last)
    if (finite := np.isfinite(sample).all(axis=(1, 2, 3))).any():
        sample = sample[finite]  # the others are found when every image is looked at
    if problem := absurdity(sample):
        raise DatasetError(f"{path}: {problem}")
    labels = read_labels(
        found.label_path, found.labels, len(found.images), centred=method.centred_labels
    )
    values = _read_values(path, method, found, options, sample, labels.num_classes, undo=undo)
    notes = [*found.notes, *filter(None, (method.remark(path), method.advice)), *values.notes]
    if labels.note:
        notes.append(labels.note)
    if labels.form == "logits" and (wrong := _misplaced(labels)):
        notes.append(
            f"the largest logit of {wrong} images is not the class that their place says; the logit decides"
        )
    if labels.form == "centred one-hot":
        notes.append(
            "its labels are regression targets, not logits: they give the class and are not carried on"
        )
    return Tensors(
        path=path,
        format=method,
        images=found.images,
        labels=labels,
        normalisation=values.normalisation,
        whitened=values.whitened,
        whitening=values.whitening,
        collage=found.collage or method.collage_in_path(path.parent),
        classes=found.classes,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Values:
    normalisation: Normalisation
    whitened: Kind | None
    whitening: Whitening | None
    notes: tuple[str, ...]


def _read_values(
    path: Path,
    method: Method,
    found: TensorStructure,
    options: ReadOptions,
    sample: NDArray[Any],
    num_classes: int,
    *,
    undo: bool,
) -> _Values:
    """Find out how values were normalised and whitened, by what is said of them and by how they look."""
    stated, reference, shape = (
        options.normalisation or found.normalisation,
        options.zca_reference,
        sample.shape[1:],
    )
    stored = Stored(path, min(sample.shape[2:]), num_classes)
    seen = _seen_whitening(method, found.whitening, path, sample)
    whitened = seen if _is_believed(method, found, options, stored) else None
    if reference and not seen:
        raise DatasetError(
            f"--zca-reference: {path} does not look ZCA-whitened ({_brightness(sample)}). Leave it out."
        )
    if reference and not whitened:
        raise DatasetError(
            "--zca-reference and --normalisation: whitened values are not normalised; leave out one of them"
        )
    rows = whitened_rows(whitened, shape) if whitened and undo else None
    if whitened and undo and (rows is None or not reference):
        raise DatasetError(
            _whitening_remedy(path, method, whitened, sample, named=found.whitening is not None)
        )
    doubt = None
    if whitened and whitened is not Kind.FREPO:
        chosen = find_normalisation("none")
    elif stated:
        chosen = find_normalisation(stated)
        doubt = _doubt(sample, chosen)
    else:
        name = "none" if sample.dtype == np.uint8 else method.normalisation(stored)
        default = find_normalisation(name)
        if seen:
            chosen = default
        else:
            reading = read_range(path, method, sample, default)
            chosen, doubt = reading.normalisation, reading.note
    if whitened and reference and rows is not None:
        whitening, chosen, note = fit_reference(reference, whitened, rows, chosen, shape)
        return _Values(chosen, whitened, whitening, (note,))
    notes = []
    if seen and not whitened:
        way = f"name the training images with --zca-reference{' in its place' if options.normalisation else ''}"
        if not undo:
            way = (
                "leave it out"
                if options.normalisation
                else "--zca-reference undoes it where they are read"
            )
        notes.append(
            f"its images look ZCA-whitened ({_brightness(sample)}), but are read with --normalisation {chosen.name}; "
            f"if they are whitened, {way}"
        )
    elif not whitened and doubt:
        notes.append(doubt)
    return _Values(chosen, whitened, None, tuple(notes))


def _doubt(sample: NDArray[Any], stated: Normalisation) -> str | None:
    problem = contradiction(sample, stated)
    return problem and f"{problem}: is --normalisation {stated.name} right?"


def _brightness(sample: NDArray[Any]) -> str:
    return f"{brightness_share(sample):.1%} of their energy is brightness, of photographs' 20% and more"


def _seen_whitening(
    method: Method, named: Kind | None, path: Path, sample: NDArray[Any]
) -> Kind | None:
    """Return how images were whitened, by what the file says, or else by their values; None if they do not look like it."""
    if sample.dtype.kind != "f" or sample.shape[1] != 3:
        return None
    if named or path.stem.startswith("images_zca_"):
        return named
    kind = method.whitens.kind if method.whitens else Kind.KORNIA
    looks = (min(sample.shape[2:]) <= SIDE or kind is not Kind.KORNIA) and looks_whitened(sample)
    called = (
        method.whitens is not None
        and method.whitens.names is not None
        and re.search(method.whitens.names, path.stem)
        and contradiction(sample, find_normalisation("none"))
    )
    return kind if looks or called else None


def _is_believed(
    method: Method, found: TensorStructure, options: ReadOptions, stored: Stored
) -> bool:
    """Return whether images that look whitened are taken for it.

    A stated normalisation says that they are not, except of methods that normalise before they
    whiten. Where nothing is stated, only those of methods that whiten are.
    """
    whitens = method.whitens
    normalises_first = whitens is not None and whitens.kind is Kind.FREPO
    if options.normalisation and not normalises_first:
        return False
    if options.zca_reference or found.whitening or normalises_first:
        return True
    return whitens is not None and whitens.usual(stored) and found.normalisation is None


def _whitening_remedy(
    path: Path, method: Method, kind: Kind, sample: NDArray[Any], *, named: bool
) -> str:
    shape = sample.shape[1:]
    seen = "is ZCA-whitened" if named else f"looks ZCA-whitened ({_brightness(sample)})"
    reason = f"{path}: {seen}, and the transform is not in the file"
    otherwise = f"if it is not whitened, say {'--format arrays and ' if method.centred_labels else ''}--normalisation"
    if whitened_rows(kind, shape) is None:
        return (
            f"{reason}; it can be fitted again for up to {SIDE} x {SIDE} pixels, FRePo's also for 128 x 128, not for {shape[2]} x "
            f"{shape[1]}: undo it where the set was made, or, {otherwise}"
        )
    fit = "name the training images with --zca-reference, so that it can be fitted again"
    if kind is Kind.FREPO:
        fit = "name FRePo's own, data/zca/*.npz, with --zca-reference, or the training images, so that it can be fitted again"
    if method.whitens and method.whitens.instead:
        return f"{reason}; give {method.whitens.instead(path)}, or {fit}; or, {otherwise}"
    return f"{reason}; {fit}; or, {otherwise}"


def _misplaced(labels: Labels) -> int:
    """Return how many classes differ from those of a dataset that lists its images class by class; 0 if it does not at all."""
    per_class, rest = divmod(len(labels.classes), labels.num_classes)
    wrong = int(
        np.count_nonzero(labels.classes != np.arange(len(labels.classes)) // max(1, per_class))
    )
    return 0 if rest or wrong > len(labels.classes) // 2 else wrong
