"""The labels of distilled datasets: five forms, one class each.

Hard labels are integers. Soft ones have a row per image and a column per class: logits (DATM, EDF,
and the `100 * one_hot` that their evaluation takes for hard labels), probabilities (TESLA with
teacher labels), or one-hot rows minus their mean, perhaps trained further (FRePo, KIP). The form is
not in the file, but follows from the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import MAX_CLASSES
from diver_trt.counted import counted
from diver_trt.distilled.stored_array import Array, StoredArray
from diver_trt.errors import DatasetError
from diver_trt.tensors import describe

Form = Literal["hard", "logits", "probabilities", "centred one-hot"]

_PROBABILITY = 0.02
"""Distance of the sum of a row of probabilities from 1 that is tolerated."""
# float16 has a relative precision of 1e-3, and a row may have 1,000 such values.

# Rows that are read at a time: 33 MB of float64 for 1,000 classes.
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Labels:
    """The class of each image, and its soft label if it has one that training can use.

    Attributes:
        form: Their form in the file.
        classes: Class of each image in the dataset's order, [n] int64.
        num_classes: Number of columns of soft labels, else one more than the largest class.
        rows: The soft labels as stored, [n, num_classes]; None for hard labels and centred one-hot
            rows, which are regression targets.
        note: A doubt about the form or the classes, or None.
    """

    form: Form
    classes: NDArray[np.int64]
    num_classes: int
    rows: Array | None
    note: str | None = None

    def logits(self, image: int) -> NDArray[np.float32]:
        """Return the soft label of one image as logits, [num_classes] float32."""
        assert self.rows is not None, "only called where there are soft labels"
        row = self.rows[image].astype(np.float32)
        # softmax(log p) is p; the floor keeps log(0) finite.
        return np.log(np.maximum(row, np.float32(1e-12))) if self.form == "probabilities" else row


def read_labels(path: Path, array: Array, images: int, *, centred: bool = False) -> Labels:
    """Read labels of any form.

    Args:
        path: The file they come from, for messages.
        array: [n] of integers, or [n, classes] of floats.
        images: How many images there are.
        centred: Whether float rows are centred one-hot whatever their values, as for a method that
            trains them.

    Raises:
        DatasetError: If their number or shape is wrong, a class is negative or too large, or float
            rows are not labels.
    """
    if len(array.shape) not in (1, 2):
        raise _other_array(path, array)
    if array.shape[0] != images:
        raise DatasetError(
            f"{path}: {array.shape[0]} labels for {images} images; expected one each"
        )
    if len(array.shape) == 1:
        return _hard(path, np.concatenate(list(_chunks(array))))
    plain = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if not plain or not 2 <= array.shape[1] <= MAX_CLASSES:
        raise _other_array(path, array)
    rows = _read_rows(path, array)
    # Tested first, since such rows have negative values like logits.
    if centred or _is_centred_one_hot(array):
        return Labels("centred one-hot", rows.classes, array.shape[1], None)
    tied = (
        f"{counted(rows.ties, 'soft label')} with several largest values: of those classes the "
        "first is taken"
        if rows.ties
        else None
    )
    # A probability is never negative.
    if rows.negative:
        return Labels("logits", rows.classes, array.shape[1], array, tied)
    form, note = _form_of_positive(path, rows.sums, one_hot=rows.one_hot)
    return Labels(form, rows.classes, array.shape[1], array, note or tied)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The properties of soft labels that decide their form and classes.

    Attributes:
        classes: Column of the largest value of each row.
        sums: Sum of each row.
        negative: Whether any value is negative.
        one_hot: Whether every row has a single value other than 0.
        ties: Number of rows with several largest values.
    """

    classes: NDArray[np.int64]
    sums: NDArray[np.float64]
    negative: bool
    one_hot: bool
    ties: int


def _read_rows(path: Path, array: Array) -> _Rows:
    """Read soft labels once, in chunks.

    Raises:
        DatasetError: If a row is not finite, or has the same value for every class.
    """
    classes, sums, negative, one_hot, ties = [], [], False, True, 0
    for rows in _chunks(array):
        with np.errstate(invalid="ignore"):  # casting a signalling NaN raises the invalid flag
            values = rows.astype(np.float64)
        if not np.isfinite(values).all():
            raise DatasetError(f"{path}: soft labels hold NaN or infinite values")
        negative |= bool((values < 0).any())
        one_hot &= bool((np.count_nonzero(values, axis=1) == 1).all())
        sums.append(values.sum(axis=1))
        classes.append(values.argmax(axis=1))
        largest = values.max(axis=1)
        # `argmax` takes the first of several largest values in silence.
        ties += int(np.count_nonzero((values == largest[:, None]).sum(axis=1) > 1))
        if bool((largest == values.min(axis=1)).any()):
            raise DatasetError(
                f"{path}: a soft label has the same value for every class, so it names no class"
            )
    return _Rows(np.concatenate(classes), np.concatenate(sums), negative, one_hot, ties)


def _form_of_positive(
    path: Path, totals: NDArray[np.float64], *, one_hot: bool
) -> tuple[Form, str | None]:
    """Return the form of non-negative rows, and the doubt about it, from their sums.

    Raises:
        DatasetError: If they would be probabilities, except for some rows or for their scale.
    """
    sums = f"soft labels are not negative and sum to {totals.min():.3g} to {totals.max():.3g}"
    wrong = np.abs(totals - 1) > _PROBABILITY
    if not wrong.any():
        return "probabilities", None
    # Percentages all have the sum 100; probabilities with some damaged rows mostly have 1.
    scaled, mostly = np.ptp(totals) < _PROBABILITY * totals.max(), np.mean(wrong) < 0.5
    # DATM's evaluation takes `100 * one_hot` for hard labels.
    if one_hot and scaled:
        return "logits", None
    if scaled or mostly:
        raise DatasetError(
            f"{path}: {sums}, so they are neither logits nor probabilities; expected "
            "probabilities, whose rows sum to 1, or logits, whose rows have any sum. Divide "
            "probabilities by their sum."
        )
    return (
        "logits",
        f"its {sums}, so they are taken for logits (after a ReLU), not for probabilities",
    )


def _other_array(path: Path, array: Array) -> DatasetError:
    return DatasetError(
        f"{path}: labels are {describe_array(array)}; expected [n] integers or [n, classes] floats"
    )


def describe_array(array: Array) -> str:
    """Return an array's type and shape as errors print them."""
    return (
        f"{array.dtype}{list(array.shape)}" if isinstance(array, StoredArray) else describe(array)
    )


def _hard(path: Path, values: NDArray[Any]) -> Labels:
    # CAFE writes int32 where the other methods write int64.
    if values.dtype.kind not in "iu":
        whole = (
            values.dtype.kind == "f"
            and np.isfinite(values).all()
            and (values == np.floor(values)).all()
        )
        raise DatasetError(
            f"{path}: labels are {describe(values)}; expected integers"
            f"{', which these are in value: save them as int64' if whole else ''}"
        )
    if (bad := values.min()) < 0 or (bad := values.max()) >= MAX_CLASSES:
        raise DatasetError(
            f"{path}: found label {bad}; expected classes from 0 to {MAX_CLASSES - 1:,}"
        )
    classes = values.astype(np.int64)
    return Labels("hard", classes, int(classes.max()) + 1, None)


def _is_centred_one_hot(array: Array) -> bool:
    """Return whether rows are `one_hot - 1/C` times some number."""
    # Such a row sums to 0, and all its values but the largest are equal.
    # head [n, C]; rest [n, C - 1], without the largest of each row
    head = array[:_CHUNK].astype(np.float64)
    rest = np.sort(head, axis=1)[:, :-1]
    return bool(
        (np.abs(head.sum(axis=1)) < 1e-3 * np.abs(head).sum(axis=1)).all()
        and (np.ptp(rest, axis=1) < 1e-3 * np.ptp(head, axis=1)).all()
    )


def _chunks(array: Array) -> Iterator[NDArray[Any]]:
    for first in range(0, array.shape[0], _CHUNK):
        yield array[first : first + _CHUNK]
