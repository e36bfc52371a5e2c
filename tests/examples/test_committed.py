"""What the Fashion-MNIST example commits: small, complete, and as the scripts write it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.models.dit import load_model
from examples.dataset import NUM_CLASSES, load_dataset
from examples.fashion.fashion import CLASS_NAMES
from examples.training_sets import read_images

FASHION = load_dataset("fashion")
SETS = [(method, per_class) for method in FASHION.methods for per_class in (1, 10)]


def test_the_committed_files_are_below_20_mb() -> None:
    sizes = [path.stat().st_size for path in FASHION.folder.rglob("*") if path.is_file()]
    assert sum(sizes) < 20_000_000


@pytest.mark.parametrize(("method", "per_class"), SETS)
def test_a_distilled_set_has_so_many_grey_images_of_each_class(method: str, per_class: int) -> None:
    split = read_images(FASHION.distilled(method, per_class))
    assert split.images.shape == (NUM_CLASSES * per_class, 32, 32, 3)
    assert np.bincount(split.labels).tolist() == [per_class] * NUM_CLASSES
    assert (split.images == split.images[..., :1]).all()


@pytest.mark.parametrize(("method", "per_class"), SETS)
def test_recover_reads_a_distilled_set_as_it_is(method: str, per_class: int) -> None:
    dataset = read_dataset(FASHION.distilled(method, per_class), Bundle.open(default_bundle()))
    assert len(dataset.samples) == NUM_CLASSES * per_class
    assert [sample.index for sample in dataset.samples[::per_class]] == list(range(NUM_CLASSES))


def test_the_model_names_its_classes() -> None:
    index = json.loads((FASHION.model / "model_index.json").read_text())
    assert index["id2label"] == {str(i): name for i, name in enumerate(CLASS_NAMES)}


def test_the_exporter_reads_the_model_with_the_sinusoids_it_was_trained_with() -> None:
    model = load_model(str(FASHION.model))
    assert model.class_names == CLASS_NAMES
    assert model.timestep_frequencies == "diffusers"


def test_the_digits_model_and_the_fashion_model_have_the_same_architecture() -> None:
    def config(folder: Path, part: str) -> dict[str, object]:
        read: dict[str, object] = json.loads((folder / part / "config.json").read_text())
        return {key: value for key, value in read.items() if key != "_name_or_path"}

    digits = load_dataset("digits").model
    assert all(
        config(digits, part) == config(FASHION.model, part) for part in ("vae", "transformer")
    )


def test_a_distilled_png_is_an_image_of_8_bits_per_channel() -> None:
    with Image.open(FASHION.distilled("dm", 1) / "0" / "0.png") as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
