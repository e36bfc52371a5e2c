"""Files of classes whose labels contradict their names, as torchvision's `class_to_idx` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.distilled.class_map import (
    Classes,
    ModelClasses,
    imagenet_names,
    imagenet_subsets,
    imagenet_wnids,
    load_class_map,
)
from diver_trt.distilled.class_map_doubts import class_map_doubts
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions

IMAGENET = Classes(1000, imagenet_names(), "dit")
ANIMALS = Classes(4, ("cat, house cat", "dog", "crane", "crane"), "toy")


def doubts(folder: Path, entries: object, model: ModelClasses) -> list[str]:
    (folder / "map.json").write_text(json.dumps(entries))
    found = class_map_doubts(load_class_map(str(folder / "map.json"), model), model)
    return [doubt.removeprefix(f"{folder}/") for doubt in found]


def test_wnids_with_the_numbers_of_a_dataset_are_doubted(tmp_path: Path) -> None:
    class_to_idx = {"n02086240": 0, "n02087394": 1, "n02088364": 2}
    assert doubts(tmp_path, class_to_idx, IMAGENET) == [
        "map.json gives 3 classes another label than the model has for that name, the first of "
        "them 'n02086240': 0 instead of 155: are its numbers the model's labels?"
    ]
    assert not doubts(tmp_path, {"n02086240": 155, "n02087394": 159, "n02088364": 162}, IMAGENET)
    # A model without names, whose classes are not ImageNet's, knows no wnid.
    assert not doubts(tmp_path, class_to_idx, Classes(10))
    assert not doubts(tmp_path, dict(zip(imagenet_wnids(), range(1000), strict=True)), IMAGENET)


@pytest.mark.parametrize(
    ("entries", "first"),
    [
        ({"Cat": 1, "dog": 0}, "'Cat': 1 instead of 0"),
        ({"house_cat": 0, "DOG": 3}, "'DOG': 3 instead of 1"),
        ({"crane": 1}, "'crane': 1 instead of 2"),
    ],
)
def test_names_with_the_label_of_another_class_are_doubted(
    tmp_path: Path, entries: dict[str, int], first: str
) -> None:
    (doubt,) = doubts(tmp_path, entries, ANIMALS)
    assert first in doubt


@pytest.mark.parametrize(
    "entries", [{"cat": 0, "dog": 1}, {"crane": 3}, {"kitten": 3, "puppy": 2}, [3, 2, 1, 0]]
)
def test_own_names_and_the_models_own_labels_are_not_doubted(
    tmp_path: Path, entries: object
) -> None:
    assert not doubts(tmp_path, entries, ANIMALS)


def test_numbers_are_indices_whatever_the_model_calls_its_classes(tmp_path: Path) -> None:
    digits = Classes(10, tuple(map(str, range(10))), "digits")
    assert not doubts(tmp_path, {"0": 7, "1": 3}, digits)


def test_numbers_that_are_counted_as_texts_are_doubted(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    as_texts = {name: label for label, name in enumerate(sorted(names))}
    assert doubts(tmp_path, as_texts, IMAGENET) == [
        "map.json gives its names labels in the order of texts ('11' before '2'), as torchvision's "
        "class_to_idx does: are its numbers the model's labels?"
    ]
    assert not doubts(tmp_path, {name: int(name) for name in names}, IMAGENET)
    assert not doubts(tmp_path, {f"{int(name):05d}": int(name) for name in names}, IMAGENET)
    assert not doubts(tmp_path, {name: 50 + int(name) for name in names}, IMAGENET)


def test_subsets_and_the_models_own_classes_are_not_doubted() -> None:
    for name in (*imagenet_subsets(), "model"):
        assert not class_map_doubts(load_class_map(name, IMAGENET), IMAGENET), name


def test_folders_and_tensors_both_note_the_doubt(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"dog": 0, "cat": 1}))
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / "0.png")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=[0, 1])
    for path in (tmp_path / "set", tmp_path / "set.npz"):
        found = read_dataset(path, ANIMALS, ReadOptions(str(tmp_path / "map.json")))
        assert any("'dog': 0 instead of 1" in note for note in found.origin.notes)


WOOF = imagenet_subsets()["imagewoof"]
SORTED = tuple(imagenet_wnids()[label] for label in sorted(WOOF))
SWAPPED = tuple(imagenet_names()[label].split(",")[0] for label in (WOOF[1], WOOF[0], *WOOF[2:]))


def of_woof(folder: Path, kind: str) -> Path:
    """Save ten black images, one of each class, where the path names their subset."""
    run = folder / "imagewoof_ipc1"
    if kind == "npz":
        run.mkdir()
        images, labels = np.zeros((10, 8, 8, 3), np.uint8), np.arange(10)
        np.savez(run / "set.npz", images=images, labels=labels)
        return run / "set.npz"
    for index in range(10):
        (run / f"{index:05d}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(run / f"{index:05d}" / "0.png")
    return run


@pytest.mark.parametrize("kind", ["npz", "folders"])
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (SORTED, "class 0 is 'n02096294' there, and 'n02086240' in the model (10 of 10 differ)"),
        (SWAPPED, "in the model (2 of 10 differ)"),
        # Their own order, names that are not ImageNet's, and none
        (tuple(imagenet_wnids()[label] for label in WOOF), None),
        (tuple(f"breed {index}" for index in range(10)), None),
        (None, None),
    ],
)
def test_a_model_with_the_classes_of_a_subset_in_another_order_is_noted(
    tmp_path: Path, kind: str, names: tuple[str, ...] | None, found: str | None
) -> None:
    dataset = read_dataset(of_woof(tmp_path, kind), Classes(10, names, "small"))
    assert dataset.labels == {index: index for index in range(10)}
    noted = [note for note in dataset.origin.notes if "names imagewoof" in note]
    assert len(noted) == (found is not None)
    assert found is None or found in noted[0]


def test_a_file_of_labels_settles_the_order(tmp_path: Path) -> None:
    path = of_woof(tmp_path, "npz")
    labels = [SORTED.index(imagenet_wnids()[label]) for label in WOOF]
    (tmp_path / "map.json").write_text(json.dumps(labels))
    options = ReadOptions(classes=str(tmp_path / "map.json"))
    dataset = read_dataset(path, Classes(10, SORTED, "small"), options)
    assert dataset.labels == dict(enumerate(labels))
    assert not [note for note in dataset.origin.notes if "imagewoof" in note]
