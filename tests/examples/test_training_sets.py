"""The training sets of the results: chosen by seed, named by what they follow from, made once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diver_trt import Bundle, Recipe
from diver_trt.digits import default_bundle
from examples import training_sets
from examples.dataset import Dataset, Split, load_dataset
from examples.training_sets import (
    REAL,
    TrainingSet,
    Treatment,
    Workshop,
    random_real,
    read,
    read_images,
    recovered_copies,
    write,
)

TWO_STEPS = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def train(digits: Dataset) -> Split:
    return digits.load().train


@dataclass
class Keys:
    """A recoverer that returns its input and remembers the keys."""

    keys: list[str]

    def __call__(
        self, images: np.ndarray, labels: list[int], *, seed: int, keys: list[str]
    ) -> Iterator[SimpleNamespace]:
        self.keys += keys
        yield from (
            SimpleNamespace(image=image, label=label)
            for image, label in zip(images, labels, strict=True)
        )


def test_random_real_images_are_of_each_class_and_follow_from_the_seed(train: Split) -> None:
    chosen, again, other = (random_real(train, 3, seed) for seed in (0, 0, 1))
    assert chosen.labels.tolist() == np.repeat(np.arange(10), 3).tolist()
    assert np.array_equal(chosen.images, again.images)
    assert not np.array_equal(chosen.images, other.images)
    assert all((image == train.images[train.labels == label]).all((1, 2, 3)).sum() == 1
               for image, label in zip(chosen.images, chosen.labels, strict=True))  # fmt: skip


def test_committed_distilled_images_are_read_class_by_class(digits: Dataset) -> None:
    images = read_images(digits.distilled("dm", 10))
    assert images.images.shape == (100, 32, 32, 3)
    assert images.labels.tolist() == np.repeat(np.arange(10), 10).tolist()


def test_every_copy_of_an_image_has_a_key_of_its_own() -> None:
    source = Split(np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 0, 1, 1]))
    recoverer = Keys([])
    found = recovered_copies(recoverer, source, 2, seed=0)  # type: ignore[arg-type]
    first = ["00000/00000", "00000/00001", "00001/00000", "00001/00001"]
    second = ["00000/00002", "00000/00003", "00001/00002", "00001/00003"]
    assert recoverer.keys == first + second
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_set_is_read_as_it_was_written(tmp_path: Path, train: Split) -> None:
    write(train.at(np.arange(5)), tmp_path / "set.npz")
    found = read(tmp_path / "set.npz")
    assert np.array_equal(found.images, train.images[:5])
    assert np.array_equal(found.labels, train.labels[:5])
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_a_set_is_made_once_and_again_when_anything_it_follows_from_changes(
    tmp_path: Path, digits: Dataset, train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(split: Split, path: Path) -> None:
        made.append(path)
        write(split, path)

    monkeypatch.setattr(training_sets, "write", counted)
    bundle = Bundle.open(default_bundle())
    workshop = Workshop(digits, train, bundle, tmp_path)
    first = TrainingSet(source="dm", per_class=1, treatment=Treatment(recipe=TWO_STEPS), seed=0)
    variants = [
        first,
        replace(first, seed=1),
        replace(first, treatment=Treatment(recipe=replace(TWO_STEPS, gamma=0.0))),
        replace(first, treatment=Treatment(recipe=TWO_STEPS, copies=2)),
        replace(first, treatment=Treatment(vae=True)),
        replace(first, treatment=Treatment()),
        replace(first, source=REAL, treatment=Treatment()),
    ]
    once = dict(workshop.make(variants))
    assert len(made) == len(set(made)) == len(variants)
    again = dict(Workshop(digits, train, bundle, tmp_path).make(variants))
    assert len(made) == len(variants)
    assert all(np.array_equal(once[one].images, again[one].images) for one in variants)
    assert len(once[variants[3]]) == 20


def test_a_distilled_set_without_recovery_does_not_depend_on_the_seed(
    tmp_path: Path, digits: Dataset, train: Split
) -> None:
    workshop = Workshop(digits, train, Bundle.open(default_bundle()), tmp_path)
    sets = [TrainingSet(source="dm", per_class=1, treatment=Treatment(), seed=s) for s in (0, 1)]
    list(workshop.make(sets))
    assert len(list(tmp_path.iterdir())) == 1
