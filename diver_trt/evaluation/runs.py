"""An evaluation as a stream of events: every architecture on every training set, seed by seed.

The caller owns the progress bar, the stopwatch and the request to stop:

    with closing(evaluation_events(plan, folder)) as events:
        for event in events:
            if isinstance(event, StepDone):
                bar.advance()

To stop, leave the loop: only the run in progress is lost.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diver_trt._version import __version__
from diver_trt.errors import UsageError
from diver_trt.evaluation.architectures import Architecture, find_architecture
from diver_trt.evaluation.events import Event, Finished, RunDone, RunStarts
from diver_trt.evaluation.image_set import ImageSet, matched
from diver_trt.evaluation.journal import Journal, Outcome, opened
from diver_trt.evaluation.protocols import EvaluationProtocol, find_protocol
from diver_trt.evaluation.result import Evaluation, Run, SetFacts, others, summarise
from diver_trt.evaluation.teacher import Teacher
from diver_trt.evaluation.teacher_doubts import teacher_doubt
from diver_trt.manifest import TOOL
from diver_trt.packages import installed, required
from diver_trt.records import Tool
from diver_trt.runtime.backends.onnx_package import ONNXRUNTIMES
from diver_trt.structs import dump
from diver_trt.whole_number import at_least

SAME_RUNS_SINCE = 2
"""Part of every run's key. A change of the training raises it: earlier runs are then not reused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is evaluated.

    Attributes:
        train: The training sets by name, with the test set's classes, numbered from 0
            (`plan_evaluation`).
        test: The test set.
        architectures: What is trained.
        protocol: How.
        seeds: Seed of each training.
        distilled_with: The architecture that the average leaves out, or None.
        teacher: What labels the training images softly, or None.
        test_name: Name of the test set.
    """

    train: Mapping[str, ImageSet]
    test: ImageSet
    architectures: tuple[Architecture, ...]
    protocol: EvaluationProtocol
    seeds: tuple[int, ...]
    distilled_with: str | None = None
    teacher: Teacher | None = None
    test_name: str = "test"

    @property
    def versions(self) -> dict[str, str]:
        """Version of each installed package that the trainings depend on."""
        return installed(("torch", "transformers", *(ONNXRUNTIMES if self.teacher else ())))

    def steps(self, images: ImageSet) -> int:
        """Return how many steps of the optimiser a training on a set has."""
        return self.protocol.total_steps(len(images.labels), images.classes)


def plan_evaluation(
    train: Mapping[str, ImageSet],
    test: ImageSet,
    *,
    architectures: Sequence[str],
    protocol: str | EvaluationProtocol = "quick",
    seeds: int = 5,
    first_seed: int = 0,
    distilled_with: str | None = None,
    teacher: Path | None = None,
    test_name: str = "test",
) -> Plan:
    """Check and match everything that an evaluation needs; `evaluate` describes the arguments.

    Raises:
        UsageError: If an argument is unknown or out of range.
        DatasetError: If the sets do not have the same classes and sizes, or the teacher does not
            fit them.
        MissingExtraError: If torch or transformers is not installed.
    """
    if isinstance(architectures, str):
        raise UsageError(
            f"architectures is {architectures!r}; expected a list of names, such as "
            f"[{architectures!r}]"
        )
    seeds, first_seed = at_least(1, "seeds", seeds), at_least(0, "first_seed", first_seed)
    if not train or not architectures:
        raise UsageError(
            f"found {len(train)} training sets and {len(architectures)} architectures; expected "
            "one or more of each"
        )
    if distilled_with is not None:
        find_architecture(distilled_with, "--distilled-with")
    # What is named twice is trained once.
    found = tuple(find_architecture(name) for name in dict.fromkeys(architectures))
    require_packages(found)
    for architecture in found:
        architecture.require(test.side)
    same = {name: matched(name, images, test) for name, images in train.items()}
    # Numbers may have gaps, which would count as classes that networks have outputs for.
    occurring = np.unique(test.labels)
    test = test.renumbered(occurring)
    return Plan(
        train={name: images.renumbered(occurring) for name, images in same.items()},
        test=test,
        architectures=found,
        protocol=find_protocol(protocol) if isinstance(protocol, str) else protocol,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        distilled_with=distilled_with,
        teacher=None if teacher is None else Teacher(teacher, test.classes, test.side),
        test_name=test_name,
    )


def require_packages(architectures: Sequence[Architecture]) -> None:
    """Refuse architectures whose packages are missing.

    Raises:
        MissingExtraError: If torch, or what an architecture needs, is not installed.
    """
    required("torch", "evaluate", "evaluating")
    for one in architectures:
        one.load()


def evaluate(
    train: Mapping[str, ImageSet],
    test: ImageSet,
    *,
    architectures: Sequence[str],
    protocol: str | EvaluationProtocol = "quick",
    seeds: int = 5,
    first_seed: int = 0,
    distilled_with: str | None = None,
    teacher: Path | None = None,
    journal: Path | None = None,
    test_name: str = "test",
    on_event: Callable[[Event], None] = lambda _: None,
) -> Evaluation:
    """Train networks from scratch on each training set, and test them on real images.

    Args:
        train: Training sets by name.
        test: The test set, or a validation set, of the same side and classes.
        architectures: Names of `ARCHITECTURES`.
        protocol: A name of `PROTOCOLS`, or a protocol.
        seeds: Trainings of each architecture on each set.
        first_seed: The first seed; the others follow it.
        distilled_with: The architecture that the images were distilled with, which is excluded from
            the average.
        teacher: An ONNX graph that labels training images softly (`Teacher`), or None.
        journal: A folder where finished runs are kept, and taken from; None keeps none.
        test_name: Name of the test set.
        on_event: Receives every event.

    Raises:
        UsageError: If an argument is unknown or out of range.
        DatasetError: If the sets do not have the same classes and sizes, or the teacher does not
            fit them.
        OutputError: If the journal cannot be written.
        MissingExtraError: If torch or transformers is not installed.
    """
    plan = plan_evaluation(
        train,
        test,
        architectures=architectures,
        protocol=protocol,
        seeds=seeds,
        first_seed=first_seed,
        distilled_with=distilled_with,
        teacher=teacher,
        test_name=test_name,
    )
    if plan.teacher and (doubt := teacher_doubt(plan.teacher, plan.test)):
        warnings.warn(doubt, stacklevel=2)
    with closing(evaluation_events(plan, journal)) as events:
        for event in events:
            on_event(event)
            if isinstance(event, Finished):
                return event.evaluation
    raise AssertionError("an evaluation ends with Finished")


def evaluation_events(plan: Plan, journal: Path | None = None) -> Generator[Event, None, None]:
    """Run an evaluation.

    Args:
        plan: What is evaluated.
        journal: A folder where finished runs are kept, and taken from; None keeps none.

    Yields:
        `RunStarts`, a `StepDone` for each step and `RunDone` for each run that is not in the
        journal, `RunDone` alone for one that is; at the end `Finished`.

    Raises:
        OutputError: If the journal cannot be read or written, or another process uses it.
    """
    with opened(journal) as kept:
        yield from _events(plan, kept)


def steps_of(plan: Plan) -> int:
    """Return how many steps of the optimiser the trainings of a plan have together."""
    networks = len(plan.architectures) * len(plan.seeds)
    return networks * sum(map(plan.steps, plan.train.values()))


def _events(plan: Plan, journal: Journal) -> Iterator[Event]:
    hashes = {name: images.sha256() for name, images in plan.train.items()}
    test = plan.test.sha256()
    runs: dict[tuple[str, str, int], Run] = {}
    total = len(plan.seeds) * len(plan.train) * len(plan.architectures)
    # Seeds outermost: a first figure of everything comes early.
    for seed in plan.seeds:
        for name, images in plan.train.items():
            for architecture in plan.architectures:
                key = _key(plan, hashes[name], test, architecture, seed)
                outcome = journal.outcomes.get(key)
                if outcome is not None and _is_possible(plan, images, outcome):
                    finished, resumed = outcome, True
                else:
                    resumed = False
                    yield RunStarts(
                        training_set=name,
                        architecture=architecture.name,
                        seed=seed,
                        steps=plan.steps(images),
                        done=len(runs),
                        total=total,
                    )
                    finished = yield from _trained(plan, images, architecture, seed, key)
                    journal.append(finished)
                run = _run(plan, name, architecture, seed, finished)
                runs[name, architecture.name, seed] = run
                yield RunDone(run, resumed)
    # By training set, then architecture, then seed, as the document has them.
    ordered = [
        runs[name, architecture.name, seed]
        for name in plan.train
        for architecture in plan.architectures
        for seed in plan.seeds
    ]
    yield Finished(_evaluation(plan, hashes, test, ordered))


def _is_possible(plan: Plan, images: ImageSet, outcome: Outcome) -> bool:
    """Return whether a run can have ended so: its line may have been edited by hand."""
    return outcome.correct <= len(plan.test.labels) and outcome.steps == plan.steps(images)


def _trained(
    plan: Plan, images: ImageSet, architecture: Architecture, seed: int, key: str
) -> Generator[Event, None, Outcome]:
    from diver_trt.evaluation.training import count_correct, train

    net, loss = yield from train(architecture, images, plan.protocol, seed, plan.teacher)
    # Only after the last step: the best of several would be chosen on the test images.
    correct = count_correct(net, plan.test, plan.protocol)
    diverged = not math.isfinite(loss)
    return Outcome(key=key, steps=plan.steps(images), correct=correct, diverged=diverged)


def _run(
    plan: Plan, training_set: str, architecture: Architecture, seed: int, outcome: Outcome
) -> Run:
    return Run(
        training_set=training_set,
        architecture=architecture.name,
        seed=seed,
        steps=outcome.steps,
        correct=outcome.correct,
        accuracy=100 * outcome.correct / len(plan.test.labels),
        diverged=outcome.diverged,
    )


def _key(plan: Plan, train: str, test: str, architecture: Architecture, seed: int) -> str:
    """Return a hash of everything that decides a run."""
    decided = {
        "since": SAME_RUNS_SINCE,
        "train": train,
        "test": test,
        # The title may be reworded.
        "protocol": {**dump(plan.protocol), "title": ""},
        "architecture": architecture.name,
        "seed": seed,
        "teacher": plan.teacher.sha256 if plan.teacher else None,
        # Another version draws other numbers, or rounds differently.
        "versions": plan.versions,
        "device": _device_name(),
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _device_name() -> str:
    import torch

    from diver_trt.evaluation.training import device

    place = device()
    return torch.cuda.get_device_name(place) if place.type == "cuda" else place.type


def _evaluation(plan: Plan, hashes: Mapping[str, str], test: str, runs: list[Run]) -> Evaluation:
    names = tuple(architecture.name for architecture in plan.architectures)
    return Evaluation(
        tool=Tool(name=TOOL, version=__version__),
        versions=plan.versions,
        device=_device_name(),
        protocol=plan.protocol,
        side=plan.test.side,
        teacher=plan.teacher.sha256 if plan.teacher else None,
        distilled_with=plan.distilled_with,
        test=_facts(plan.test_name, plan.test, test),
        training_sets=tuple(_facts(name, plan.train[name], hashes[name]) for name in plan.train),
        architectures=names,
        seeds=plan.seeds,
        runs=tuple(runs),
        summaries=summarise(runs, others(names, plan.distilled_with)),
    )


def _facts(name: str, images: ImageSet, sha256: str) -> SetFacts:
    return SetFacts(name=name, images=len(images.labels), classes=images.classes, sha256=sha256)
