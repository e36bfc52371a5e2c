"""The layout of distilled tensors in a file, and which methods write such files.

A bare tensor with its labels in a second file (MTT and its family, GLaD), a list of both (IDC,
DREAM, NCFM), a dictionary of experiments (DC, DSA, DM, CAFE), or named arrays (FRePo, KIP, the
output of `diver-trt convert`, and files saved by hand).
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.brightness import looks_whitened
from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.image_array import channels_last, sample_images
from diver_trt.distilled.labels import describe_array
from diver_trt.distilled.methods import METHODS, names_of, recognise
from diver_trt.distilled.methods.base import Found, Kind, Method, Structure
from diver_trt.distilled.methods.frepo import is_flax_checkpoint
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import MAX_COLLAGE
from diver_trt.distilled.stored_array import Array, Content, is_array
from diver_trt.errors import DatasetError, shown


@dataclass(frozen=True, slots=True)
class TensorStructure:
    """The content of a file, as far as its structure and its texts show it.

    Attributes:
        images: [n, c, H, W] or [n, H, W, c].
        labels: One for each image, or a row of them.
        label_path: The file of the labels.
        format: The methods that write such files.
        normalisation: The normalisation that the file states.
        collage: The collage factor that the file states.
        whitening: The whitening that the file states.
        unwhitened: The SHA-256 of the ZCA transform that `convert` undid.
        classes: The ImageNet subset that the file states.
        notes: What a user should know.
        unknown: The problem with a text in the file, by the option of `ReadOptions` that overrides
            it.
    """

    images: Array
    labels: Array
    label_path: Path
    format: Method
    normalisation: str | None = None
    collage: int | None = None
    whitening: Kind | None = None
    unwhitened: str | None = None
    classes: str | None = None
    notes: tuple[str, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)


def read_structure(path: Path) -> TensorStructure:
    """Distinguish images from labels, and recognise the method that wrote a file.

    Raises:
        DatasetError: If it is not a file of distilled images, its labels are missing, or only
            `diver-trt convert` reads it.
    """
    if is_flax_checkpoint(path):
        source, output = shlex.quote(str(path)), shlex.quote(f"{path.name}.npz")
        raise DatasetError(
            f"{path}: is a flax checkpoint, which is converted before it is recovered. Run "
            f"`diver-trt convert {source} {output} --zca-reference IMAGES`, with FRePo's own "
            "data/zca/*.npz or its training images as IMAGES (without --zca-reference if it is not "
            "whitened)."
        )
    return structure_of(path, open_stored(path))


def structure_of(path: Path, content: Content) -> TensorStructure:
    """Return the structure of a file's content.

    Raises:
        DatasetError: If it is not a file of distilled images, or its labels are missing.
    """
    if is_array(content):
        return _bare(path, content)
    if isinstance(content, Mapping):
        return _named(path, content)
    if isinstance(content, Sequence) and len(content) == 2 and all(map(is_array, content)):
        images, labels = content
        return TensorStructure(images, labels, path, _method_of("list", path, images, labels))
    raise DatasetError(f"{path}: holds {_describe(content)}; {_EXPECTED}")


_EXPECTED = (
    "expected a tensor of images with its labels in a file beside it, a list of images and labels, "
    "a dictionary with data, or arrays named images and labels, each as one tensor"
)


def _bare(path: Path, images: Array) -> TensorStructure:
    # HaBa's file has MTT's name, and would be read as images; its siblings distinguish the two.
    # `glob` takes a folder that cannot be listed for an empty one.
    if any(any(path.parent.glob(pattern)) for pattern in ("weights_best.*", "styles_*")):
        raise DatasetError(
            f"{path}: was written by HaBa, whose files hold bases instead of images. Save the "
            "images that its networks make of them, as a list of images and labels."
        )
    # FTD saves averaged images, `ema_images_best.pt`, with labels of their own.
    average = "ema_" if path.stem.startswith("ema_") else ""
    # `images_zca_500` => `500`, whose labels are `labels_500`.
    iteration = re.sub(r"^(ema_)?images(_zca)?(_|$)", "", path.stem)
    names = [f"{average}labels_{iteration}"] if iteration else []
    candidates = [path.with_name(f"{name}{path.suffix}") for name in (*names, f"{average}labels")]
    for candidate in candidates:
        if candidate != path and candidate.is_file():
            labels = open_stored(candidate)
            if not is_array(labels):
                raise DatasetError(
                    f"{candidate}: holds {_describe(labels)}; expected a tensor of labels"
                )
            method = _method_of("tensor", path, images, labels)
            return TensorStructure(images, labels, candidate, method)
    raise DatasetError(
        f"{path}: is {describe_array(images)} without labels; expected {candidates[0].name} beside "
        "it"
    )


def _named(path: Path, content: Mapping[Any, Any]) -> TensorStructure:
    pair = _last_experiment(content)
    if len(pair) == 2 and all(map(is_array, pair)):
        images, labels = pair
        method, count = _method_of("experiments", path, images, labels), len(content["data"])
        notes = (f"it holds {count} experiments, of which the last is read",) if count > 1 else ()
        return TensorStructure(images, labels, path, method, notes=notes)
    for name, label_name in _NAMES:
        if is_array(content.get(name)) and is_array(content.get(label_name)):
            return _with_texts(path, content, name, content[name], content[label_name])
    raise DatasetError(f"{path}: holds {_describe(content)}; {_EXPECTED}")


def _last_experiment(content: Mapping[Any, Any]) -> Sequence[Any]:
    """Return the last list in a list `data`, or nothing."""
    # DC's code evaluates each experiment and appends it.
    experiments = content.get("data")
    last = experiments[-1] if isinstance(experiments, Sequence) and experiments else ()
    return last if isinstance(last, Sequence) else ()


def _method_of(
    structure: Structure, path: Path, images: Array, labels: Array, name: str = ""
) -> Method:
    def whitened() -> bool:
        return looks_whitened(sample_images(images, last=channels_last(path, images)))

    return recognise(Found(structure, path, path.parent, name, images, labels, whitened))


# FRePo writes the singular, KIP and `convert` the plural.
_NAMES = (("images", "labels"), ("image", "label"))

_FRAMEWORKS = ("pt", "np", "tf", "flax", "jax", "mlx")
"""What `format` in the metadata of a safetensors file names: the library that wrote it."""
# https://huggingface.co/docs/safetensors/metadata_parsing and the writers' own save functions


def _with_texts(
    path: Path, content: Mapping[Any, Any], name: str, images: Array, labels: Array
) -> TensorStructure:
    """Return named arrays with the facts that the texts beside them state."""
    texts = {key: _text(content.get(key)) for key in _TEXTS}
    # It states who wrote the file, not a method.
    if texts["format"] in _FRAMEWORKS:
        texts["format"] = None
    unknown = _unknown_texts(texts)
    classes, notes = texts["classes"], _other_images(content, (images, labels))
    if classes is not None and classes not in imagenet_subsets():
        # Not an error: the text may be meant for another program, and --classes decides anyway.
        notes.append(
            f"its text classes is {shown(repr(classes))}, which is not a known subset of ImageNet, "
            "and is ignored: set --classes"
        )
        classes = None
    if "soft_labels" in content:
        notes.append("its soft_labels are not read: soft labels are read where labels would be")
    stated, unwhitened = texts["format"], texts["unwhitened"]
    return TensorStructure(
        images=images,
        labels=labels,
        label_path=path,
        format=METHODS[stated]
        if stated is not None and "method" not in unknown
        else _method_of("arrays", path, images, labels, name),
        normalisation=None if "normalisation" in unknown else texts["normalisation"],
        collage=None if "collage" in unknown or not texts["collage"] else int(texts["collage"]),
        whitening=next((kind for kind in Kind if kind.value == texts["whitening"]), None),
        # It is copied into the manifest, so nothing but a hash is accepted.
        unwhitened=unwhitened if re.fullmatch("[0-9a-f]{64}", unwhitened or "") else None,
        classes=classes,
        notes=tuple(notes),
        unknown=unknown,
    )


_TEXTS = ("format", "normalisation", "collage", "whitening", "unwhitened", "classes")


def _other_images(content: Mapping[Any, Any], used: Sequence[Array]) -> list[str]:
    """Return a note on other arrays that may be images."""
    others = [
        f"{shown(str(name)[:30])} ({describe_array(array)})"
        for name, array in content.items()
        if is_array(array) and len(array.shape) == 4 and not any(array is one for one in used)
    ]
    if not others:
        return []
    return [f"not read: {', '.join(others[:4])}{', …' if len(others) > 4 else ''}"]


def _unknown_texts(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return the problem with each unknown text, by the field of `ReadOptions` to override it."""
    problems = {}
    for option, key, flag, expected in (
        ("method", "format", "format", names_of("tensors")),
        ("collage", "collage", "collage", [str(factor) for factor in range(1, MAX_COLLAGE + 1)]),
        # A stated normalisation also means that the images are not whitened.
        ("normalisation", "whitening", "normalisation", [kind.value for kind in Kind]),
    ):
        if (text := texts[key]) is not None and text not in expected:
            problems[option] = (
                f"its text {key} is {shown(repr(text))}; expected one of {', '.join(expected)}. "
                f"Override it with --{flag}."
            )
    # Not in the loop: besides the names, any text MEAN:STD is known.
    if (text := texts["normalisation"]) is not None:
        try:
            find_normalisation(text)
        except DatasetError as error:
            problems["normalisation"] = (
                f"its text normalisation is {shown(repr(text))}; expected "
                f"{str(error).partition(': expected ')[2]}. Override it with --normalisation."
            )
    return problems


def may_hold_images(path: Path) -> bool:
    """Return whether a file is readable and has a structure that images are read from."""
    try:
        content = open_stored(path)
    except DatasetError:
        return False
    candidates: list[Any] = [content]
    if isinstance(content, Mapping):
        # By name, since the state of a network also holds arrays of four axes.
        candidates = [*(content.get(name) for name, _ in _NAMES), *_last_experiment(content)[:1]]
    elif isinstance(content, Sequence) and len(content) == 2:
        candidates = [content[0]]
    return any(is_array(array) and len(array.shape) == 4 for array in candidates)


def _text(value: Content) -> str | None:
    """Return a text, or a whole number as one, that was stored as a 0-d array.

    Returns:
        The text. Of any other value a description, which is not a known text and so is refused by
        name. None without a value, or with invalid code points.
    """
    if value is None:
        return None
    # A StoredArray here is rows, or a text beyond the limit.
    if not isinstance(value, np.ndarray) or value.ndim or not value.nbytes:
        return _describe(value)
    # A collage factor may be a number, as users save it.
    if value.dtype.kind in "iu":
        return str(value)
    if value.dtype.kind == "S":
        return value.item().decode("ascii", "backslashreplace")  # type: ignore[no-any-return]
    if value.dtype.kind != "U":
        return f"{_describe(value)} {value}"
    # numpy stores UTF-32 and raises on code points beyond Unicode wherever the text is printed.
    codes = value.reshape(1).view(np.dtype(np.uint32).newbyteorder(value.dtype.byteorder))
    return str(value) if (codes <= sys.maxunicode).all() else None


def _describe(content: Content) -> str:
    if is_array(content):
        return describe_array(content)
    if isinstance(content, Mapping):
        keys = [shown(str(key)[:30]) + _instead(content, key) for key in list(content)[:8]]
        return f"a dictionary of {', '.join(keys) or 'nothing'}"
    if not isinstance(content, Sequence):
        return "no tensors"
    if len(content) == 2 and is_array(content[0]):
        return f"a list of {_describe(content[0])} and {_describe(content[1])}"
    return f"a list of {len(content)}"


def _instead(content: Mapping[Any, Any], key: object) -> str:
    """Return, in brackets, what a name of images or labels stands for in place of an array."""
    value = content[key]
    named = any(key in pair for pair in _NAMES)
    return "" if not named or is_array(value) else f" ({_describe(value)})"
