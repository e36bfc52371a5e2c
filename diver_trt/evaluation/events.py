"""What an evaluation yields on its way."""

from __future__ import annotations

from dataclasses import dataclass

from diver_trt.evaluation.result import Evaluation, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarts:
    """A network begins to train.

    Attributes:
        training_set: Name of its training set.
        architecture: Name of its architecture.
        seed: Its seed.
        steps: Steps that it will train for.
        done: Runs that are finished.
        total: Runs of the whole evaluation.
    """

    training_set: str
    architecture: str
    seed: int
    steps: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step of the optimiser is done: `step` of the current run, from 1."""

    step: int


@dataclass(frozen=True, slots=True)
class RunDone:
    """A run is finished, or was taken from the journal (`resumed`)."""

    run: Run
    resumed: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """Every run is finished."""

    evaluation: Evaluation


Event = RunStarts | StepDone | RunDone | Finished
