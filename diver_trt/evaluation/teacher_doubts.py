"""Doubts about a teacher, which may have the test set's classes in another order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.counted import few
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.teacher import NORMALISATION, Teacher

_PER_CLASS, _IMAGES = 20, 500
"""Maximum numbers of test images that a teacher is tried on; one of each class at least."""

_BATCH = 50

_POOR = 0.25
"""Fraction of correct answers below which a teacher is doubted."""


def teacher_doubt(teacher: Teacher, test: ImageSet) -> str | None:
    """Return a note on a teacher that takes classes for others, or None.

    Args:
        teacher: The teacher.
        test: The test set, its classes numbered from 0 without gaps.
    """
    tried = _some_of_each_class(test)
    answers, labels = _answers(teacher, test.images[tried]), test.labels[tried]
    correct = int(np.count_nonzero(answers == labels))
    if moved := _moved(answers, labels):
        names = [f"{_name(test, label)} for {_name(test, other)}" for label, other in moved]
        return (
            f"the teacher takes most test images of {few(names, 3)}: are its classes in the order "
            "of the test set's?"
        )
    if correct < _POOR * len(labels):
        return (
            f"the teacher finds the class of {correct} of {len(labels)} test images: does it have "
            "these classes in this order, and is its input normalised as ImageNet is?"
        )
    return None


def _some_of_each_class(test: ImageSet) -> NDArray[np.int64]:
    """Return the positions of evenly spaced images of each class."""
    most = max(1, min(_PER_CLASS, _IMAGES // test.classes))
    found = []
    for label in np.unique(test.labels):
        own = np.flatnonzero(test.labels == label)
        found.append(own[np.unique(np.linspace(0, len(own) - 1, most).astype(int))])
    return np.concatenate(found)


def _answers(teacher: Teacher, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    statistics = find_normalisation(NORMALISATION)
    batches = []
    for first in range(0, len(images), _BATCH):
        batch = np.stack([statistics.normalise(one) for one in images[first : first + _BATCH]])
        batches.append(teacher.logits(batch).argmax(1))
    return np.concatenate(batches)


def _moved(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the classes that have each other's places: each class, and what it is taken for.

    A poor teacher takes several classes for one. Another order takes each for another.
    """
    moved = {}
    for label in np.unique(labels):
        counts = np.bincount(answers[labels == label])
        other = int(counts.argmax())
        if other != label and 2 * counts[other] > counts.sum():
            moved[int(label)] = other
    return sorted(moved.items()) if {*moved} == {*moved.values()} else []


def _name(test: ImageSet, label: int) -> str:
    return test.names[label] if test.names else str(label)
