"""What a caller hands to a `Recoverer`, checked and copied one sample at a time.

The caller's values are read once and never kept: an iterable may yield one buffer again and again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import DatasetError, shown, shown_value
from diver_trt.method.noise import sample_noise
from diver_trt.pixels import Pixels, square
from diver_trt.runtime.engine import Latents
from diver_trt.tensors import describe
from diver_trt.whole_number import whole_number


@dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way through the model.

    Attributes:
        key: Its name, which its noise follows from.
        label: Its class in the model.
        image: Pixels of the model's size, [S, S, 3] uint8.
        noise: Standard normal noise, [c, h, w] float32.
    """

    key: str
    label: int
    image: Pixels
    noise: Latents


def checked_samples(
    bundle: Bundle,
    images: Iterable[Any],
    labels: Iterable[Any],
    *,
    seed: int,
    keys: Iterable[Any] | None = None,
    noise: Iterable[Any] | None = None,
) -> Iterator[Sample]:
    """Return the samples, each checked when it is pulled.

    Known counts are compared at once.

    Args:
        bundle: The model.
        images: uint8 arrays [H, W, 3], what numpy makes such of, or PIL images, whose EXIF
            orientation is applied.
        labels: Whole numbers, one per image.
        seed: Seed of the noise, from `checked_seed`.
        keys: Texts, one per image and no two alike; None numbers the images of each class.
        noise: float32 arrays [c, h, w], one per image, instead of the seed's.

    Raises:
        DatasetError: If a value is of another type, shape or range, a key is not unique, or the
            numbers differ.
    """
    present = {"images": images, "labels": labels}
    present |= {
        name: given for name, given in (("keys", keys), ("noise", noise)) if given is not None
    }
    iterators = {name: _iterator(name, values) for name, values in present.items()}
    # One image alone would be iterated by its rows.
    if (ndim := getattr(images, "ndim", 4)) != 4:
        raise DatasetError(
            f"images: got an array of {ndim} dimensions, expected uint8[n, H, W, 3]; one image "
            "alone is image[None]"
        )
    # What has no length, such as a generator, is counted as it is read (`_samples`).
    if isinstance(images, Sized):
        for name, values in present.items():
            if isinstance(values, Sized) and len(values) != len(images):
                raise DatasetError(
                    f"there are {len(images)} images but {len(values)} {name}; expected one per "
                    "image"
                )
    return _samples(bundle, seed, iterators)


def _samples(bundle: Bundle, seed: int, iterators: dict[str, Iterator[Any]]) -> Iterator[Sample]:
    shape, in_class, seen = bundle.latent_shape, Counter[int](), set[str]()
    images = iterators.pop("images")
    count = 0
    for count, image in enumerate(images, 1):
        number = count - 1
        values = {name: _next(name, iterator, number) for name, iterator in iterators.items()}
        label = checked_label(values["labels"], number, bundle.num_classes)
        if "keys" in values:
            key = _key(values["keys"], number)
            if key in seen:
                raise DatasetError(
                    f"key {shown_value(key)} of image {number} is another image's too, and would "
                    "give both the same noise; "
                    "expected each key once"
                )
            seen.add(key)
        else:
            key = f"{label:05d}/{in_class[label]:05d}"
        in_class[label] += 1
        own = (
            _noise(values["noise"], number, shape)
            if "noise" in values
            else sample_noise(seed, key, shape)
        )
        yield Sample(key, label, _pixels(image, number, bundle.image_size), own)
    for name, iterator in iterators.items():
        # The dictionary is the sentinel, an object that no caller can have put in.
        if next(iterator, iterators) is not iterators:
            raise DatasetError(f"there are {count} images but more {name}; expected one per image")


def _iterator(name: str, values: Any) -> Iterator[Any]:
    # A text would be iterated by its characters.
    if isinstance(values, (str, bytes)):
        raise DatasetError(f"{name} is the text {shown_value(values)}; expected one per image")
    # A mapping yields its keys, and a set no order of ours.
    if isinstance(values, (Mapping, set, frozenset)):
        raise DatasetError(
            f"{name} is a {type(values).__name__}; expected a sequence, with one entry per image"
        )
    try:
        return iter(values)
    except TypeError as cause:
        raise DatasetError(
            f"{name} is {shown_value(values)} ({type(values).__name__}); expected one per image"
        ) from cause


def _next(name: str, values: Iterator[Any], number: int) -> Any:
    for value in values:
        return value
    raise DatasetError(
        f"there are more than {number} images but only {number} {name}; expected one per image"
    )


def checked_label(value: Any, number: int, num_classes: int) -> int:
    """Return the label of an image as an int.

    Args:
        value: What was given.
        number: The image's number, for messages.
        num_classes: How many classes the model has.

    Raises:
        DatasetError: If it is not a whole number, or not a class.
    """
    label = whole_number(value)
    if label is None:
        raise DatasetError(
            f"label of image {number} is {shown_value(value)} ({type(value).__name__}); expected "
            "a whole number"
        )
    if not 0 <= label < num_classes:
        raise DatasetError(
            f"image {number} has label {shown_value(label)}; the model has classes 0 to "
            f"{num_classes - 1}"
        )
    return label


def _key(value: Any, number: int) -> str:
    # The noise is drawn from the key's UTF-8 bytes, which a lone surrogate does not have.
    if not isinstance(value, str) or not value.isprintable():
        raise DatasetError(
            f"key of image {number} is {shown_value(value)} ({type(value).__name__}); expected a "
            "text that can be printed"
        )
    return value


def _noise(value: Any, number: int, shape: tuple[int, ...]) -> Latents:
    own = _array(value, f"noise of image {number}")
    if own.shape != shape or own.dtype != np.float32:
        raise DatasetError(
            f"noise of image {number}: got {describe(own)}, expected float32{list(shape)}"
        )
    kept: Latents = own.copy()
    return kept


def _pixels(value: Any, number: int, size: int) -> Pixels:
    """Return an image in the model's size, in memory of its own."""
    name = f"image {number}"
    pillow = sys.modules.get("PIL.Image")  # a PIL image cannot be there without it
    if pillow is not None and isinstance(value, pillow.Image):
        value = _upright_rgb(value, name)
    kept: Pixels = square(_array(value, name), size, name).copy()
    return kept


def _upright_rgb(image: Any, name: str) -> Any:
    """Return a PIL image in RGB, turned as its EXIF orientation requires."""
    from PIL import ImageOps

    try:
        # The first picture of a phone's JPEG with several (MPO) is taken, as from a file.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        transparent = image.has_transparency_data
        # Pillow decodes on first use; here, damage is reported with the image's number.
        image.load()
    except Exception as cause:  # Pillow raises much more than OSError on damage
        raise DatasetError(
            f"{name}: Pillow cannot read it ({shown(str(cause) or repr(cause))})"
        ) from cause
    if frames > 1:
        raise DatasetError(
            f"{name}: got a PIL image of {frames} frames, expected a still image; take one with "
            ".seek(number) and .convert('RGB')"
        )
    plain = image.mode in ("RGB", "L", "1", "P")
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips such values at 255, and cuts floats to whole numbers:
        # https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes
        raise DatasetError(
            f"{name}: got a PIL image of mode {image.mode}, expected RGB; scale its values to 0 to "
            "255 and make it uint8, since .convert('RGB') clips them"
        )
    if not plain or transparent:
        raise DatasetError(
            f"{name}: got a PIL image of mode {image.mode}{' with transparency' if plain else ''}, "
            "expected RGB; convert it with .convert('RGB')"
        )
    with suppress(Exception):  # metadata that cannot be parsed is ignored
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def _array(value: Any, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asarray(value)
    except (
        Exception
    ) as cause:  # whatever an object's own conversion raises, as torch's for a tensor on a GPU
        raise DatasetError(f"{name}: numpy cannot read it ({shown(str(cause))})") from cause
    return array
