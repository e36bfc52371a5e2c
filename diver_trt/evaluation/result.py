"""What an evaluation found: every run, and its mean and spread by training set and architecture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diver_trt.evaluation.protocols import EvaluationProtocol
from diver_trt.records import Tool
from diver_trt.structs import Count, Sha256, Size

SCHEMA = 1
OWN_FIELDS = frozenset({"schema", "tool", "protocol", "runs", "summaries"})
"""Fields by which an earlier evaluation is recognised; every schema has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """A training or test set.

    Attributes:
        name: Its name in the evaluation.
        images: Number of images.
        classes: Number of classes.
        sha256: Hash of all images and their classes, at the evaluation's size.
    """

    name: str
    images: Count
    classes: Count
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One network, trained once and tested.

    Attributes:
        training_set: Name of its training set.
        architecture: Name of its architecture.
        seed: Seed of the training.
        steps: Steps of the optimiser.
        correct: Test images that it recognised.
        accuracy: The same in percent of the test set.
        diverged: Whether the last loss was not finite: the accuracy is then that of chance.
    """

    training_set: str
    architecture: str
    seed: int
    steps: Size
    correct: Size
    accuracy: float
    diverged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Test accuracy over seeds.

    Attributes:
        training_set: Name of the training set.
        architecture: The architecture; None is the average over those of `Evaluation.others`,
            formed for each seed.
        mean: In percent.
        deviation: Sample standard deviation over seeds, in percentage points; None for one seed.
        seeds: Number of seeds.
    """

    training_set: str
    architecture: str | None
    mean: float
    deviation: float | None
    seeds: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An evaluation: the JSON that `evaluate --json` writes.

    Attributes:
        schema: Version of this document.
        tool: What wrote it.
        versions: Versions of the libraries that trained.
        device: `"cpu"`, or the GPU's name.
        protocol: How networks were trained.
        side: Side of the images in pixels.
        teacher: Hash of the teacher's file, or None for hard labels.
        distilled_with: The architecture that the images were distilled with, or None.
        test: The test set.
        training_sets: The training sets, in the given order.
        architectures: The architectures, in the given order.
        seeds: The seeds.
        runs: Every run, by training set, architecture and seed.
        summaries: Of each training set and architecture, then the average of each training set.
    """

    schema: int = SCHEMA
    tool: Tool
    versions: Mapping[str, str]
    device: str
    protocol: EvaluationProtocol
    side: Count
    teacher: Sha256 | None = None
    distilled_with: str | None = None
    test: SetFacts
    training_sets: tuple[SetFacts, ...]
    architectures: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """The architectures that the images were not distilled with, which the average is over."""
        return others(self.architectures, self.distilled_with)

    def summary(self, training_set: str, architecture: str | None = None) -> Summary | None:
        """Return the summary of a training set and an architecture, or its average.

        Returns:
            The summary, or None. There is no average if all images were distilled with the only
            architecture.
        """
        for one in self.summaries:
            if (one.training_set, one.architecture) == (training_set, architecture):
                return one
        return None


def others(architectures: Sequence[str], distilled_with: str | None) -> tuple[str, ...]:
    """Return the architectures without the one that the images were distilled with."""
    return tuple(name for name in architectures if name != distilled_with)


def summarise(runs: Iterable[Run], averaged: Sequence[str]) -> tuple[Summary, ...]:
    """Return mean and spread over seeds of every training set and architecture, then averages.

    Args:
        runs: The runs, complete: every seed of every training set and architecture.
        averaged: Architectures of the average.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        found.setdefault((run.training_set, run.architecture), {})[run.seed] = run.accuracy
    summaries = [_summary(*key, list(by_seed.values())) for key, by_seed in found.items()]
    for training_set in dict.fromkeys(key[0] for key in found):
        columns = [found[training_set, name] for name in averaged]
        if columns:
            # For each seed first, so that the deviation is over seeds, as in every other column.
            means = [statistics.fmean(one[seed] for one in columns) for seed in columns[0]]
            summaries.append(_summary(training_set, None, means))
    return tuple(summaries)


def _summary(training_set: str, architecture: str | None, accuracies: list[float]) -> Summary:
    return Summary(
        training_set=training_set,
        architecture=architecture,
        mean=statistics.fmean(accuracies),
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        seeds=len(accuracies),
    )
