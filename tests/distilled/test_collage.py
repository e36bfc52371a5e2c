"""Collages, and only collages, are recognised by the seams between their tiles."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.collage import INVISIBLE, VISIBLE, seam_strength, seen_factor
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from tests.conftest import DISTILLED
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES

Pixels = NDArray[np.uint8]


def textured(count: int, side: int, seed: int = 0) -> Pixels:
    """Images in various colours with the spectrum of photographs and the noise of distillation."""
    generator = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequencies[0, 0] = 1
    noise = np.fft.fft2(generator.normal(size=(count, 3, side, side)))
    waves = np.fft.ifft2(noise / frequencies**1.2).real
    waves /= waves.std(axis=(1, 2, 3), keepdims=True)
    colours = generator.normal(128, 40, (count, 3, 1, 1))
    values = colours + 30 * waves + generator.normal(0, 12, waves.shape)
    return np.ascontiguousarray(values.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def jpeg(images: Pixels) -> Pixels:
    found = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        found.append(np.asarray(Image.open(file)))
    return np.stack(found)


def digits_of_the_example() -> Pixels:
    files = sorted(DISTILLED.rglob("*.png"))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


@pytest.mark.parametrize("stored", ["pixels", "JPEG"])
@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize(("factor", "side"), [(2, 64), (2, 63), (3, 96), (3, 95), (4, 128)])
def test_collages_are_recognised(factor: int, side: int, count: int, stored: str) -> None:
    tile = -(-side // factor)
    images = methods.collages(textured(count * factor**2, tile), factor, side)
    images = jpeg(images) if stored == "JPEG" else images
    assert seen_factor(images) == factor
    assert seam_strength(images, factor) > VISIBLE


@pytest.mark.parametrize("count", [1, 3, 20])
def test_other_images_are_not_taken_for_collages(count: int) -> None:
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    framed = textured(20, 64)
    framed[:, :6] = framed[:, -6:] = framed[:, :, :6] = framed[:, :, -6:] = 0
    digits = digits_of_the_example()
    small = digits[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2)
    for images in (
        textured(20, 32),
        textured(20, 128),
        jpeg(textured(20, 112)),
        generator.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8),
        coarse.repeat(4, axis=1).repeat(4, axis=2),
        np.full((20, 32, 32, 3), 128, np.uint8),
        framed,
        digits,
        small,
    ):
        for first in range(0, len(images) - count + 1, count):
            assert seen_factor(images[first : first + count]) is None


def test_the_strength_of_a_seam_is_the_ratio_of_differences() -> None:
    """Two plain halves in both directions, plus a ramp of one level a line.

    All other lines then differ by one level.
    """
    image = np.add.outer(np.arange(16), np.arange(16))[:, :, None].repeat(3, axis=2)
    image[8:] += 40
    image[:, 8:] += 20
    images = image[None].astype(np.uint8)
    assert seam_strength(images, 2) == 21  # the weaker one, 20 and the ramp, over 1
    assert seen_factor(images) == 2
    assert seam_strength(images, 3) < INVISIBLE
    assert seam_strength(images[:, :3], 8) == 0  # three lines are too few for eight tiles


def saved(folder: Path, images: Pixels, name: str) -> Path:
    if name == "images_best.pt":
        return methods.mtt(folder, images, CLASSES)
    return Path(methods.listed(name)(folder, images, CLASSES))


def notes(path: Path, bundle: Bundle, **options: Any) -> list[str]:
    dataset = read_dataset(path, bundle, ReadOptions(**options))
    return [note for note in dataset.origin.notes if "collage" in note]


@pytest.mark.parametrize("factor", [2, 3])
def test_collages_of_a_method_that_writes_whole_images_are_noticed(
    tmp_path: Path, digits: Bundle, factor: int
) -> None:
    images = methods.collages(textured(20 * factor**2, 48), factor, 48 * factor)
    path = saved(tmp_path, images, "images_best.pt")
    (note,) = notes(path, digits)
    strength = seam_strength(images, factor)
    assert note == (
        f"its images look like {factor} x {factor} collages: the lines where their tiles would "
        f"meet are {strength:.1f} times as strong as others; to cut them, --collage {factor}"
    )
    assert not notes(path, digits, collage=factor)
    assert not notes(path, digits, collage=1)
    (note,) = notes(path, digits, collage=5 - factor)
    assert f"look like {factor} x {factor} collages" in note


def test_folders_of_collages_are_noticed(tmp_path: Path, digits: Bundle) -> None:
    """EDC's on ImageNet have SRe2L's names."""
    images = methods.collages(textured(80, 32), 2, 64)
    write = methods.tree("new{c:03d}/class{c:03d}_id{i:03d}.jpg", quality=90)
    (note,) = seen(notes(write(tmp_path, images, CLASSES), digits))
    assert "look like 2 x 2 collages" in note
    write(tmp_path, textured(20, 64), CLASSES)
    assert not seen(notes(tmp_path, digits))


def seen(found: list[str]) -> list[str]:
    """Return the notes on the images, without SRe2L's general advice."""
    return [note for note in found if note.startswith("its images")]


def test_whole_images_of_a_method_that_writes_collages_are_noticed(
    tmp_path: Path, digits: Bundle
) -> None:
    """The file of our own layout `idc`, moved to IDC's place for it."""
    images = textured(20, 64)
    path = saved(tmp_path, images, "data.pt")
    (note,) = notes(path, digits)
    strength = seam_strength(images, 2)
    assert strength < INVISIBLE
    assert note == (
        f"its images do not look like 2 x 2 collages: the lines where their tiles would meet are "
        f"{strength:.1f} times as strong as others; to leave them whole, --collage 1"
    )
    assert not notes(path, digits, collage=1)
    assert not notes(path, digits, collage=2)
    torch.save(
        [
            methods.normalised(methods.collages(textured(80, 32), 2, 64), "none"),
            torch.tensor(CLASSES),
        ],
        path,
    )
    assert not notes(path, digits)


def test_one_unreadable_image_does_not_hide_the_seams(tmp_path: Path, digits: Bundle) -> None:
    images = methods.normalised(methods.collages(textured(80, 32), 2, 64), "imagenet")
    images[0] = float("nan")
    methods.mtt(tmp_path, images, CLASSES)
    (note,) = notes(tmp_path, digits)
    assert "look like 2 x 2 collages" in note


def test_an_image_too_small_to_be_cut_is_found_by_the_check(tmp_path: Path, digits: Bundle) -> None:
    sides = {"0/0.png": 32, "0/1.png": 2, "1/0.png": 32}
    for name, side in sides.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (side, side), "red").save(tmp_path / name)
    images = read_dataset(tmp_path, digits, ReadOptions(collage=3)).images
    checked = list(images.check())
    assert len(checked) == len(images) == 27
    for position, found in enumerate(checked):
        if found.problem:
            assert "0/1.png: 2 x 2 pixels is not a collage of 3 x 3 images" in found.problem
            with pytest.raises(DatasetError, match="2 x 2 pixels is not a collage"):
                images.read(position)
        else:
            assert images.read(position).size
    assert [bool(found.problem) for found in checked] == [False] * 9 + [True] * 9 + [False] * 9
