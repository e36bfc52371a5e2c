"""Files beside the images are counted and named in a note, and no sample is lost silently."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.folders import read_class_folders
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from tests.distilled.test_dataset import named

RNG = np.random.default_rng(0)


def picture(path: Path, kind: str = "PNG", mode: str = "RGB") -> np.ndarray:
    """Write a picture and return the pixels that it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode)
    image.save(path, format=kind)
    with Image.open(path) as written:
        return np.asarray(written.convert("RGB"))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Ten classes of two images."""
    for index in range(10):
        for number in range(2):
            picture(tmp_path / "set" / str(index) / f"{number}.png")
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("name", "kind", "mode"),
    [
        ("2.jfif", "JPEG", "RGB"),
        ("2.jpe", "JPEG", "RGB"),
        ("2.JPEG", "JPEG", "L"),
        ("2.mpo", "JPEG", "RGB"),
        ("2.pgm", "PPM", "L"),
        ("2.ppm", "PPM", "RGB"),
        ("2.pbm", "PPM", "1"),
        ("2.bmp", "BMP", "RGB"),
        ("2.webp", "WEBP", "RGB"),
        ("2.tif", "PNG", "RGB"),
    ],
)
def test_images_of_every_readable_kind_are_read(
    whole: Path, digits: Bundle, name: str, kind: str, mode: str
) -> None:
    pixels = picture(whole / "3" / name, kind, mode)
    dataset = read_dataset(whole, digits)
    assert len(dataset.samples) == 21
    (position,) = (s.position for s in dataset.samples if s.key == "00003/00002")
    np.testing.assert_array_equal(dataset.images.read(position), pixels)
    assert [found.problem for found in dataset.images.check()] == [None] * 21
    assert dataset.origin.notes == ()


@pytest.mark.parametrize("suffix", [".heic", ".tif", ".avif", ".jxl", ".tga", ".gif"])
def test_images_that_cannot_be_read_are_bad_images_and_not_left_out(
    whole: Path, digits: Bundle, suffix: str
) -> None:
    (whole / "3" / f"2{suffix}").write_bytes(b"x" * 99)
    dataset = read_dataset(whole, digits)
    problems = [found.problem for found in dataset.images.check() if found.problem]
    assert len(dataset.samples) == 21
    assert problems == [
        f"{whole}/3/2{suffix}: images of this kind are not read, expected PNG, JPEG, WebP, "
        "uncompressed BMP or binary 8-bit PPM. Convert it to PNG."
    ]


def test_a_class_may_keep_its_images_in_a_folder_images(tmp_path: Path, imagenet: Bundle) -> None:
    """Tiny-ImageNet's layout: `train/n01443537/images/n01443537_0.JPEG` beside a text of boxes."""
    root = tmp_path / "tiny" / "train"
    pixels = {}
    for wnid in ("n01443537", "n02124075"):
        for number in (10, 2):
            name = f"{wnid}_{number}.JPEG"
            pixels[f"{wnid}/images/{name}"] = picture(root / wnid / "images" / name, "JPEG")
        (root / wnid / f"{wnid}_boxes.txt").touch()
    dataset = read_dataset(tmp_path / "tiny" / "train", imagenet, ReadOptions("model"))
    names = [dataset.images.name(sample.position) for sample in dataset.samples]
    assert names == [
        f"{wnid}/images/{wnid}_{number}.JPEG"
        for wnid in ("n01443537", "n02124075")
        for number in (2, 10)
    ]
    assert [sample.label for sample in dataset.samples] == [1, 1, 285, 285]
    for sample, name in zip(dataset.samples, names, strict=True):
        np.testing.assert_array_equal(dataset.images.read(sample.position), pixels[name])
    assert dataset.origin.notes[0] == (
        "not read: 2 files in classes (2 .txt, first n01443537/n01443537_boxes.txt)"
    )


def put(root: Path, *names: str) -> None:
    """Make pictures and empty files, folders (`a/`) and FIFOs (`a|`), written as `ls -F` does."""
    for name in names:
        path = root / name.rstrip("/|")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif name.endswith("|"):
            os.mkfifo(path)
        elif path.suffix in (".png", ".jpg"):
            picture(path, "JPEG" if path.suffix == ".jpg" else "PNG")
        else:
            path.touch()


LOGS = ("logs/run.txt",)
THUMBNAILS = ("@eaDir/x.png", "3/@eaDir/x.png")
RESOURCE_FORKS = (*(f"__MACOSX/{index}/._0.png" for index in range(10)), "__MACOSX/0.png")


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (
            ("3/3.npy", "3/10.npy", "3/4.pt", "3/7.png~", "3/8.png.part", "3/notes"),
            "6 files in classes (2 .npy, 1 without suffix, 1 .pt, 1 .png~, 1 .part, first 3/notes)",
        ),
        (
            ("3/more/9.png", "3/more/deep/10.jpg", "4/1.png.d/"),
            "2 folders within classes (3/more with 2 images, 4/1.png.d)",
        ),
        (("3/9.png/",), "1 folder within classes (3/9.png)"),
        (("3/9.png|",), "1 not regular (3/9.png)"),
        (
            ("grid.png", "preview.jpg"),
            "2 images beside the class folders (grid.png, preview.jpg)",
        ),
        (LOGS, "1 folder beside the classes (logs)"),
        (THUMBNAILS, "1 folder beside the classes (@eaDir with 1 image)"),
        (RESOURCE_FORKS, "1 folder beside the classes (__MACOSX with 1 image)"),
        (("lost+found/#1234.png",), "1 folder beside the classes (lost+found with 1 image)"),
        (
            tuple(f"contact_sheets/{number}.png" for number in range(3)),
            "1 folder beside the classes (contact_sheets with 3 images)",
        ),
        (("what is this/", "and this/"), "2 folders beside the classes (and this, what is this)"),
    ],
)
@pytest.mark.parametrize("padding", [1, 5])
def test_other_files_are_counted_and_named(
    whole: Path, digits: Bundle, names: tuple[str, ...], note: str, padding: int
) -> None:
    """With class folders `3`, which is a class name of the digits too, and `00003`."""
    put(whole, *names)
    for index in range(10):
        (whole / str(index)).rename(whole / f"{index:0{padding}d}")
    dataset = read_dataset(whole, digits)
    assert [sample.key for sample in dataset.samples] == [
        f"{index:05d}/{number:05d}" for index in range(10) for number in range(2)
    ]
    assert {sample.index: sample.label for sample in dataset.samples} == {i: i for i in range(10)}
    padded = f"{3:0{padding}d}/", f"{4:0{padding}d}/"
    note = note.replace("3/", padded[0]).replace("4/", padded[1])
    assert dataset.origin.notes == (f"not read: {note}",)


def test_files_of_operating_systems_are_not_noted(whole: Path, digits: Bundle) -> None:
    put(whole, ".ipynb_checkpoints/", "3/.ipynb_checkpoints/0.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "Icon\r"):
        (whole / "3" / name).touch()
        (whole / name).touch()
    put(whole, "README.md", "class_map.json", "labels.txt", "log.csv")
    dataset = read_dataset(whole, digits)
    assert len(dataset.samples) == 20
    assert dataset.origin.notes == ()


def test_files_beside_a_folder_around_the_classes_are_named_too(
    tmp_path: Path, whole: Path, digits: Bundle
) -> None:
    (tmp_path / "run").mkdir()
    whole.rename(tmp_path / "run" / "syn_data")
    put(tmp_path / "run", "logs/", "__MACOSX/", "grid.png")
    dataset = read_dataset(tmp_path / "run", digits)
    assert len(dataset.samples) == 20
    assert dataset.origin.notes == (
        "not read: 2 folders beside the classes (__MACOSX, logs); 1 image beside the class folders "
        "(grid.png)",
    )


@pytest.mark.parametrize("padding", [1, 5])
def test_a_folder_of_images_that_is_not_a_class_is_refused_by_name(
    tmp_path: Path, imagenet: Bundle, digits: Bundle, padding: int
) -> None:
    for index in range(3):
        picture(tmp_path / "set" / f"{index:0{padding}d}" / "0.png")
    picture(tmp_path / "set" / "background" / "0.png")
    with pytest.raises(DatasetError, match=r"set/background: 'background' .*not a class index"):
        read_class_folders(tmp_path / "set", digits)
    with pytest.raises(DatasetError, match=r"set/background: 'background' .*not a class index"):
        read_class_folders(tmp_path / "set", imagenet, "model")


def test_a_class_whose_images_lie_deeper_is_refused_with_where(whole: Path, digits: Bundle) -> None:
    (whole / "3").rename(whole / "x")
    (whole / "3").mkdir()
    (whole / "x").rename(whole / "3" / "more")
    with pytest.raises(DatasetError, match="3: holds no images itself, but more in it does"):
        read_dataset(whole, digits)


def test_names_match_in_every_unicode_form(tmp_path: Path, imagenet: Bundle) -> None:
    """macOS decomposes the names of folders; Linux and Windows keep them as typed."""
    composed, decomposed = "caf\u00e9", "the\u0301"
    picture(tmp_path / "set" / "cafe\u0301" / "0.png")
    picture(tmp_path / "set" / "th\u00e9" / "0.png")
    (tmp_path / "map.txt").write_text(f"{decomposed} 7\n{composed} 3\n", encoding="utf-8")
    found = read_class_folders(tmp_path / "set", imagenet, str(tmp_path / "map.txt"))
    labels = {
        file.parent.name: found.class_map.labels[index]
        for file, index in zip(found.files, found.classes, strict=True)
    }
    assert labels == {"cafe\u0301": 3, "th\u00e9": 7}


@pytest.mark.parametrize("names", [THUMBNAILS, LOGS, RESOURCE_FORKS])
def test_tensors_are_found_beside_files_of_operating_systems(
    tmp_path: Path, digits: Bundle, names: tuple[str, ...]
) -> None:
    (tmp_path / "3").mkdir()
    put(tmp_path, *names)
    (tmp_path / "3").rename(tmp_path / ".3")
    named(tmp_path / "set.npz")
    assert read_dataset(tmp_path, digits).origin.files == ("set.npz",)


@pytest.mark.parametrize("mark", ["\ufeff0", "0\ufeff"])
def test_a_byte_order_mark_in_the_name_of_a_class_folder_means_nothing(
    tmp_path: Path, digits: Bundle, mark: str
) -> None:
    for folder in (mark, "1"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32), (200, 10, 90)).save(tmp_path / folder / "0.png")
    dataset = read_dataset(tmp_path, digits)
    assert [(sample.key, sample.label) for sample in dataset.samples] == [
        ("00000/00000", 0),
        ("00001/00000", 1),
    ]
