"""The conditions of a class: one row of values for every step, computed by the conditioner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diver_trt.runtime.engine import Conditions, Engine
from diver_trt.runtime.networks import Networks


class ClassConditions:
    """The conditions of the classes in use, and of the null class.

    Args:
        networks: Opens the conditioner.
        times: The model's time at every step, [K] float32.
        null_label: Label of the null class of classifier-free guidance.
    """

    def __init__(self, networks: Networks, times: NDArray[np.float32], null_label: int) -> None:
        self._networks, self._times, self._null_label = networks, times, null_label
        self._tables: dict[int, Conditions] = {}

    @property
    def labels(self) -> set[int]:
        """The classes whose conditions are held."""
        return set(self._tables)

    def compute(self, labels: set[int]) -> None:
        """Compute the conditions of these classes and the null class, and drop all others."""
        # Dropped: with many classes they would fill the host's memory, 20 MB each for DiT-XL/2.
        wanted = {*labels, self._null_label}
        self._tables = {label: table for label, table in self._tables.items() if label in wanted}
        missing = sorted(wanted - self._tables.keys())
        # Opened only if needed: where networks are loaded one at a time, that unloads another.
        conditioner = self._networks.open("conditioner") if missing else None
        for label in missing:
            assert conditioner is not None
            self._tables[label] = class_conditions(conditioner, self._times, label)

    def of(self, labels: Sequence[int]) -> tuple[list[Conditions], Conditions]:
        """Return the conditions of each label and of the null class, [K, M] each."""
        if not self._tables.keys() >= {*labels, self._null_label}:
            self.compute(set(labels))
        return [self._tables[label] for label in labels], self._tables[self._null_label]


def class_conditions(conditioner: Engine, times: NDArray[np.float32], label: int) -> Conditions:
    """Return the conditions of a class at every time, [len(times), M], in several runs."""
    parts: list[Conditions] = []
    for first in range(0, len(times), conditioner.batch):
        part = times[first : first + conditioner.batch]
        # `resize` repeats the last times where they do not fill the engine's fixed size.
        conditioner.write("time", np.resize(part, conditioner.batch))
        conditioner.write("label", np.full(conditioner.batch, label, np.int64))
        conditioner.run()
        # A copy, since the next run overwrites the engine's buffer.
        parts.append(conditioner.read("condition")[: len(part)].copy())
    return np.concatenate(parts)
