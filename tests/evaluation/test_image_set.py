"""Sets of images in memory, and matching the classes of two of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diver_trt.errors import DatasetError
from diver_trt.evaluation.image_set import ImageSet, matched

WNIDS = ("n01440764", "n02102040", "n02979186")


def plain(labels: list[int], names: tuple[str, ...] | None = None, side: int = 4) -> ImageSet:
    images = np.zeros((len(labels), side, side, 3), np.uint8)
    images[:, 0, 0, 0] = labels
    return ImageSet(images, np.array(labels, np.int64), names)


def test_classes_are_matched_by_name() -> None:
    train = plain([0, 1, 2], ("Dog", "cat_fish", "owl"))
    test = plain([0, 1, 2], ("cat fish", "dog", "owl"))
    found = matched("train", train, test)
    assert found.labels.tolist() == [1, 0, 2]
    assert found.names == test.names


def test_classes_without_names_are_matched_by_number() -> None:
    assert matched("train", plain([1, 0]), plain([0, 1, 1])).labels.tolist() == [1, 0]
    named = matched("train", plain([1, 0]), plain([0, 1], ("coat", "shirt")))
    assert (named.labels.tolist(), named.names) == ([1, 0], ("coat", "shirt"))


@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        (plain([0, 1]), plain([0, 1, 2]), "has 2 classes, the test set 3; 2 is not in the tr"),
        (plain([0, 3]), plain([0, 1]), "3 is not in the test set; 1 is not in the training set"),
        (
            plain([0, 1], ("coat", "hat")),
            plain([0, 1], ("coat", "bag")),
            "hat is not in the test set; bag is not in the training set",
        ),
        (plain([0, 1], side=8), plain([0, 1]), "images of 8 px, expected 4 px"),
        (
            plain([0, 1, 2]),
            plain([0, 1, 2], WNIDS),
            "training set's classes are numbers, but the test set's are wnids.*--classes",
        ),
        (
            plain([0, 1, 2], WNIDS),
            plain([0, 1, 2]),
            "test set's classes are numbers, but the training set's are wnids.*--classes",
        ),
    ],
)
def test_a_mismatch_is_refused(train: ImageSet, test: ImageSet, problem: str) -> None:
    with pytest.raises(DatasetError, match=f"^mine: .*{problem}"):
        matched("mine", train, test)


@pytest.mark.parametrize(
    ("images", "labels", "names", "problem"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], None, "expected uint8"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0, 1], None, "expected uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], None, r"expected int64\[2\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], None, "found -1"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], ("a", "b"), "found 2, expected .* 0 to 1"),
    ],
)
def test_other_arrays_are_refused(images: Any, labels: Any, names: Any, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        ImageSet(images, np.array(labels), names)


def test_the_hash_depends_on_pixels_labels_and_order() -> None:
    first = plain([0, 1, 2])
    assert first.sha256() == plain([0, 1, 2], ("a", "b", "c")).sha256()
    others = {plain([0, 2, 1]).sha256(), plain([0, 1, 2], side=8).sha256()}
    changed = ImageSet(first.images + np.uint8(1), first.labels)
    assert len({first.sha256(), changed.sha256(), *others}) == 4


def test_classes_of_one_name_are_matched_by_number_or_refused() -> None:
    repeated = ("coat", "bag", "coat")
    found = matched("mine", plain([0, 1, 2], repeated), plain([2, 1, 0], repeated))
    assert found.labels.tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match=r"^mine: classes 0 and 2 are both coat"):
        matched("mine", plain([0, 1, 2], repeated), plain([0, 1], ("bag", "Coat")))
    with pytest.raises(DatasetError, match=r"^the test set: classes 0 and 2 are both coat"):
        matched("mine", plain([0, 1], ("bag", "Coat")), plain([0, 1, 2], repeated))


def test_numbers_with_gaps_are_numbered_anew() -> None:
    found = plain([0, 117, 182, 117]).renumbered(np.array([0, 117, 182]))
    assert (found.labels.tolist(), found.classes) == ([0, 1, 2, 1], 3)
    named = plain([1, 3], ("", "bag", "", "coat")).renumbered(np.array([1, 3]))
    assert (named.labels.tolist(), named.names) == ([0, 1], ("bag", "coat"))
