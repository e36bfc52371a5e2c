"""The five forms of labels, and arrays that are not labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.distilled.labels import read_labels
from diver_trt.errors import DatasetError

FILE = Path("labels.pt")
CLASSES = np.array([0, 0, 2, 1])
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    rows = (5 * ONE_HOT).astype(np.float32)
    rows.view(np.uint32)[0, 0] = 0x7FA00000
    with pytest.raises(DatasetError, match="soft labels hold NaN or infinite values"):
        read_labels(FILE, rows, 4)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_integers_are_classes(dtype: type) -> None:
    labels = read_labels(FILE, CLASSES.astype(dtype), 4)
    assert (labels.form, labels.num_classes, labels.rows) == ("hard", 3, None)
    np.testing.assert_array_equal(labels.classes, CLASSES)
    assert labels.classes.dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        (5 * ONE_HOT - 1.5 + 0.1 * np.arange(3), "logits"),
        (100 * ONE_HOT, "logits"),
        (0.9 * ONE_HOT + 0.1 / 3, "probabilities"),
        (ONE_HOT, "probabilities"),
        (ONE_HOT - 1 / 3, "centred one-hot"),
        ((ONE_HOT - 1 / 3) / np.sqrt(0.3), "centred one-hot"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_form_of_rows_follows_from_their_values(
    rows: NDArray[np.float64], form: str, dtype: type
) -> None:
    labels = read_labels(FILE, rows.astype(dtype), 4)
    assert (labels.form, labels.num_classes) == (form, 3)
    np.testing.assert_array_equal(labels.classes, CLASSES)
    assert (labels.rows is None) == (form == "centred one-hot")


def test_logits_after_a_relu_are_logits_and_doubted() -> None:
    rows = (7 * ONE_HOT + np.random.default_rng(0).uniform(0, 1, (4, 3))).astype(np.float32)
    labels = read_labels(FILE, rows, 4)
    assert labels.form == "logits"
    np.testing.assert_array_equal(labels.classes, CLASSES)
    np.testing.assert_array_equal(np.stack([labels.logits(i) for i in range(4)]), rows)
    low, high = rows.sum(axis=1).min(), rows.sum(axis=1).max()
    assert labels.note == (
        f"its soft labels are not negative and sum to {low:.3g} to {high:.3g}, so they are taken "
        "for logits (after a ReLU), not for probabilities"
    )


def test_the_labels_that_datms_evaluation_takes_for_hard_ones_are_logits() -> None:
    """`100 * one_hot`, which docs/trainers.md recommends."""
    labels = read_labels(FILE, 100 * ONE_HOT, 4)
    assert (labels.form, labels.num_classes, labels.note) == ("logits", 3, None)
    np.testing.assert_array_equal(labels.classes, CLASSES)
    np.testing.assert_array_equal(labels.logits(2), [0, 0, 100])


def test_learned_regression_targets_are_centred_for_methods_that_train_them() -> None:
    rows = (ONE_HOT - 1 / 3 + 0.1 * np.random.default_rng(0).normal(size=(4, 3))).astype(np.float32)
    assert read_labels(FILE, rows, 4).form == "logits"
    assert read_labels(FILE, rows, 4, centred=True).form == "centred one-hot"


def test_softmax_of_the_logits_of_probabilities_is_the_probabilities() -> None:
    rows = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5001]], np.float32)
    labels = read_labels(FILE, rows, 2)
    exponentials = np.exp(labels.logits(0))
    np.testing.assert_allclose(exponentials / exponentials.sum(), rows[0], rtol=1e-6)
    assert np.isfinite(labels.logits(1)).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, -1, 2, 1]), "found label -1; expected classes from 0 to 99,999"),
        (np.array([0, 2**40, 2, 1]), "found label 1099511627776"),
        (
            np.array([0.0, 1.0, 2.0, 1.0]),
            r"expected integers, which these are in value: save them as int64",
        ),
        (np.array([0.5, 1.0, 2.0, 1.0]), r"expected integers$"),
        (np.array(["a", "b", "c", "d"]), "expected integers"),
        (CLASSES[:3], "3 labels for 4 images"),
        (
            0.9 * ONE_HOT + np.array([[0.1 / 3], [0.1 / 3], [0.4], [0.1 / 3]]),
            "sum to 1 to 2.1, so they are neither logits nor probabilities",
        ),
        (ONE_HOT * np.array([[1], [1], [0.9], [1]]), "Divide probabilities by their sum"),
        (100 * (0.9 * ONE_HOT + np.float32(0.1 / 3)), "Divide probabilities by their sum"),
        (np.eye(4, dtype=np.longdouble), r"expected \[n\] integers or \[n, classes\] floats"),
        (0.5 * ONE_HOT + np.float32(0.3), "neither logits nor probabilities"),
        (np.zeros((4, 3), np.float32), "a soft label has the same value for every class"),
        (ONE_HOT * np.float32(np.nan), "NaN or infinite"),
        (ONE_HOT[:, :1], r"expected \[n\] integers or \[n, classes\] floats"),
        (ONE_HOT.astype(np.int64), r"expected \[n\] integers or \[n, classes\] floats"),
        (ONE_HOT[:, :, None], r"expected \[n\] integers or \[n, classes\] floats"),
        (np.float32(1), r"expected \[n\] integers"),
    ],
)
def test_arrays_that_are_not_labels_are_refused(array: NDArray[np.generic], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_labels(FILE, np.asarray(array), 4)


@pytest.mark.parametrize("scale", [1, 8])
def test_rows_with_two_largest_values_are_noted(scale: float) -> None:
    """CutMix with equal areas makes such rows."""
    rows = scale * np.array([[0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5]], np.float32)
    if scale != 1:
        rows -= 4
    labels = read_labels(FILE, rows, 3)
    assert labels.classes.tolist() == [0, 1, 1]
    assert labels.note == (
        "2 soft labels with several largest values: of those classes the first is taken"
    )
