"""The training images that a ZCA transform is fitted to again, each method's in its own way, or the transform that FRePo keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.folders import image_files_below
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.labels import describe_array
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.normalisation import Normalisation
from diver_trt.distilled.source import channels_last
from diver_trt.distilled.stored_array import Content, StoredArray
from diver_trt.distilled.whitening import Whitening, fit_whitening
from diver_trt.errors import DatasetError

_MAX_VALUE = 1000
"""Of a transform: its largest are the square roots of eigenvalues, tens for normalised images."""


def fit_reference(
    reference: Path,
    kind: Kind,
    rows: NDArray[np.intp],
    normalisation: Normalisation,
    shape: tuple[int, ...],
) -> tuple[Whitening, Normalisation, str]:
    """Fit a method's whitening to its training images, or take the transform that FRePo saved.

    Args:
        reference: A folder of images, a file of an array of them, or FRePo's `data/zca/*.npz`.
        kind: Whose whitening.
        rows: Which values are whitened together (`whitened_rows`).
        normalisation: What the method normalises with before it whitens.
        shape: Of a whitened image, (3, H, W).

    Returns:
        The transform, what is to be undone after it, and what to say of the reference.

    Raises:
        DatasetError: There is no reference, or it holds others than the method's.
    """
    if not reference.exists():
        raise DatasetError(f"--zca-reference {reference}: no such file or folder")
    if not (reference.is_dir() or reference.is_file()):
        raise DatasetError(
            f"--zca-reference {reference}: is a FIFO, device or socket, expected a file or a folder"
        )
    content = None if reference.is_dir() else open_stored(reference)
    if isinstance(content, Mapping) and {"rev_whitening_transform", "zca_mean"} <= content.keys():
        if kind is not Kind.FREPO:
            raise DatasetError(
                f"--zca-reference {reference}: is a transform of FRePo's; expected the images that {kind.value}'s is fitted to"
            )
        return (
            _stored_transform(reference, content, rows, shape),
            normalisation,
            f"the ZCA transform is FRePo's own, of {reference.name}",
        )
    pixels = (
        _fitting(reference, image, shape[1:]) for image in _reference_images(reference, content)
    )
    if kind is not Kind.KIP:
        if kind is Kind.FREPO:
            mean, std = (
                np.array(numbers, np.float32)[:, None, None]
                for numbers in (normalisation.mean, normalisation.std)
            )
            pixels = ((image - mean) / std for image in pixels)
        whitening, count = fit_whitening(pixels, kind, rows)
        return whitening, normalisation, _fitted_to(count, rows)
    means: list[float] = []
    lengths: list[float] = []

    def prepared() -> Iterator[NDArray[np.float32]]:
        for image in pixels:
            means.append(float(image.mean()))
            centred = image - np.float32(means[-1])
            lengths.append(float(np.linalg.norm(centred)))
            yield centred / np.float32(max(lengths[-1], 1e-6))

    whitening, count = fit_whitening(prepared(), kind, rows)
    brightness, contrast = float(np.mean(means)), float(np.mean(lengths))
    name = "KIP, at the reference's brightness and contrast"
    return (
        whitening,
        Normalisation(name, (brightness,) * 3, (contrast,) * 3),
        _fitted_to(count, rows),
    )


def _fitted_to(count: int, rows: NDArray[np.intp]) -> str:
    """Return what to say of the number of images."""
    said, dimensions = f"the ZCA transform was fitted to {count:,} images", rows.shape[1]
    if count * len(rows) >= dimensions:
        return said
    return f"{said}, too few for its {dimensions:,} dimensions: expected the whole training set, for CIFAR 50,000"


def _stored_transform(
    path: Path, content: Mapping[Any, Any], rows: NDArray[np.intp], shape: tuple[int, ...]
) -> Whitening:
    size = rows.shape[1]
    arrays = []
    for name, expected in (("zca_mean", (rows.size,)), ("rev_whitening_transform", (size, size))):
        array = content[name]
        if (
            not isinstance(array, (StoredArray, np.ndarray))
            or array.shape != expected
            or array.dtype.kind != "f"
        ):
            found = (
                describe_array(array)
                if isinstance(array, (StoredArray, np.ndarray))
                else "no array"
            )
            raise DatasetError(
                f"--zca-reference {path}: {name} is {found}; for images of {shape[2]} x {shape[1]} expected floats {list(expected)}"
            )
        values = array[: len(array)]
        if not (np.abs(values) < _MAX_VALUE).all():
            raise DatasetError(
                f"--zca-reference {path}: {name} holds values of no transform; expected numbers below {_MAX_VALUE:,}"
            )
        arrays.append(values.astype(np.float32))
    mean, inverse = arrays
    return Whitening(
        rows, mean.reshape(*shape[1:], 3).transpose(2, 0, 1).reshape(-1)[rows], inverse
    )


def _reference_images(path: Path, content: Content) -> Iterator[NDArray[Any]]:  # => [3, H, W]
    if path.is_dir():
        files = image_files_below(path)
        return (read_image(file).transpose(2, 0, 1).astype(np.float32) / 255 for file in files)
    arrays = (
        list(content.values())
        if isinstance(content, Mapping)
        else content
        if isinstance(content, Sequence)
        else [content]
    )
    images = next(
        (
            array
            for array in arrays
            if isinstance(array, (StoredArray, np.ndarray)) and len(array.shape) == 4
        ),
        None,
    )
    if images is None:
        raise DatasetError(
            f"--zca-reference {path}: holds no array of images; expected one, or a folder of images"
        )
    last, scale = channels_last(path, images), 255 if images.dtype == np.uint8 else 1
    rows = (images[i] / np.float32(scale) for i in range(len(images)))
    return (row.transpose(2, 0, 1) if last else row for row in rows)


def _fitting(path: Path, image: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    if len(image) != 3:
        raise DatasetError(
            f"--zca-reference {path}: holds images of {len(image)} channels; expected three"
        )
    if image.shape[1:] != size:
        raise DatasetError(
            f"--zca-reference {path}: holds images of {image.shape[2]} x {image.shape[1]}; the method whitened {size[1]} x {size[0]}"
        )
    if not (image.min() >= -0.01 and image.max() <= 1.01):
        raise DatasetError(
            f"--zca-reference {path}: holds values from {image.min():.2f} to {image.max():.2f}; expected images in 0 to 1, or uint8"
        )
    return image.astype(np.float32)
