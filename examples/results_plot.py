"""The sweep as a figure: validation accuracy along each axis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from examples.results_document import Measured
from examples.settings import Point
from examples.training_sets import Treatment

COLUMNS = 3


def plot_sweep(points: Sequence[Point], swept: Iterable[Measured], path: Path) -> None:
    """Write a panel for each axis: mean accuracy over networks, methods, images and seeds."""
    accuracies: dict[Treatment, list[float]] = {}
    for one in swept:
        accuracies.setdefault(one.training_set.treatment, []).append(one.accuracy)
    axes = list(dict.fromkeys(point.axis for point in points))
    rows = math.ceil(len(axes) / COLUMNS)
    figure, panels = plt.subplots(
        rows, COLUMNS, figsize=(4 * COLUMNS, 3 * rows), sharey=True, squeeze=False
    )
    for panel, axis in zip(panels.flat, axes, strict=False):
        for series in dict.fromkeys(point.series for point in points if point.axis == axis):
            line = [point for point in points if (point.axis, point.series) == (axis, series)]
            means = [statistics.fmean(accuracies[point.treatment]) for point in line]
            panel.plot([str(point.value) for point in line], means, marker="o", label=series)
        panel.set_title(axis, fontsize=9)
        panel.grid(alpha=0.3)
        if any(point.series for point in points if point.axis == axis):
            panel.legend(title="guide", fontsize=8)
    for panel in panels.flat[len(axes) :]:
        panel.remove()
    figure.supylabel("validation accuracy in %, networks not distilled for")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
