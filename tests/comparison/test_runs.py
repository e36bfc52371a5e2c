"""What is recorded of an engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.comparison.runs import every_class


class TableConditioner:
    """An engine whose conditions are the rows of a table."""

    batch = 4

    def __init__(self, table: NDArray[np.float32]) -> None:
        self._table, self._inputs = table, dict[str, NDArray[np.generic]]()

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        self._inputs[name] = values.copy()

    def run(self) -> None:
        pass

    def read(self, _: str) -> NDArray[np.generic]:
        return self._table[self._inputs["label"].astype(np.int64)]

    def close(self) -> None:
        pass


def test_classes_whose_prompts_begin_alike_are_told_apart(digits: Bundle) -> None:
    """A text encoder's states of "a photo of a" are the same, whatever follows."""
    labels, alike, width = digits.null_label + 1, 5000, 6000
    table = np.ones((labels, width), np.float32)
    table[:, alike:] = np.arange(labels)[:, None]
    rows = every_class(TableConditioner(table), digits, np.float32(980))
    assert rows.shape[0] == labels
    assert rows.shape[1] <= 1024
    np.testing.assert_array_equal(rows[:, -1], np.arange(labels))
    assert (rows[:, 0] == 1).all()
