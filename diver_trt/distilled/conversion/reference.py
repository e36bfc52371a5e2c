"""A method's ZCA transform, from its training images or from the file in which FRePo keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.conversion.zca import Whitening, fit_whitening
from diver_trt.distilled.folder_tree import image_files_below
from diver_trt.distilled.image_array import channels_last
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.labels import describe_array
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.normalisation import Normalisation
from diver_trt.distilled.regular_file import require_file_or_folder
from diver_trt.distilled.stored_array import Array, Content, is_array
from diver_trt.errors import DatasetError

_OPTION = "--zca-reference"
_MAX_VALUE = 1000
"""Limit on the values of a stored transform."""
# Its largest are square roots of eigenvalues: tens for normalised images.


def read_reference(
    reference: Path,
    kind: Kind,
    rows: NDArray[np.intp],
    normalisation: Normalisation,
    shape: tuple[int, ...],
) -> tuple[Whitening, Normalisation, str]:
    """Fit a method's whitening to its training images, or read the transform that FRePo saved.

    Args:
        reference: A folder of images, a file of an array of them, or FRePo's `data/zca/*.npz`.
        kind: The method's whitening.
        rows: Which values are whitened together (`whitened_rows`).
        normalisation: The method's normalisation before it whitens.
        shape: Of a whitened image, (3, H, W).

    Returns:
        The transform, the normalisation to undo after it, and a note about the reference.

    Raises:
        DatasetError: If the reference is missing, or does not match the whitened images.
    """
    # FRePo's saved transform as it is; else a transform fitted to images as the method prepares
    # them.
    require_file_or_folder(reference, "expected training images", f"{_OPTION} ")
    content = None if reference.is_dir() else open_stored(reference)
    # The names in FRePo's `data/zca/*.npz`.
    if isinstance(content, Mapping) and {"rev_whitening_transform", "zca_mean"} <= content.keys():
        if kind is not Kind.FREPO:
            raise DatasetError(
                f"{_OPTION} {reference}: is a transform of FRePo's; expected the images that "
                f"{kind.value}'s is fitted to"
            )
        whitening = _stored_transform(reference, content, rows, shape)
        return whitening, normalisation, f"the ZCA transform is FRePo's own, of {reference.name}"
    pixels = (
        _fitting(reference, image, shape[1:]) for image in _reference_images(reference, content)
    )
    if kind is Kind.KIP:
        whitening, normalisation, count = _fit_kip(pixels, rows)
    else:
        if kind is Kind.FREPO:
            # FRePo normalises before it whitens, so the transform is fitted to normalised images.
            mean, std = (
                np.array(numbers, np.float32)[:, None, None]
                for numbers in (normalisation.mean, normalisation.std)
            )
            pixels = ((image - mean) / std for image in pixels)
        whitening, count = fit_whitening(pixels, kind, rows)
    return whitening, normalisation, _fitted_to(count, rows)


def _fit_kip(
    pixels: Iterator[NDArray[np.float32]], rows: NDArray[np.intp]
) -> tuple[Whitening, Normalisation, int]:
    """Fit KIP's whitening, and find the average brightness and contrast of the images."""
    means: list[float] = []
    lengths: list[float] = []

    def prepared() -> Iterator[NDArray[np.float32]]:
        for image in pixels:
            means.append(float(image.mean()))
            centred = image - np.float32(means[-1])
            lengths.append(float(np.linalg.norm(centred)))
            yield centred / np.float32(max(lengths[-1], 1e-6))  # the length of a plain image is 0

    whitening, count = fit_whitening(prepared(), Kind.KIP, rows)
    # KIP scales each image by its own mean and length and saves neither; the averages are the best
    # estimate of what was lost.
    brightness, contrast = float(np.mean(means)), float(np.mean(lengths))
    return whitening, Normalisation("KIP", (brightness,) * 3, (contrast,) * 3), count


def _fitted_to(count: int, rows: NDArray[np.intp]) -> str:
    """Return a note on the number of images that a transform was fitted to."""
    note, dimensions = f"the ZCA transform was fitted to {count:,} images", rows.shape[1]
    # Fewer vectors than dimensions leave directions in which the variance is unknown.
    if count * len(rows) >= dimensions:
        return note
    return (
        f"{note}, too few for its {dimensions:,} dimensions: expected the whole training set, for "
        "CIFAR 50,000"
    )


def _stored_transform(
    path: Path, content: Mapping[Any, Any], rows: NDArray[np.intp], shape: tuple[int, ...]
) -> Whitening:
    size = rows.shape[1]
    arrays = []
    for name, expected in (("zca_mean", (rows.size,)), ("rev_whitening_transform", (size, size))):
        array = content[name]
        if not is_array(array) or array.shape != expected or array.dtype.kind != "f":
            found = describe_array(array) if is_array(array) else "not an array"
            raise DatasetError(
                f"{_OPTION} {path}: {name} is {found}; for images of {shape[2]} x {shape[1]} "
                f"expected floats {list(expected)}"
            )
        values = array[: len(array)]
        if not (np.abs(values) < _MAX_VALUE).all():
            raise DatasetError(
                f"{_OPTION} {path}: {name} holds values outside those of a transform; expected "
                f"numbers below {_MAX_VALUE:,}"
            )
        arrays.append(values.astype(np.float32))
    mean, inverse = arrays
    planar = mean.reshape(*shape[1:], 3).transpose(2, 0, 1)  # FRePo has the channels last
    return Whitening(rows, planar.reshape(-1)[rows], inverse)


def _reference_images(path: Path, content: Content) -> Iterator[NDArray[Any]]:  # => [3, H, W]
    if path.is_dir():
        files = image_files_below(path)
        return (read_image(file).transpose(2, 0, 1).astype(np.float32) / 255 for file in files)
    images = _first_images(content)
    if images is None:
        raise DatasetError(
            f"{_OPTION} {path}: does not hold an array of images; expected one, or a folder of "
            "images"
        )
    # Floats are taken for pixels in 0 to 1, which `_fitting` checks.
    last, scale = channels_last(path, images), 255 if images.dtype == np.uint8 else 1
    rows = (images[i] / np.float32(scale) for i in range(len(images)))
    return (row.transpose(2, 0, 1) if last else row for row in rows)


def _first_images(content: Content) -> Array | None:
    candidates: Sequence[Any] = [content]
    if isinstance(content, Mapping):
        candidates = list(content.values())
    elif isinstance(content, Sequence):
        candidates = content
    # By their shape, since the names in a saved training set are arbitrary.
    return next((found for found in candidates if is_array(found) and len(found.shape) == 4), None)


def _fitting(path: Path, image: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a training image as float32, if it is one of the size that was whitened."""
    if len(image) != 3:
        raise DatasetError(
            f"{_OPTION} {path}: holds images of {len(image)} channels; expected three"
        )
    # Not resized: the transform depends on every pixel.
    if image.shape[1:] != size:
        raise DatasetError(
            f"{_OPTION} {path}: holds images of {image.shape[2]} x {image.shape[1]}; the method "
            f"whitened {size[1]} x {size[0]}"
        )
    if not (image.min() >= -0.01 and image.max() <= 1.01):  # negated, so that NaN is refused
        raise DatasetError(
            f"{_OPTION} {path}: holds values from {image.min():.2f} to {image.max():.2f}; expected "
            "images in 0 to 1, or uint8"
        )
    return image.astype(np.float32)
