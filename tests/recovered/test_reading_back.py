"""Written layouts and the files of docs/trainers.md are read back with their images and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.options import ReadOptions
from diver_trt.evaluation.sets import list_set
from tests.cli.command import QUICK, fails, run
from tests.distilled import methods
from tests.distilled.test_dataset import known_images

CLASSES = [0, 0, 1, 1, 2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set normalised with SVHN's statistics, which no reader of 32-pixel tensors would guess."""
    folder = tmp_path_factory.mktemp("source")
    images = methods.normalised(known_images(5, 32), "svhn")
    torch.save(images, folder / "images_best.pt")
    torch.save(methods.logits(CLASSES, 10), folder / "labels_best.pt")
    return folder


def recover(source: Path, output: Path, layout: str) -> None:
    arguments = ["recover", source, output, "--layout", layout, "--preset", "matched"]
    settings = ["--normalisation", "svhn", "--engine", "onnx"]
    result = run(*arguments, *settings)
    assert result.exit_code == 0, result.output


def assert_is(dataset: Dataset, output: Path) -> None:
    files = sorted(output.glob("0000?/*.png"))
    assert [sample.index for sample in dataset.samples] == CLASSES
    for sample, file in zip(dataset.samples, files, strict=True):
        np.testing.assert_array_equal(dataset.images.read(sample.position), read_image(file))


@pytest.mark.parametrize(
    ("layout", "name", "normalisation"),
    [("pt", "images.pt", "svhn"), ("npz", "dataset.npz", "svhn"), ("idc", "data.pt", "none")],
)
def test_tensors_of_a_layout_are_read_back(
    tmp_path: Path, source: Path, digits: Bundle, layout: str, name: str, normalisation: str
) -> None:
    output = tmp_path / "out"
    recover(source, output, layout)
    for path in (output / name, output):
        dataset = read_dataset(path, digits)
        assert dataset.summary.startswith(
            "images recovered by diver-trt, 3 classes x 1 to 2, 32 px"
        )
        assert_is(dataset, output)
    result = run("convert", output / name, tmp_path / "a.npz")
    assert f"normalisation {normalisation}, collage 1" in result.output
    assert_is(read_dataset(tmp_path / "a.npz", digits), output)
    if layout == "pt":
        for labels in ("soft_labels.pt", "hard"):  # as docs/trainers.md gives them to DATM
            moved = tmp_path / labels
            moved.mkdir()
            (moved / "images.pt").write_bytes((output / "images.pt").read_bytes())
            hard = torch.load(output / "labels.pt")
            rows = 100 * torch.nn.functional.one_hot(hard, 10).float()
            torch.save(
                rows if labels == "hard" else torch.load(output / labels), moved / "labels.pt"
            )
            dataset = read_dataset(
                moved / "images.pt", digits, ReadOptions(normalisation=normalisation)
            )
            assert dataset.origin.soft_labels == "logits"
            assert_is(dataset, output)
    if layout == "idc":  # as docs/trainers.md has it moved to where IDC looks for it
        (tmp_path / "data.pt").write_bytes((output / "data.pt").read_bytes())
        assert read_dataset(tmp_path / "data.pt", digits).origin.collage == 2
        assert_is(read_dataset(tmp_path / "data.pt", digits, ReadOptions(collage=1)), output)


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """A recovery of three classes that a file of classes maps to the model's."""
    (tmp_path / "classes.txt").write_text("9\n4\n7\n")
    methods.mtt(tmp_path, known_images(5, 32), CLASSES, "cifar10")
    options = ("--classes", tmp_path / "classes.txt", *QUICK)
    arguments = ("recover", tmp_path / "images_best.pt", tmp_path / "out", "--layout", "idc")
    result = run(*arguments, *options)
    assert result.exit_code == 0, result.output
    return tmp_path / "out"


def test_a_tensor_file_of_a_recovery_is_that_recovery(
    tmp_path: Path, mapped: Path, digits: Bundle
) -> None:
    """By itself it is a file of IDC's, whose images are collages of the classes 0 to 2."""
    dataset = read_dataset(mapped / "data.pt", digits)
    assert (dataset.labels, dataset.copies) == ({0: 9, 1: 4, 2: 7}, 1)
    assert dataset.classes == str(tmp_path / "classes.txt")
    assert_is(dataset, mapped)
    assert list_set(mapped / "data.pt").names == list_set(mapped).names == ("9", "4", "7")
    shown = [run("inspect", path).stdout for path in (mapped, mapped / "data.pt")]
    assert shown[0] == shown[1]
    assert shown[0].startswith("kind            recovered dataset")
    assert run("recover", mapped / "data.pt", tmp_path / "again", *QUICK).exit_code == 0
    assert read_dataset(tmp_path / "again", digits).labels == dataset.labels
    message = fails(run("recover", mapped / "data.pt", tmp_path / "x", "--collage", "2"))
    assert "is a recovered dataset, whose manifest states its format; leave it out" in message


def test_a_tensor_file_that_has_changed_is_not_that_recovery(
    tmp_path: Path, mapped: Path, digits: Bundle
) -> None:
    images, labels = torch.load(mapped / "data.pt")
    torch.save([images / 2, labels], mapped / "data.pt")
    for command in (
        ("inspect", mapped / "data.pt"),
        ("convert", mapped / "data.pt", tmp_path / "set.npz"),
        ("evaluate", mapped / "data.pt", "--test", mapped),
    ):
        assert "data.pt: is not the file that was written" in fails(run(*command))
    (tmp_path / "moved").mkdir()
    (mapped / "data.pt").rename(tmp_path / "moved" / "data.pt")
    moved = read_dataset(tmp_path / "moved" / "data.pt", digits, ReadOptions(collage=1))
    assert moved.origin.format.name == "idc"
