"""Distilled tensors: which method wrote a file, and what its images and labels are.

The structure tells most: a bare tensor with its labels in a second file (MTT and its family, GLaD), a list of both (IDC, DREAM, NCFM), a
dictionary of experiments (DC, DSA, DM, CAFE), named arrays (FRePo, KIP, and what `diver-trt convert` writes). The rest is told by file
names and by the values. A folder may stand for its best file, or for several parts that belong together, as SeqMatch and IDC write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.datasets.folder_reader import natural
from diver_trt.datasets.formats import FORMATS, Format, find_format, format_of_list, format_of_tensors
from diver_trt.datasets.image_file import SUFFIXES as IMAGE_SUFFIXES
from diver_trt.datasets.image_file import read_image
from diver_trt.datasets.image_source import channels_last
from diver_trt.datasets.labels import Labels, describe_array, read_labels
from diver_trt.datasets.normalisation import NORMALISATIONS, Normalisation, contradiction, find_normalisation
from diver_trt.datasets.read_options import ReadOptions
from diver_trt.datasets.stored_array import SUFFIXES, Array, Content, StoredArray, open_stored
from diver_trt.datasets.whitening import Kind, Whitening, fit_whitening, looks_whitened
from diver_trt.errors import DatasetError

_TINY_IMAGENET_CLASSES = 200
_LOOKED_AT = 256
"""Images whose values decide what a file may have been normalised with."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """One file of distilled tensors, understood.

    Attributes:
        path: The file.
        format: Which methods write such files.
        images: [n, c, H, W] or [n, H, W, c], as stored.
        labels: The class of each image.
        normalisation: What the values were normalised with.
        whitening: What they were whitened with after that, if they were.
        collage: The collage factor that the file itself names, as converted ones do.
        notes: What a user should know.
    """

    path: Path
    format: Format
    images: Array
    labels: Labels
    normalisation: Normalisation
    whitening: Whitening | None
    collage: int | None
    notes: tuple[str, ...]

    @property
    def side(self) -> int:
        """The shorter side of an image in pixels."""
        height, width = self.images.shape[1:3] if channels_last(self.path, self.images) else self.images.shape[2:4]
        return int(min(height, width))


def find_tensor_files(path: Path) -> list[Path]:
    """Return the files of images that a path stands for: itself, the best one of a folder, or the best one of each folder in it.

    Raises:
        DatasetError: A folder holds several that differ in more than their iteration.
    """
    if path.is_file():
        return [path]
    if best := _best_of(path):
        return [best]
    folders = sorted((folder for folder in path.iterdir() if folder.is_dir()), key=natural)
    return [best for folder in folders if (best := _best_of(folder))]


def find_one_tensor_file(path: Path) -> Path:
    """Return the one file of images that a path stands for.

    Raises:
        DatasetError: There is none, or there are several.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    files = find_tensor_files(path)
    if len(files) != 1:
        found = ", ".join(str(file) for file in files[:5]) or "no file of tensors"
        raise DatasetError(f"{path}: holds {found}; name one file of images")
    return files[0]


def read_tensors(path: Path, options: ReadOptions) -> Tensors:
    """Understand one file.

    Args:
        path: A `.pt`, `.npz` or `.safetensors` file.
        options: What is known of it.

    Raises:
        DatasetError: It is no file of distilled images, its labels are missing, or its values are whitened and there is no reference.
    """
    found = _parts(path)
    entry = find_format(options.method, "tensors") if options.method else found.format
    if entry.holds != "tensors" or len(found.images.shape) != 4:
        raise DatasetError(f"{path}: images are {describe_array(found.images)}; expected [n, 3, H, W] or [n, H, W, 3]")
    last = channels_last(path, found.images)
    sample = _sample(found.images, last)
    if not np.isfinite(sample).all():
        raise DatasetError(f"{path}: holds values that are no numbers (NaN or infinite)")
    labels = read_labels(found.label_path, found.labels, len(found.images), centred=entry.name in ("frepo", "kip"))
    stated, reference = options.normalisation or found.normalisation, options.zca_reference
    whitened = stated is None and _is_whitened(entry, path, sample, labels.num_classes)
    if whitened and not reference:
        raise DatasetError(_whitening_remedy(path, entry))
    if reference and not whitened:
        raise DatasetError(f"--zca-reference: {path} does not look ZCA-whitened; leave it out, or leave out --normalisation")
    chosen = find_normalisation(stated) if stated else _default_normalisation(entry, path, sample, whitened)
    whitening = None
    if reference:
        whitening, chosen = _fit(reference, entry, chosen, sample.shape[2:])
    notes = [] if entry.advice is None else [entry.advice]
    if not whitened and (problem := contradiction(sample, chosen)):
        notes.append(f"{problem}: is --normalisation {chosen.name} right?")
    if labels.form == "logits" and (wrong := _misplaced(labels)):
        notes.append(f"the largest logit of {wrong} images is not the class that their place says; the logit decides")
    if labels.form == "centred one-hot":
        notes.append("its labels are regression targets, not logits: they give the class and are not carried on")
    return Tensors(path, entry, found.images, labels, chosen, whitening, found.collage, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Parts:
    images: Array
    labels: Array
    label_path: Path
    format: Format
    normalisation: str | None = None
    collage: int | None = None


def _parts(path: Path) -> _Parts:
    """Tell images from labels by the structure of the file."""
    content = open_stored(path)
    if isinstance(content, (StoredArray, np.ndarray)):
        return _bare(path, content)
    if isinstance(content, Mapping):
        return _named(path, content)
    if isinstance(content, Sequence) and len(content) == 2 and all(map(_is_array, content)):
        return _Parts(content[0], content[1], path, format_of_list(path))
    raise DatasetError(f"{path}: holds {_describe(content)}; {_EXPECTED}")


_EXPECTED = (
    "expected a tensor of images with its labels in a file beside it, a list of images and labels, a dictionary with data, or arrays named "
    "images and labels"
)


def _bare(path: Path, images: Array) -> _Parts:
    siblings = {sibling.stem for sibling in path.parent.iterdir()}
    if "weights_best" in siblings or any(name.startswith("styles_") for name in siblings):
        raise DatasetError(
            f"{path}: is of HaBa, whose files hold bases, not images; save the images that its networks make of them, as a list of images "
            "and labels"
        )
    iteration = re.sub(r"^images_(zca_)?", "", path.stem)
    candidates = [path.with_name(f"labels_{iteration}{path.suffix}"), path.with_name(f"labels{path.suffix}")]
    for candidate in candidates:
        if candidate != path and candidate.is_file():
            labels = open_stored(candidate)
            if not isinstance(labels, (StoredArray, np.ndarray)):
                raise DatasetError(f"{candidate}: holds {_describe(labels)}; expected a tensor of labels")
            return _Parts(images, labels, candidate, format_of_tensors(path))
    raise DatasetError(f"{path}: is {describe_array(images)} without labels; expected {candidates[0].name} beside it")


def _named(path: Path, content: Mapping[Any, Any]) -> _Parts:
    experiments = content.get("data")
    if isinstance(experiments, Sequence) and experiments:
        pair = experiments[-1]
        if isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_array, pair)):
            return _Parts(pair[0], pair[1], path, FORMATS["dc"])
    for images, labels, name in (("images", "labels", "kip"), ("image", "label", "frepo")):
        if _is_array(content.get(images)) and _is_array(content.get(labels)):
            said = {key: _text(content.get(key)) for key in ("format", "normalisation", "collage")}
            entry = FORMATS.get(said["format"] or name, FORMATS[name])
            collage = said["collage"]
            factor = int(collage) if collage and collage.isdigit() and 0 < int(collage) < 100 else None
            return _Parts(content[images], content[labels], path, entry, said["normalisation"], factor)
    raise DatasetError(f"{path}: holds {_describe(content)}; {_EXPECTED}")


def _text(value: Content) -> str | None:
    return str(value) if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind == "U" else None


def _is_array(value: object) -> bool:
    return isinstance(value, (StoredArray, np.ndarray))


def _describe(content: Content) -> str:
    if isinstance(content, (StoredArray, np.ndarray)):
        return describe_array(content)
    if isinstance(content, Mapping):
        return f"a dictionary of {', '.join(str(key)[:30] for key in list(content)[:8]) or 'nothing'}"
    return f"a list of {len(content)}" if isinstance(content, Sequence) else "no tensors"


def _sample(images: Array, last: bool) -> NDArray[Any]:  # => [n, c, H, W]
    """Return some images from all over the array."""
    positions = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int))
    values = np.stack([images[int(position)] for position in positions])
    return values.transpose(0, 3, 1, 2) if last else values


def _is_whitened(entry: Format, path: Path, sample: NDArray[Any], num_classes: int) -> bool:
    """Say whether images were whitened: KIP's always, MTT's and its family's only for CIFAR and Tiny-ImageNet, and if they look like it."""
    if entry.name == "kip":
        return True
    if sample.dtype.kind != "f" or path.stem.startswith("images_zca_"):
        return False
    small = min(sample.shape[2:]) <= 64 and num_classes <= _TINY_IMAGENET_CLASSES
    return (entry.name == "frepo" or (entry.name == "mtt" and small)) and looks_whitened(sample)


def _whitening_remedy(path: Path, entry: Format) -> str:
    twins = sorted(path.parent.glob("images_zca_*"), key=natural) if entry.name == "mtt" else []
    twin = (
        f"give {twins[-1].name}, which is not whitened"
        if twins
        else "give the file that is not whitened (images_zca_*.pt, if the method saved it)"
    )
    remedy = "" if entry.name in ("kip", "frepo") else f"{twin}, or "
    return (
        f"{path}: is ZCA-whitened, and the transform is not in the file; {remedy}name the training images with --zca-reference, so that it "
        "can be fitted again; or say --normalisation if it is not whitened"
    )


def _default_normalisation(entry: Format, path: Path, sample: NDArray[Any], whitened: bool) -> Normalisation:
    """Return what the method's code normalises with."""
    side = min(sample.shape[2:])
    if sample.dtype == np.uint8 or entry.name in ("idc", "dream", "ncfm", "kip") or path.stem.startswith("images_zca_"):
        return NORMALISATIONS["none"]
    if entry.name == "frepo":
        if side != 32:
            raise DatasetError(
                f"{path}: FRePo normalises each data set with its own statistics; name them, such as --normalisation frepo-imagenette"
            )
        return NORMALISATIONS["frepo-cifar10"]
    if entry.name == "mtt" and whitened:
        return NORMALISATIONS["none"]
    if entry.name == "glad" and side > 32:
        return NORMALISATIONS["glad"]
    if entry.name == "dc" and (match := re.match(r"res_[^_]+_([^_]+)_", path.name)):
        known = {"CIFAR10": "cifar10", "CIFAR100": "cifar100-dc", "MNIST": "mnist", "FashionMNIST": "fashionmnist", "SVHN": "svhn"}
        if match[1] in known:
            return NORMALISATIONS[known[match[1]]]
    return NORMALISATIONS["cifar10" if side == 32 else "mnist" if side == 28 else "imagenet"]


def _misplaced(labels: Labels) -> int:
    """Return how many classes differ from those of a dataset that lists its images class by class; 0 if it does not at all."""
    per_class, rest = divmod(len(labels.classes), labels.num_classes)
    wrong = int(np.count_nonzero(labels.classes != np.arange(len(labels.classes)) // max(1, per_class)))
    return 0 if rest or wrong > len(labels.classes) // 2 else wrong


def _fit(reference: Path, entry: Format, normalisation: Normalisation, size: tuple[int, ...]) -> tuple[Whitening, Normalisation]:
    """Fit the method's whitening to reference images, and return it with what is to be undone after it."""
    pixels = (_fitting(reference, image, size) for image in _reference_images(reference))
    if entry.name == "frepo":
        mean, std = np.array(normalisation.mean, np.float32), np.array(normalisation.std, np.float32)
        return fit_whitening(((image.transpose(1, 2, 0) - mean) / std for image in pixels), Kind.FREPO), normalisation
    if entry.name != "kip":
        return fit_whitening(pixels, Kind.KORNIA), normalisation
    means: list[float] = []
    lengths: list[float] = []

    def prepared() -> Iterator[NDArray[np.float32]]:
        for image in pixels:
            means.append(float(image.mean()))
            centred = image - np.float32(means[-1])
            lengths.append(float(np.linalg.norm(centred)))
            yield centred / np.float32(max(lengths[-1], 1e-6))

    whitening = fit_whitening(prepared(), Kind.KIP)
    brightness, contrast = float(np.mean(means)), float(np.mean(lengths))
    name = "KIP, at the reference's brightness and contrast"
    return whitening, Normalisation(name, (brightness,) * 3, (contrast,) * 3)


def _reference_images(path: Path) -> Iterator[NDArray[np.float32]]:  # => [3, H, W] in [0, 1]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        return (read_image(file).transpose(2, 0, 1).astype(np.float32) / 255 for file in files)
    content = open_stored(path)
    arrays = list(content.values()) if isinstance(content, Mapping) else content if isinstance(content, Sequence) else [content]
    images = next((array for array in arrays if isinstance(array, (StoredArray, np.ndarray)) and len(array.shape) == 4), None)
    if images is None:
        raise DatasetError(f"--zca-reference {path}: holds {_describe(content)}; expected images, or a folder of them")
    last, scale = channels_last(path, images), 255 if images.dtype == np.uint8 else 1
    rows = (images[i].astype(np.float32) / np.float32(scale) for i in range(len(images)))
    return (row.transpose(2, 0, 1) if last else row for row in rows)


def _fitting(path: Path, image: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    if image.shape[1:] != size:
        raise DatasetError(
            f"--zca-reference {path}: holds images of {image.shape[2]} x {image.shape[1]}; the method whitened {size[1]} x {size[0]}"
        )
    if image.min() < -0.01 or image.max() > 1.01:
        raise DatasetError(
            f"--zca-reference {path}: holds values from {image.min():.2f} to {image.max():.2f}; expected images in 0 to 1, or uint8"
        )
    return image


def _best_of(folder: Path) -> Path | None:
    """Return a folder's file of images: the un-whitened if there are both, the best if it is marked, else of the last iteration."""
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
    except OSError as cause:
        raise DatasetError(f"{folder}: cannot be listed ({cause.strerror})") from cause
    families: dict[str, list[Path]] = {}
    for file in files:
        if family := _family(file.stem):
            families.setdefault(family, []).append(file)
    if "images_zca" in families:
        families.pop("images", None)
    if len(families) > 1 or any(len(found) > 1 for family, found in families.items() if family == "other"):
        names = ", ".join(sorted(file.name for found in families.values() for file in found)[:6])
        raise DatasetError(f"{folder}: holds several files of images ({names}); name one of them")
    return max(next(iter(families.values())), key=lambda file: _rank(file.stem)) if families else None


def _family(stem: str) -> str | None:
    """Return which files belong to one run and differ in their iteration only; None for labels and learning rates."""
    if re.match(r"(labels?|lr|best_lr|soft_labels|weights|styles|data_com)(_|$)", stem) or stem in ("data_init", "data0"):
        return None
    for family, pattern in (
        ("images_zca", r"images_zca_\d+"),
        ("images", r"images(_(\d+|best))?"),
        ("data", r"data(_?(\d+|best))?"),
        ("step", r"step\d+"),
    ):
        if re.fullmatch(pattern, stem):
            return family
    return "other"


def _rank(stem: str) -> tuple[bool, int]:
    digits = re.findall(r"\d+", stem)
    return stem.endswith("best"), int(digits[-1]) if digits else -1
