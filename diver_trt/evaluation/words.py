"""An evaluation's figures in words, as the table on the terminal and the page show them."""

from __future__ import annotations

from collections.abc import Iterator

from diver_trt.counted import counted
from diver_trt.evaluation.result import Evaluation, Summary

NOTHING = "-"


def heading(evaluation: Evaluation) -> Iterator[str]:
    """Yield what was trained, how and where, a line each."""
    protocol, test = evaluation.protocol, evaluation.test
    labels = "hard labels" if evaluation.teacher is None else "labels of a teacher"
    mirrored = "" if "flip" in protocol.augmentations else ", no mirror images"
    yield f"protocol {protocol.name}: {protocol.title}; {labels}{mirrored}"
    # The deviation of a single training is undefined.
    trainings = f"mean ± deviation of {len(evaluation.seeds)} trainings"
    yield (
        f"accuracy in % on {counted(test.images, 'image')} of {counted(test.classes, 'class')} "
        f"({test.name}), "
        f"{evaluation.side} px; {trainings if len(evaluation.seeds) > 1 else 'one training each'}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in evaluation.versions.items())
    yield f"{evaluation.device}; {versions}"


def average_title(evaluation: Evaluation) -> str:
    """Return the column's title: `average`, or `average without NAME`."""
    if evaluation.distilled_with is None:
        return "average"
    return f"average without {evaluation.distilled_with}"


def accuracy(summary: Summary | None) -> str:
    """Return mean and deviation in percent: `71.2 ± 1.7`."""
    if summary is None:
        return NOTHING
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.1f}"
    return f"{summary.mean:.1f}{spread}"


def notes(evaluation: Evaluation) -> Iterator[str]:
    """Yield what casts doubt on the figures, a sentence each."""
    for run in evaluation.runs:
        if run.diverged:
            yield (
                f"{run.training_set}, {run.architecture}, seed {run.seed}: the training diverged, "
                "and its accuracy is that of chance"
            )
