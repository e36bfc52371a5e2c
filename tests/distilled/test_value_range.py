"""The normalisation of values is recognised by their range, or else doubted or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.methods import METHODS
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.value_range import contradiction, outside, read_range, recognise
from diver_trt.errors import DatasetError
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images

SCALED = {"none": (1.0, 0.0), "minus1to1": (2.0, -1.0), "0to255": (255.0, 0.0)}


def scaled(side: int, convention: str) -> torch.Tensor:
    factor, shift = SCALED[convention]
    return factor * methods.normalised(known_images(20, side), "none") + shift


def named(folder: Path, images: torch.Tensor, classes: list[int]) -> Path:
    torch.save({"images": images, "labels": methods.hard(classes)}, folder / "syn.pt")
    return folder / "syn.pt"


def npz(folder: Path, images: torch.Tensor, classes: list[int]) -> Path:
    np.savez(folder / "s.npz", images=images.permute(0, 2, 3, 1).numpy(), labels=classes)
    return folder / "s.npz"


def safe(folder: Path, images: torch.Tensor, classes: list[int]) -> Path:
    arrays = {"images": images.half(), "labels": methods.hard(classes)}
    safetensors.torch.save_file(arrays, folder / "s.safetensors")
    return folder / "s.safetensors"


PLAIN = [methods.listed("data.pt"), methods.listed("data_20000.pt"), named, npz, safe]
NORMALISED = [methods.mtt, methods.dm, methods.glad, methods.frepo]


def read(path: Path, bundle: Bundle, **options: Any) -> Dataset:
    return read_dataset(path, bundle, ReadOptions(collage=1, **options))


def pixels(dataset: Dataset) -> np.ndarray[Any, Any]:
    return np.stack([dataset.images.read(position) for position in range(20)])


@pytest.mark.parametrize("convention", SCALED)
@pytest.mark.parametrize("write", [*PLAIN, *NORMALISED])
def test_scaled_pixels_are_recognised_in_every_container(
    tmp_path: Path, digits: Bundle, write: Callable[..., Path], convention: str
) -> None:
    images = known_images(20, 32)
    dataset = read(write(tmp_path, scaled(32, convention), CLASSES), digits)
    np.testing.assert_allclose(pixels(dataset), images, atol=1)
    assert dataset.origin.normalisation == convention
    found = [note for note in dataset.origin.notes if note.startswith("values lie in")]
    plain = write in PLAIN and convention == "none"
    assert len(found) == (not plain)
    if found:
        factor, shift = SCALED[convention]
        assert f"values lie in {shift:.2f} to {factor + shift:.2f} with mean" in found[0]
        assert f"pixels scaled to {shift:.0f} to {factor + shift:.0f}" in found[0]
        assert "if that is wrong, --normalisation" in found[0]


@pytest.mark.parametrize("side", [64, 128])
def test_images_of_a_vae_keep_their_contrast(tmp_path: Path, digits: Bundle, side: int) -> None:
    dataset = read(methods.mtt(tmp_path, scaled(side, "minus1to1"), CLASSES), digits)
    np.testing.assert_allclose(pixels(dataset), known_images(20, side), atol=1)
    (note,) = dataset.origin.notes
    assert note.endswith(
        "so they are read as pixels scaled to -1 to 1, while those of MTT, TESLA, FTD, DATM, EDF "
        "or SeqMatch tensors are imagenet-normalised: if that is wrong, --normalisation imagenet"
    )
    assert read(tmp_path, digits, normalisation="imagenet").origin.normalisation == "imagenet"


def test_a_stated_normalisation_is_used_and_doubted_with_the_statistics(
    tmp_path: Path, digits: Bundle
) -> None:
    path = methods.mtt(tmp_path, scaled(32, "minus1to1"), CLASSES)
    (note,) = read(path, digits, normalisation="cifar10").origin.notes
    assert note == (
        "values lie in -1.00 to 1.00 with mean 0.03 and deviation 0.51, as pixels scaled to -1 to "
        "1 have: is --normalisation cifar10 right?"
    )
    for same in ("minus1to1", "0.5:0.5"):
        dataset = read(path, digits, normalisation=same)
        np.testing.assert_allclose(pixels(dataset), known_images(20, 32), atol=1)
        assert not dataset.origin.notes


@pytest.mark.parametrize("write", PLAIN)
def test_normalised_values_where_pixels_are_expected_are_refused(
    tmp_path: Path, digits: Bundle, write: Callable[..., Path]
) -> None:
    """The values do not show which statistics they were normalised with."""
    values = methods.normalised(known_images(20, 32), "cifar10")
    path = write(tmp_path, values, CLASSES)
    with pytest.raises(DatasetError) as raised:
        read(path, digits)
    assert "values lie in -2.43 to 2.75 with mean 0.21 and deviation 1.26; most values" in str(
        raised.value
    )
    assert "Set --normalisation, such as cifar10, imagenet or minus1to1" in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    found = pixels(read(path, digits, normalisation="cifar10"))
    np.testing.assert_allclose(found, known_images(20, 32), atol=1)


@pytest.mark.parametrize("statistics", ["imagenet", "cifar10", "glad", "svhn", "frepo-cifar10"])
def test_normalised_values_are_left_to_the_method(statistics: str) -> None:
    """Also of images of less contrast, and unclamped ones."""
    images = known_images(20, 32)
    for pixels in (images, (0.7 * images + 40).astype(np.uint8)):
        values = methods.normalised(pixels, statistics).numpy()
        noise = np.random.default_rng(0).normal(0, 0.5, values.shape).astype(np.float32)
        for unclamped in (values, values + noise):
            default = find_normalisation(statistics)
            assert read_range(Path("a"), METHODS["mtt"], unclamped, default) == (default, None)


def test_unclamped_pixels_are_recognised_or_doubted() -> None:
    """Unclamped values around -1 to 1 may also be normalised values of little contrast."""
    noise = np.random.default_rng(0).normal(0, 0.05, (20, 3, 32, 32)).astype(np.float32)
    for convention in ("none", "0to255"):
        values = scaled(32, convention).numpy() + SCALED[convention][0] * noise
        assert recognise(values) is None
        found, note = read_range(Path("a"), METHODS["mtt"], values, find_normalisation("imagenet"))
        assert found.name == convention
        assert note is not None
    pixels = scaled(32, "minus1to1").numpy()
    for values in (pixels + 2 * noise, 1.15 * pixels.clip(-1, 1)):
        found, note = read_range(Path("a"), METHODS["mtt"], values, find_normalisation("imagenet"))
        assert found.name == "imagenet"
        assert str(note).endswith(
            "which is little for imagenet-normalised values: if they are pixels scaled to -1 to 1, "
            "--normalisation minus1to1"
        )


def test_pixels_divided_by_255_twice_or_cast_to_zero_and_one_are_doubted() -> None:
    dark = methods.normalised(known_images(20, 32), "none").numpy() / 255
    assert "should spread over 0 to 1" in str(contradiction(dark, find_normalisation("none")))
    cast = (known_images(20, 32) > 127).astype(np.uint8).transpose(0, 3, 1, 2)
    _, note = read_range(Path("a"), METHODS["idc"], cast, find_normalisation("none"))
    assert str(note).endswith("were pixels in 0 to 1 cast to integers?")


def test_contradictions_follow_from_the_values() -> None:
    images = np.random.default_rng(0).uniform(0, 1, (20, 3, 8, 8)).astype(np.float32)
    imagenet, none = find_normalisation("imagenet"), find_normalisation("none")
    normalised = (images - 0.45) / 0.225
    assert contradiction(images, none) is None
    assert contradiction(normalised, imagenet) is None
    assert "most values that are not normalised should lie in 0 to 1" in str(
        contradiction(normalised, none)
    )
    assert "as pixels scaled to 0 to 1 have" in str(contradiction(images, imagenet))
    assert "imagenet-normalised values should spread over -2.12 to 2.64" in str(
        contradiction(images / 2, imagenet)
    )
    assert "8-bit pixels" in str(contradiction((images * 255).astype(np.uint8), imagenet))
    assert contradiction((images * 255).astype(np.uint8), none) is None


def test_the_fraction_outside_is_that_of_the_pixels() -> None:
    values = np.array([-0.1, 0, 0.5, 1, 1.01, 2, 2.1, 3], np.float32).reshape(1, 1, 2, 4)
    assert outside(values, find_normalisation("none")) == 4 / 8
    assert outside(values, find_normalisation("minus1to1")) == 3 / 8


@pytest.mark.parametrize("largest", [16, 31, 100])
@pytest.mark.parametrize("method", ["arrays", "mtt", "idc"])
def test_other_scales_are_not_taken_for_dark_pixels_of_0_to_255(method: str, largest: int) -> None:
    """scikit-learn's digits have values of 0 to 16."""
    values = largest * scaled(32, "none").numpy()
    default = find_normalisation("cifar10" if method == "mtt" else "none")
    with pytest.raises(DatasetError, match="does not state their normalisation"):
        read_range(Path("a"), METHODS[method], values, default)
    # Dark, but beyond any other scale.
    found, _ = read_range(Path("a"), METHODS[method], 150 * values / largest, default)
    assert found.name == "0to255"


def test_values_of_minus_a_half_to_a_half_are_not_taken_for_those_of_minus_one_to_one() -> None:
    values = scaled(32, "none").numpy()
    assert (values.min(), values.max()) == (0, 1)
    assert recognise(values - 0.5) is None
    assert recognise(1.2 * (values - 0.5)) == find_normalisation("minus1to1")


@pytest.mark.parametrize(
    ("save", "collage"), [(methods.listed("data.pt"), 1), (methods.listed("data_20000.pt"), 2)]
)
def test_images_standardised_one_by_one_are_refused_by_methods_that_never_normalise(
    tmp_path: Path, digits: Bundle, save: Any, collage: int
) -> None:
    """They look whitened, and read as pixels nearly all of them would be black or white."""
    images = scaled(32, "none")
    mean, std = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    path = save(tmp_path, (images - mean) / std, CLASSES)
    with pytest.raises(DatasetError, match=r"looks ZCA-whitened .* If it is not whitened, add"):
        read_dataset(path, digits, ReadOptions(collage=collage))
    stated = read_dataset(path, digits, ReadOptions(collage=collage, normalisation="0.5:0.25"))
    assert any("if they are whitened" in note for note in stated.origin.notes)


@pytest.mark.parametrize("largest", [1, 16])
def test_pixels_saved_in_another_scale_are_doubted(
    tmp_path: Path, digits: Bundle, largest: int
) -> None:
    """`(image * 1).astype(np.uint8)` of values in 0 to 1, and scikit-learn's digits as bytes."""
    images = np.rint(known_images(20, 32) / 255 * largest).astype(np.uint8)
    doubt = f"its images are nearly black, with pixels of 0 to {largest} in place of 0 to 255: "
    for number, (image, index) in enumerate(zip(images, CLASSES, strict=True)):
        (tmp_path / "set" / str(index)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / str(index) / f"{number}.png")
    np.savez(tmp_path / "set.npz", images=images, labels=CLASSES)
    for path in (tmp_path / "set", tmp_path / "set.npz"):
        notes = read_dataset(path, digits).origin.notes
        assert any(note.startswith(doubt) for note in notes)
    bright = read_dataset(npz(tmp_path, scaled(32, "none"), CLASSES), digits)
    assert not bright.origin.notes
