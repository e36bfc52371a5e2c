"""Test accuracy as bars with their spread, one group per architecture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from diver_trt.evaluation.result import Evaluation
from diver_trt.evaluation.words import average_title
from diver_trt.svg_plot import COLOURS, INK, legend_label, new_axes, to_svg

_GROUP = 0.8
"""Width of a group of bars; the distance of two groups is 1."""

_CHARACTERS = 110
"""Of the titles of groups side by side, at matplotlib's usual size."""


def accuracy_plot(evaluation: Evaluation) -> str:
    """Return the accuracies as SVG: a bar for each training set, error bars of one deviation.

    The last group is the average, where there is one. A line marks chance.
    """
    sets = [one.name for one in evaluation.training_sets]
    groups: list[str | None] = [*evaluation.architectures, *([None] if evaluation.others else [])]
    figure, (axes,) = new_axes(1, "", "Test accuracy, %")
    width = _GROUP / len(sets)
    for i, name in enumerate(sets):
        found = [evaluation.summary(name, group) for group in groups]
        axes.bar(
            [at + (i - (len(sets) - 1) / 2) * width for at in range(len(groups))],
            [one.mean if one else 0.0 for one in found],
            width * 0.92,
            yerr=[(one.deviation or 0.0) if one else 0.0 for one in found],
            color=COLOURS[i % len(COLOURS)],
            ecolor=INK,
            capsize=2.5,
            label=legend_label(name),
        )
    axes.axhline(100 / evaluation.test.classes, color=INK, lw=1, ls=(0, (4, 3)), alpha=0.6)
    titles = [
        group or average_title(evaluation).replace(" without ", "\nwithout ") for group in groups
    ]
    slanted = {"rotation": 30, "rotation_mode": "anchor", "ha": "right", "va": "top"}
    axes.set_xticks(range(len(groups)), titles, **({} if _fit(titles) else slanted))
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.set_ylim(0, 100)
    return to_svg(figure, "Test accuracy by architecture and training set")


def _fit(titles: Sequence[str]) -> bool:
    """Return whether no title of a group reaches the next one's."""
    widths = [max(map(len, title.split("\n"))) for title in titles]
    room = 2 * _CHARACTERS / len(titles)  # from the middle of a group to the next one's, twice
    return all(left + right < room for left, right in pairwise(widths))
