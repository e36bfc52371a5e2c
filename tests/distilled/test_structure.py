"""The texts beside named arrays are used, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images, named, refusal

IMAGES = torch.zeros(2, 3, 8, 8)


def test_a_collage_that_a_file_names_is_held_to_the_limit_of_the_option(
    tmp_path: Path, digits: Bundle
) -> None:
    path = tmp_path / "a.npz"
    for factor, collage in (("2", 2), ("16", 16), (4, 4)):
        named(path, format="mtt", collage=factor)
        assert read_dataset(path, digits).origin.collage == collage
    for factor in ("17", "99", "\u00b2", "0", "-2", "02", 0, ""):
        named(path, format="mtt", collage=factor)
        assert refusal(path, digits) == (
            f"{path}: its text collage is '{factor}'; expected one of "
            f"{', '.join(map(str, range(1, 17)))}. Override it with --collage."
        )
        assert read_dataset(path, digits, ReadOptions(collage=4)).origin.collage == 4


@pytest.mark.parametrize("save", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize(
    ("key", "stated", "option", "way_out"),
    [
        ("format", "../../x", "--format", {"method": "mtt"}),
        ("format", "sre2l", "--format", {"method": "mtt"}),
        ("collage", "999999999", "--collage", {"collage": 1}),
        ("normalisation", "imagnet", "--normalisation", {"normalisation": "cifar10"}),
        ("whitening", "ZCA\x1b[2J", "--normalisation", {"normalisation": "cifar10"}),
    ],
)
def test_unknown_texts_in_a_file_are_named(
    tmp_path: Path,
    imagenet: Bundle,
    save: str,
    key: str,
    stated: str,
    option: str,
    way_out: dict[str, Any],
) -> None:
    images = known_images(20, 32)
    texts = {"format": "mtt", "normalisation": "cifar10", key: stated}
    path = tmp_path / f"set.{save}"
    arrays = {"images": methods.normalised(images, "cifar10"), "labels": methods.hard(CLASSES)}
    if save == "pt":
        torch.save(arrays | texts, path)
    elif save == "npz":
        named(path, **arrays, **texts)
    else:
        safetensors.torch.save_file(arrays, path, metadata=texts)
    message = refusal(path, imagenet, classes="imagewoof")
    assert message.startswith(f"{path}: its text {key} is {stated!a}; expected ")
    assert f"Override it with {option}." in message
    dataset = read_dataset(path, imagenet, ReadOptions(classes="imagewoof", **way_out))
    found = np.stack([dataset.images.read(position) for position in range(20)])
    np.testing.assert_allclose(found, images, atol=1)
    assert not dataset.origin.notes


@pytest.mark.parametrize(
    ("save", "key", "stated", "found"),
    [
        ("npz", "collage", 2.5, "float64[] 2.5"),
        ("npz", "collage", 17, "17"),
        ("npz", "normalisation", [0.5, 0.5, 0.5], "float64[3]"),
        ("npz", "format", b"nobody's", "nobody's"),
        ("pt", "collage", 2.5, "float64[] 2.5"),
        ("pt", "collage", 17, "17"),
        ("pt", "normalisation", torch.tensor([0.5, 0.5, 0.5]).double(), "float64[3]"),
    ],
)
def test_values_that_are_not_texts_are_named_too(
    tmp_path: Path, digits: Bundle, save: str, key: str, stated: Any, found: str
) -> None:
    path = tmp_path / f"set.{save}"
    if save == "npz":
        named(path, **{key: stated})
    else:
        images = torch.from_numpy(known_images(20, 32))
        torch.save({"images": images, "labels": torch.tensor(CLASSES), key: stated}, path)
    assert refusal(path, digits).startswith(f"{path}: its text {key} is {found!r}; expected ")


def test_a_number_in_a_torch_file_states_the_collage_as_in_an_npz(
    tmp_path: Path, digits: Bundle
) -> None:
    images = torch.from_numpy(known_images(10, 32))
    torch.save({"images": images, "labels": torch.arange(10), "collage": 2}, tmp_path / "a.pt")
    dataset = read_dataset(tmp_path / "a.pt", digits)
    assert (dataset.origin.collage, len(dataset.samples)) == (2, 40)


def test_other_images_in_a_file_are_named_as_not_read(tmp_path: Path, digits: Bundle) -> None:
    path = named(tmp_path / "a.npz", images_ema=known_images(4, 32))
    notes = read_dataset(path, digits).origin.notes
    assert notes == ("not read: images_ema (uint8[4, 32, 32, 3])",)


def test_an_unknown_subset_in_a_file_is_named(tmp_path: Path, digits: Bundle) -> None:
    dataset = read_dataset(named(tmp_path / "a.npz", classes="/etc/passwd"), digits)
    assert dataset.classes == "model"
    assert dataset.origin.notes == (
        "its text classes is '/etc/passwd', which is not a known subset of ImageNet, and is "
        "ignored: set --classes",
    )


def test_a_collage_that_cannot_be_cut_is_refused_before_its_tiles_are_numbered(
    tmp_path: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "diver_trt.distilled.dataset.Sample", lambda *_: pytest.fail("a tile was numbered")
    )
    path = named(tmp_path / "a.npz", images=known_images(20, 8), collage="16")
    assert "is not a collage of 16 x 16 images" in refusal(path, digits)


@pytest.mark.parametrize(
    "stated", ["model", "map.txt", "/etc/passwd", "imagefruits", "\x1b[2J", ""]
)
def test_classes_that_are_not_a_subset_are_ignored(
    tmp_path: Path, imagenet: Bundle, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.txt").write_text("".join(f"{label}\n" for label in range(10)))
    path = named(Path("a.npz"), classes=stated)
    assert "has 10 classes, but the model has 1000" in refusal(path, imagenet)


def test_texts_of_invalid_code_points_are_ignored(tmp_path: Path, imagenet: Bundle) -> None:
    """numpy makes a string of any four bytes, and fails wherever an invalid one is printed."""
    impossible = np.frombuffer(b"\xff\xff\xff\x7f" * 3, "<U3").reshape(())
    # float16 cannot hold the largest value allowed.
    values = methods.normalised(known_images(20, 64), "none").numpy().astype(np.float16)
    facts = {"format": "idc", "normalisation": impossible, "collage": impossible}
    path = named(tmp_path / "a.npz", images=values, **facts)
    found = read_dataset(path, imagenet, ReadOptions(classes="imagewoof", collage=1))
    assert (found.origin.format.name, found.origin.normalisation) == ("idc", "none")


def test_the_library_that_wrote_a_safetensors_file_is_not_a_method(
    tmp_path: Path, digits: Bundle
) -> None:
    """Hugging Face's own code writes this metadata, and some loaders require it."""
    images = torch.from_numpy(known_images(20, 32).transpose(0, 3, 1, 2).copy())
    tensors = {"images": images, "labels": torch.tensor(CLASSES)}
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert read_dataset(path, digits).origin.format.name == "arrays"


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>",
            "holds a text with markup, expected a file of tensors. It is a page of the website: "
            "download the file again.",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "holds a Git LFS pointer, expected a file of tensors. Fetch the file with "
            "`git lfs pull`.",
        ),
    ],
)
def test_what_a_download_left_in_place_of_a_file_is_named(
    tmp_path: Path, digits: Bundle, suffix: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"images_best.{suffix}"
    path.write_bytes(content)
    for given in (path, tmp_path):
        assert refusal(given, digits) == f"{path}: {message}"


@pytest.mark.parametrize("labels", [[3, 1], (3, 1)])
@pytest.mark.parametrize("named", [True, False])
def test_labels_may_be_a_list_of_numbers(
    tmp_path: Path, digits: Bundle, labels: object, named: bool
) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    content = {"images": images, "labels": labels} if named else [images, labels]
    torch.save(content, tmp_path / "set.pt")
    found = read_dataset(tmp_path / "set.pt", digits, ReadOptions(collage=1))
    assert {sample.position: sample.label for sample in found.samples} == {0: 3, 1: 1}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"images": IMAGES, "labels": [0, 0.5]}, "a dictionary of images, labels (a list of 2)"),
        ({"images": [IMAGES[0]] * 3, "labels": [0, 1, 2]}, "images (a list of 3), labels;"),
        ({"image": [*IMAGES, IMAGES[0]], "label": IMAGES}, "image (a list of 3), label;"),
        ([IMAGES, ["cat", "dog"]], "a list of float32[2, 3, 8, 8] and a list of 2"),
        ({"images": IMAGES, "epoch": 3}, "a dictionary of images, epoch;"),
    ],
)
def test_lists_in_place_of_tensors_are_named(
    tmp_path: Path, digits: Bundle, content: object, found: str
) -> None:
    torch.save(content, tmp_path / "set.pt")
    message = refusal(tmp_path / "set.pt", digits)
    assert found in message
    assert message.endswith("named images and labels, each as one tensor")
