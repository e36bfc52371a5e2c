"""The training images that a ZCA transform is fitted to again, each method's in its own way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.datasets.image_file import SUFFIXES, read_image
from diver_trt.datasets.image_source import channels_last
from diver_trt.datasets.normalisation import Normalisation
from diver_trt.datasets.stored_array import StoredArray, open_stored
from diver_trt.datasets.whitening import Kind, Whitening, fit_whitening
from diver_trt.errors import DatasetError


def fit_reference(reference: Path, method: str, normalisation: Normalisation, shape: tuple[int, ...]) -> tuple[Whitening, Normalisation]:
    """Fit a method's whitening to its training images.

    Args:
        reference: A folder of images, or a file of an array of them.
        method: The format's name.
        normalisation: What the method normalises with before it whitens.
        shape: Of a whitened image, (c, H, W).

    Returns:
        The transform, and what is to be undone after it.

    Raises:
        DatasetError: The reference holds no images, or others than the method whitened.
    """
    if shape[0] != 3:
        raise DatasetError(f"--zca-reference: a transform is fitted to images of three channels; the file has {shape[0]}")
    pixels = (_fitting(reference, image, shape[1:]) for image in _reference_images(reference))
    if method == "frepo":
        mean, std = np.array(normalisation.mean, np.float32), np.array(normalisation.std, np.float32)
        return fit_whitening(((image.transpose(1, 2, 0) - mean) / std for image in pixels), Kind.FREPO), normalisation
    if method != "kip":
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
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return (read_image(file).transpose(2, 0, 1).astype(np.float32) / 255 for file in files)
    content = open_stored(path)
    arrays = list(content.values()) if isinstance(content, Mapping) else content if isinstance(content, Sequence) else [content]
    images = next((array for array in arrays if isinstance(array, (StoredArray, np.ndarray)) and len(array.shape) == 4), None)
    if images is None:
        raise DatasetError(f"--zca-reference {path}: holds no array of images; expected one, or a folder of images")
    last, scale = channels_last(path, images), 255 if images.dtype == np.uint8 else 1
    rows = (images[i].astype(np.float32) / np.float32(scale) for i in range(len(images)))
    return (row.transpose(2, 0, 1) if last else row for row in rows)


def _fitting(path: Path, image: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    if len(image) != 3:
        raise DatasetError(f"--zca-reference {path}: holds images of {len(image)} channels; expected three")
    if image.shape[1:] != size:
        raise DatasetError(
            f"--zca-reference {path}: holds images of {image.shape[2]} x {image.shape[1]}; the method whitened {size[1]} x {size[0]}"
        )
    if image.min() < -0.01 or image.max() > 1.01:
        raise DatasetError(
            f"--zca-reference {path}: holds values from {image.min():.2f} to {image.max():.2f}; expected images in 0 to 1, or uint8"
        )
    return image
