"""Images that every check passes, but that may not be what they were taken for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diver_trt.distilled.class_map import Classes
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.image_doubts import image_doubts
from diver_trt.distilled.options import ReadOptions

MODEL = Classes(2)


def save(path: Path, width: int = 8, height: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list(str(path).encode())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def tree(folder: Path) -> Path:
    for index in range(2):
        for number in range(3):
            save(folder / f"{index}/{number}.png")
    return folder


def doubts(path: Path, collage: int | None = None) -> list[str]:
    dataset = read_dataset(path, MODEL, ReadOptions(collage=collage))
    return image_doubts(dataset, list(dataset.images.check()))


def array(folder: Path, images: NDArray[np.float32]) -> Path:
    np.savez(folder / "set.npz", images=images, labels=[0, 0, 1, 1])
    return folder / "set.npz"


def values() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((4, 3, 8, 8), np.float32)


def test_plain_sets_have_no_doubts(tmp_path: Path) -> None:
    assert doubts(tree(tmp_path / "set")) == []
    assert doubts(array(tmp_path, values())) == []


def test_copies_of_images_are_noted(tmp_path: Path) -> None:
    root = tree(tmp_path)
    shutil.copy(root / "0/1.png", root / "0/1 (1).png")
    assert doubts(root) == [
        "1 image is the same as an earlier one, such as 0/1.png and 0/1 (1).png: each is recovered "
        "by itself"
    ]
    (root / "1/9.png").symlink_to(root / "0/1.png")
    for collage in (None, 2):  # once for a collage, not once for each of its tiles
        (doubt,) = doubts(root, collage)
        assert doubt.startswith("2 images are the same as an earlier one (1 of them in another ")


def test_rows_that_repeat_one_image_are_noted(tmp_path: Path) -> None:
    images = values()
    images[3] = images[0]
    (doubt,) = doubts(array(tmp_path, images))
    assert "(1 of them in another class), such as set.npz[3] and set.npz[0]" in doubt


def test_several_sizes_are_noted(tmp_path: Path) -> None:
    root = tree(tmp_path)
    save(root / "1/grid.png", 24, 24)
    expected = [
        "its images have 2 sizes (6 of 8 x 8 px, 1 of 24 x 24 px), the rarest one in 1/grid.png: "
        "are all of them images of the set?"
    ]
    assert doubts(root) == expected
    assert doubts(root, collage=2) == expected


@pytest.mark.parametrize(("width", "height"), [(40, 8), (8, 40)])
def test_images_that_are_not_square_are_noted(tmp_path: Path, width: int, height: int) -> None:
    for name in ("0/strip.png", "1/strip.png"):
        save(tmp_path / name, width, height)
    assert doubts(tmp_path) == [
        "2 images are not square, such as 0/strip.png: the model gets the middle square, which "
        "leaves out 80% of that one"
    ]


def test_sizes_are_compared_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(save(tmp_path / "0/0.png", 8, 12)).save(tmp_path / "0/1.jpg")
    Image.open(save(tmp_path / "1/0.png", 12, 8)).save(tmp_path / "1/1.jpg", exif=turned)
    (tmp_path / "1/0.png").unlink()
    (doubt,) = doubts(tmp_path)
    assert doubt.startswith("3 images are not square")


def test_an_unreadable_image_is_no_size_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for name in ("1/1.png", "1/2.png"):
        (root / name).write_bytes(b"damaged")
    assert doubts(root) == []


def test_an_image_of_a_larger_scale_is_noted(tmp_path: Path) -> None:
    images = values() * 1.2 - 0.1  # unclamped, so that the range of all images shows no scale
    assert doubts(array(tmp_path, images)) == []
    images[2] *= 255
    dataset = read_dataset(array(tmp_path, images), MODEL, ReadOptions(normalisation="none"))
    assert image_doubts(dataset, list(dataset.images.check())) == [
        "most values of 1 image lie outside the range of pixels, such as those of set.npz[2]: do "
        "all images have one scale?"
    ]


def test_images_of_a_smaller_scale_and_rows_never_filled_are_noted(tmp_path: Path) -> None:
    images = values()
    images[2] *= 255
    (doubt,) = doubts(array(tmp_path, images))
    assert doubt == (
        "3 images are of one colour throughout, such as set.npz[0]: were all rows filled, and do "
        "all images have one scale?"
    )
    images = values()
    images[3] = 0
    (doubt,) = doubts(array(tmp_path, images))
    assert doubt.startswith("1 image is of one colour throughout, such as set.npz[3]")
