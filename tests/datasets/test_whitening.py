"""ZCA: seen, refused with a way out, and undone where the training images are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.datasets.dataset import read_dataset
from diver_trt.datasets.normalisation import NORMALISATIONS
from diver_trt.datasets.read_options import ReadOptions
from diver_trt.datasets.whitening import Kind, fit_whitening, looks_whitened
from diver_trt.errors import DatasetError

CLASSES = [index for index in range(10) for _ in range(2)]
FloatImages = NDArray[np.float32]


@pytest.fixture(scope="module")
def photographs() -> NDArray[np.uint8]:
    """Eight hundred 16-pixel patches of scikit-learn's two photographs: real images, whose neighbours resemble each other."""
    from sklearn.datasets import load_sample_images

    pictures, generator, patches = load_sample_images().images, np.random.default_rng(0), []
    for _ in range(800):
        picture = pictures[generator.integers(2)]
        side = int(generator.integers(16, 120))
        y, x = (int(generator.integers(size - side)) for size in picture.shape[:2])
        patches.append(np.asarray(Image.fromarray(picture[y : y + side, x : x + side]).resize((16, 16), Image.Resampling.BOX)))
    return np.stack(patches)


def kornia(images: FloatImages, training: FloatImages) -> FloatImages:
    """What kornia.enhance.ZCAWhitening(eps=0.1) makes of images, written from its documentation, in float64."""
    rows = training.reshape(len(training), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    u, s, _ = np.linalg.svd(np.cov(rows, rowvar=False))
    matrix = u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T
    whitened: FloatImages = ((images.reshape(len(images), -1) - mean) @ matrix).reshape(images.shape).astype(np.float32)
    return whitened


def tenth_of_the_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = rows.T @ rows / len(rows)
    u, s, _ = np.linalg.svd(covariance)
    return np.asarray(u @ np.diag((s + 0.1 * np.trace(covariance) / len(covariance)) ** -0.5) @ u.T)


def planar(pixels: NDArray[np.uint8]) -> FloatImages:
    values: FloatImages = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    return values


def save_mtt(folder: Path, images: FloatImages, name: str = "images_best") -> Path:
    torch.save(torch.from_numpy(images), folder / f"{name}.pt")
    torch.save(torch.tensor(CLASSES), folder / f"{name.replace('images_zca', 'labels').replace('images', 'labels')}.pt")
    return folder / f"{name}.pt"


def read(path: Path, bundle: Bundle, **options: Any) -> NDArray[np.uint8]:
    dataset = read_dataset(path, bundle, ReadOptions(classes="imagewoof", **options))
    return np.stack([dataset.images.read(sample.position) for sample in dataset.samples])


def test_whitened_images_are_told_from_photographs_and_distilled_ones(photographs: NDArray[np.uint8]) -> None:
    images = planar(photographs)
    normalised = (images[:20] - 0.45) / 0.25
    assert not looks_whitened(normalised)
    assert not looks_whitened(normalised + np.random.default_rng(0).normal(size=normalised.shape))
    assert looks_whitened(kornia(images[:20], images))


def test_absurd_values_are_no_whitening_and_no_warning() -> None:
    assert not looks_whitened(np.full((2, 3, 4, 4), 3e38, np.float32))
    assert not looks_whitened(np.full((2, 3, 4, 4), 1e300))


def test_kornias_whitening_is_refused_and_undone(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    images = planar(photographs)
    path = save_mtt(tmp_path, kornia(images[:20], images))
    with pytest.raises(
        DatasetError, match=r"is ZCA-whitened.*give the file that is not whitened.*or name the training images with --zca-ref"
    ):
        read(path, imagenet)
    np.savez(tmp_path / "train.npz", images=photographs)
    np.testing.assert_allclose(read(path, imagenet, zca_reference=tmp_path / "train.npz"), photographs[:20], atol=1)


def test_the_reference_may_be_a_folder_of_images(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    images = planar(photographs)
    path = save_mtt(tmp_path, kornia(images[:20], images))
    for i, image in enumerate(photographs):
        file = tmp_path / "train" / str(i % 10) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    np.testing.assert_allclose(read(path, imagenet, zca_reference=tmp_path / "train"), photographs[:20], atol=1)


def test_the_unwhitened_twin_is_taken_as_it_is(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    """MTT normalises nothing when it whitens: what the inverse transform gives lies in [0, 1]."""
    images = planar(photographs)
    whitened = save_mtt(tmp_path, kornia(images[:20], images), "images_900")
    torch.save(torch.from_numpy(images[:20]), tmp_path / "images_zca_900.pt")
    with pytest.raises(DatasetError, match=r"give images_zca_900.pt, which is not whitened"):
        read(whitened, imagenet)
    np.testing.assert_array_equal(read(tmp_path, imagenet), photographs[:20])


def test_frepos_whitening_is_undone(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    statistics = NORMALISATIONS["frepo-cifar10"]
    rows = ((photographs / 255 - statistics.mean) / statistics.std).reshape(len(photographs), -1)
    whitened = ((rows - rows.mean(axis=0)) @ tenth_of_the_mean(rows - rows.mean(axis=0)))[:20].reshape(20, 16, 16, 3)
    path = tmp_path / "step000100.npz"
    np.savez(path, image=whitened.astype(np.float32), label=(np.eye(10)[CLASSES] - 0.1).astype(np.float32))
    np.savez(tmp_path / "train.npz", images=photographs)
    with pytest.raises(DatasetError, match="FRePo normalises each data set with its own statistics"):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")
    with pytest.raises(DatasetError, match="is ZCA-whitened"):
        read(path, imagenet)
    found = read(path, imagenet, zca_reference=tmp_path / "train.npz", normalisation="frepo-cifar10")
    np.testing.assert_allclose(found, photographs[:20], atol=2)


def test_frepo_fits_normalised_images_with_the_channels_last(photographs: NDArray[np.uint8]) -> None:
    rows = photographs.reshape(len(photographs), -1) / 255
    whitening = fit_whitening((photographs / 255).astype(np.float32), Kind.FREPO)
    whitened = ((rows - rows.mean(axis=0)) @ tenth_of_the_mean(rows - rows.mean(axis=0)))[3].reshape(16, 16, 3)
    np.testing.assert_allclose(whitening.undo(whitened.transpose(2, 0, 1)), planar(photographs)[3], atol=2e-3)


def test_kip_comes_back_but_for_brightness_and_contrast(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    rows = planar(photographs).reshape(len(photographs), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whitened = (rows @ tenth_of_the_mean(rows))[:20].reshape(20, 3, 16, 16).transpose(0, 2, 3, 1)
    path = tmp_path / "kip_cifar10_ConvNet3_ssize20_zca_nol_noaug_ckpt1000.npz"
    np.savez(path, images=whitened.astype(np.float32), labels=(np.eye(10)[CLASSES] - 0.1).astype(np.float32))
    with pytest.raises(
        DatasetError, match=r"is ZCA-whitened, and the transform is not in the file; name the training images with --zca-ref"
    ):
        read(path, imagenet)
    np.savez(tmp_path / "train.npz", images=photographs)
    found = read(path, imagenet, zca_reference=tmp_path / "train.npz")
    for image, original in zip(found, photographs[:20], strict=True):
        inside = (image > 0) & (image < 255)
        assert np.corrcoef(image[inside].astype(float), original[inside].astype(float))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), "holds 1 images; expected those the method whitened"),
        (np.zeros((9, 8, 8, 3), np.uint8), "holds images of 8 x 8; the method whitened 16 x 16"),
        (np.full((9, 16, 16, 3), 7, np.float32), "holds values from 7.00 to 7.00; expected images in 0 to 1, or uint8"),
        (np.zeros((9, 16), np.uint8), "holds no array of images; expected one, or a folder of images"),
    ],
)
def test_references_that_cannot_be_are_refused(
    photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle, images: NDArray[Any], message: str
) -> None:
    path = save_mtt(tmp_path, kornia(planar(photographs)[:20], planar(photographs)))
    np.savez(tmp_path / "train.npz", images=images)
    with pytest.raises(DatasetError, match=message):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")


def test_a_reference_for_images_that_are_not_whitened_is_refused(photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle) -> None:
    path = save_mtt(tmp_path, (planar(photographs)[:20] - 0.45) / 0.25)
    np.savez(tmp_path / "train.npz", images=photographs)
    with pytest.raises(DatasetError, match="does not look ZCA-whitened; leave it out"):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")


def test_large_images_have_no_transform_that_fits_into_memory() -> None:
    with pytest.raises(DatasetError, match="are too large to fit a transform for"):
        fit_whitening([np.zeros((3, 128, 128), np.float32)] * 3, Kind.KORNIA)
