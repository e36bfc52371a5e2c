"""Written layouts and the files of docs/trainers.md are read back with their images and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.options import ReadOptions
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
    result = CliRunner().invoke(app, [*map(str, arguments), *settings])
    assert result.exit_code == 0, result.output


def assert_is(dataset: Dataset, output: Path) -> None:
    files = sorted(output.glob("0000?/*.png"))
    assert [sample.index for sample in dataset.samples] == CLASSES
    for sample, file in zip(dataset.samples, files, strict=True):
        np.testing.assert_allclose(dataset.images.read(sample.position), read_image(file), atol=1)


@pytest.mark.parametrize(
    ("layout", "name", "normalisation"),
    [("pt", "images.pt", "svhn"), ("npz", "dataset.npz", "svhn"), ("idc", "data.pt", "none")],
)
def test_tensors_of_a_layout_are_read_back(
    tmp_path: Path, source: Path, digits: Bundle, layout: str, name: str, normalisation: str
) -> None:
    output = tmp_path / "out"
    recover(source, output, layout)
    dataset = read_dataset(output / name, digits)
    assert (dataset.origin.normalisation, dataset.origin.collage) == (normalisation, 1)
    assert_is(dataset, output)
    assert_is(read_dataset(output, digits), output)
    result = CliRunner().invoke(app, ["convert", str(output / name), str(tmp_path / "a.npz")])
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
