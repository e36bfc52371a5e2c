"""The plot of an evaluation."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from diver_trt.evaluation.architectures import ARCHITECTURES
from diver_trt.evaluation.plot import accuracy_plot
from diver_trt.evaluation.protocols import PROTOCOLS
from diver_trt.evaluation.result import Evaluation, Run, SetFacts, summarise
from diver_trt.records import Tool


@pytest.mark.parametrize(("count", "slanted"), [(1, False), (5, False), (len(ARCHITECTURES), True)])
def test_names_of_architectures_do_not_overlap(
    count: int, slanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def keep(figure: Figure, _: str) -> str:
        figures.append(figure)
        return ""

    monkeypatch.setattr("diver_trt.evaluation.plot.to_svg", keep)
    accuracy_plot(_evaluation(sorted(ARCHITECTURES, key=len)[-count:]))
    figures[0].draw_without_rendering()
    labels = figures[0].axes[0].get_xticklabels()
    assert len(labels) == count + 1
    assert {label.get_rotation() for label in labels} == {30.0 if slanted else 0.0}
    # Slanted ones lie above each other, where boxes do not show whether texts overlap.
    boxes = [label.get_window_extent() for label in labels]
    assert slanted or all(left.x1 < right.x0 for left, right in pairwise(boxes))


def _evaluation(architectures: list[str]) -> Evaluation:
    """Return one training of each architecture on one set."""
    facts = SetFacts(name="digits", images=10, classes=10, sha256="0" * 64)
    runs = [
        Run(training_set="digits", architecture=name, seed=0, steps=1, correct=5, accuracy=50.0)
        for name in architectures
    ]
    return Evaluation(
        tool=Tool(name="diver-trt", version="0.2.0"),
        versions={},
        device="cpu",
        protocol=PROTOCOLS["quick"],
        side=32,
        test=facts,
        training_sets=(facts,),
        architectures=tuple(architectures),
        seeds=(0,),
        runs=tuple(runs),
        summaries=summarise(runs, architectures),
    )
