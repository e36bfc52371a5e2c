"""A teacher with the test set's classes in another order is noticed, and a good one is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.teacher import Teacher
from diver_trt.evaluation.teacher_doubts import teacher_doubt
from tests.evaluation.linear_teacher import save_linear_teacher

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def images_of(colours: list[str], names: tuple[str, ...] | None) -> ImageSet:
    """Plain images of 8 px; the class of each is its colour's place in `COLOURS`."""
    images = np.zeros((len(colours), 8, 8, 3), np.uint8)
    images[:] = np.array([COLOURS[colour] for colour in colours], np.uint8)[:, None, None]
    return ImageSet(images, np.array([[*COLOURS].index(colour) for colour in colours]), names)


def teacher_of(path: Path, colours: list[str]) -> Teacher:
    """Return a teacher whose classes are these colours; each logit is the distance, negated."""
    statistics = find_normalisation("imagenet")
    centres = [
        statistics.normalise(np.array([[COLOURS[colour]]], np.uint8)).ravel() for colour in colours
    ]
    # -|x - c|^2 is 2 c x - |c|^2 but for a term that all classes share.
    weight: NDArray[np.float32] = np.stack([2 * centre for centre in centres], 1)
    bias = np.array([-(centre @ centre) for centre in centres], np.float32)
    return Teacher(save_linear_teacher(path, weight, bias, 8), len(colours), 8)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(
    ("order", "doubt"),
    [
        (["red", "green", "blue", "white"], None),
        # As sorted wnids and a method's own order differ, here in two classes of four
        (["red", "blue", "green", "white"], "takes most test images of green for blue, blue for"),
        (["white", "red", "green", "blue"], "red for green, green for blue, blue for white and 1"),
        # A poor teacher, but in the right order
        (["red", "red", "red", "white"], None),
        (["red", "red", "red", "red"], None),
    ],
)
def test_another_order_of_classes_is_noticed(
    tmp_path: Path, order: list[str], doubt: str | None, count: int
) -> None:
    teacher = teacher_of(tmp_path / "teacher.onnx", order)
    found = teacher_doubt(teacher, images_of([*COLOURS] * count, tuple(COLOURS)))
    assert (found is None) if doubt is None else (found is not None and doubt in found)


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher.onnx", ["green", "red", "blue", "white"])
    found = teacher_doubt(teacher, images_of([*COLOURS], None))
    assert found == (
        "the teacher takes most test images of 0 for 1, 1 for 0: are its classes in the order of "
        "the test set's?"
    )


def test_a_teacher_of_other_images_is_noticed(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "teacher.onnx", ["white", "red", "red", "red"])
    found = teacher_doubt(teacher, images_of([*COLOURS], tuple(COLOURS)))
    assert found is not None
    assert "the teacher finds the class of 0 of 4 test images" in found
