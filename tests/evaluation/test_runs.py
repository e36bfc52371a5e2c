"""Whole evaluations in memory: what they measure, what they average, and how they resume."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diver_trt.errors import DatasetError, OutputError, UsageError
from diver_trt.evaluation.events import Event, RunDone, RunStarts, StepDone
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.journal import JOURNAL
from diver_trt.evaluation.protocols import MINIMAX, QUICK
from diver_trt.evaluation.result import Evaluation, Run, summarise
from diver_trt.evaluation.runs import evaluate, evaluation_events, plan_evaluation, steps_of

SHORT = replace(QUICK, steps=6)
ARCHITECTURES = ("mlp", "vit-small")
TWELVE_RUNS: dict[str, Any] = {
    "architectures": ARCHITECTURES,
    "protocol": SHORT,
    "seeds": 3,
    "first_seed": 7,
    "distilled_with": "vit-small",
}
"""On two training sets."""


def once(train: ImageSet, test: ImageSet, **changes: Any) -> Evaluation:
    """Train a perceptron on one set, with some of `evaluate`'s arguments changed."""
    arguments = {"architectures": ["mlp"], "protocol": SHORT, "seeds": 1, **changes}
    return evaluate({"a": train}, test, **arguments)


@pytest.fixture(scope="module")
def two(train: ImageSet, other: ImageSet) -> dict[str, ImageSet]:
    return {"hundred": train, "twenty": other}


@pytest.fixture(scope="module")
def undisturbed(two: dict[str, ImageSet], held_out: ImageSet) -> Evaluation:
    return evaluate(two, held_out, **TWELVE_RUNS)


def test_real_digits_beat_chance_by_far(train: ImageSet, held_out: ImageSet) -> None:
    protocol = replace(QUICK, steps=120)
    found = once(train, held_out, architectures=["mlp", "convnet-small"], protocol=protocol)
    assert all(run.accuracy > 60 for run in found.runs)
    assert not any(run.diverged for run in found.runs)


def test_wrong_labels_are_worth_no_more_than_chance(train: ImageSet, held_out: ImageSet) -> None:
    wrong = replace(train, labels=(train.labels + 1) % 10)
    found = once(wrong, held_out, protocol=replace(QUICK, steps=120))
    assert found.runs[0].accuracy < 15


def test_means_and_spreads_follow_from_the_rows(undisturbed: Evaluation) -> None:
    assert undisturbed.others == ("mlp",)
    assert [(one.training_set, one.architecture) for one in undisturbed.summaries] == [
        *((name, architecture) for name in ("hundred", "twenty") for architecture in ARCHITECTURES),
        ("hundred", None),
        ("twenty", None),
    ]
    for summary in undisturbed.summaries:
        rows = np.array(
            [
                100 * run.correct / 200
                for run in undisturbed.runs
                if run.training_set == summary.training_set
                and run.architecture == (summary.architecture or "mlp")
            ]
        )
        assert len(rows) == summary.seeds == 3
        assert summary.mean == pytest.approx(rows.mean())
        assert summary.deviation == pytest.approx(rows.std(ddof=1))


def test_the_average_is_formed_for_each_seed() -> None:
    accuracies = {"a": (10.0, 20.0), "b": (40.0, 30.0), "left out": (99.0, 0.0)}
    runs = [
        Run(training_set="x", architecture=name, seed=seed, steps=1, correct=0, accuracy=value)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    *_, average = summarise(runs, ["a", "b"])
    assert (average.architecture, average.mean, average.deviation) == (None, 25.0, 0.0)
    (single, *_) = summarise(runs[:1], [])
    assert (single.mean, single.deviation) == (10.0, None)


def test_a_resumed_evaluation_equals_an_undisturbed_one(
    undisturbed: Evaluation, two: dict[str, ImageSet], held_out: ImageSet, tmp_path: Path
) -> None:
    plan = plan_evaluation(two, held_out, **TWELVE_RUNS)
    finished = 0
    with closing(evaluation_events(plan, tmp_path)) as events:
        for event in events:
            finished += isinstance(event, RunDone)
            # In the middle of the sixth training.
            if finished == 5 and isinstance(event, StepDone) and event.step == 3:
                break
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == 5
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"key": "cut')
    seen: list[Event] = []
    again = evaluate(two, held_out, **TWELVE_RUNS, journal=tmp_path, on_event=seen.append)
    assert [event.resumed for event in seen if isinstance(event, RunDone)] == [True] * 5 + [
        False
    ] * 7
    assert [event.done for event in seen if isinstance(event, RunStarts)] == list(range(5, 12))
    assert again == undisturbed
    # A line behind a cut one can be read: nothing is trained a third time.
    assert evaluate(two, held_out, **TWELVE_RUNS, journal=tmp_path) == undisturbed
    lines = (tmp_path / JOURNAL).read_bytes().splitlines()
    assert len(lines) == 13


@pytest.mark.parametrize(("field", "value"), [("correct", 10**6), ("steps", 3)])
def test_an_outcome_that_cannot_be_is_not_reused(
    train: ImageSet, held_out: ImageSet, tmp_path: Path, field: str, value: int
) -> None:
    """As where somebody has edited the journal."""
    protocol = replace(SHORT, steps=1)
    expected = once(train, held_out, protocol=protocol, journal=tmp_path)
    line = json.loads((tmp_path / JOURNAL).read_text())
    (tmp_path / JOURNAL).write_text(json.dumps({**line, field: value}) + "\n")
    assert once(train, held_out, protocol=protocol, journal=tmp_path) == expected


@pytest.mark.parametrize("change", ["train", "test", "protocol", "seed"])
def test_a_run_that_anything_else_decides_is_not_reused(
    change: str, train: ImageSet, held_out: ImageSet, tmp_path: Path
) -> None:
    protocol = replace(SHORT, steps=1)
    once(train, held_out, protocol=protocol, journal=tmp_path)
    changed = replace(train, images=255 - train.images)
    events: list[Event] = []
    once(
        changed if change == "train" else train,
        train if change == "test" else held_out,
        protocol=replace(protocol, weight_decay=0.1) if change == "protocol" else protocol,
        first_seed=int(change == "seed"),
        journal=tmp_path,
        on_event=events.append,
    )
    assert [event.resumed for event in events if isinstance(event, RunDone)] == [False]


def test_a_renamed_set_is_not_trained_on_again(
    train: ImageSet, held_out: ImageSet, tmp_path: Path
) -> None:
    protocol = replace(SHORT, steps=1)
    for name, expected in (("a", False), ("b", True)):
        plan = plan_evaluation(
            {name: train}, held_out, architectures=["mlp"], protocol=protocol, seeds=1
        )
        done = [one for one in evaluation_events(plan, tmp_path) if isinstance(one, RunDone)]
        assert [(one.run.training_set, one.resumed) for one in done] == [(name, expected)]


def test_a_run_does_not_depend_on_what_else_draws_numbers(
    train: ImageSet, held_out: ImageSet
) -> None:
    """A vision transformer draws weights, and EfficientNet drops paths: torch's own generator."""
    protocol = replace(SHORT, steps=3)
    found = []
    for draws in (0, 1):
        plan = plan_evaluation(
            {"a": train}, held_out, architectures=["efficientnet-small"], protocol=protocol, seeds=1
        )
        state = torch.random.get_rng_state()
        for event in evaluation_events(plan):
            torch.rand(draws)
            if isinstance(event, RunDone):
                found.append(event.run)
        assert torch.equal(torch.random.get_rng_state(), state) == (draws == 0)
    assert found[0] == found[1]


def test_cut_mix_and_small_batches_train_too(train: ImageSet, held_out: ImageSet) -> None:
    protocol = replace(MINIMAX, steps=9, batch=33)  # 100 images in three batches and one left
    plan = plan_evaluation(
        {"a": train}, held_out, architectures=["resnet-small"], protocol=protocol, seeds=1
    )
    assert steps_of(plan) == 9
    steps = [event.step for event in evaluation_events(plan) if isinstance(event, StepDone)]
    assert steps == list(range(1, 10))


def test_a_training_that_diverges_is_reported(train: ImageSet, held_out: ImageSet) -> None:
    found = once(train, held_out, protocol=replace(SHORT, optimiser="sgd", learning_rate=1e30))
    assert found.runs[0].diverged


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["resnet50"]}, "no such architecture"),
        ({"architectures": []}, "1 training sets and 0 architectures"),
        ({"protocol": "rded"}, "no such protocol"),
        ({"seeds": 0}, "seeds is 0; expected a whole number, 1 or more"),
        ({"seeds": [1, 2]}, r"seeds is \[1, 2\]; expected a whole number, 1 or more"),
        ({"first_seed": -1}, "first_seed is -1; expected a whole number, 0 or more"),
        ({"first_seed": 0.5}, r"first_seed is 0\.5; expected a whole number, 0 or more"),
        ({"distilled_with": "alexnet"}, "--distilled-with alexnet: no such architecture"),
        ({"architectures": ["vit-b16"]}, "vit-b16: images of 16 px, expected 32 px or more"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    changes: dict[str, object], problem: str, train: ImageSet, held_out: ImageSet
) -> None:
    with pytest.raises(UsageError, match=problem):
        once(train, held_out, **changes)


def test_a_set_of_other_classes_is_refused(train: ImageSet, held_out: ImageSet) -> None:
    few = ImageSet(train.images[:50], train.labels[:50])
    with pytest.raises(DatasetError, match=r"^a: has 5 classes, the test set 10"):
        once(few, held_out)


def test_a_file_in_place_of_the_journal_is_refused(
    train: ImageSet, held_out: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        once(train, held_out, journal=tmp_path / "file")
    os.mkfifo(tmp_path / JOURNAL)
    with pytest.raises(OutputError, match=f"{JOURNAL}: is not a regular file, expected finished"):
        once(train, held_out, journal=tmp_path)


def test_gaps_between_numbers_are_not_classes(train: ImageSet, held_out: ImageSet) -> None:
    def spread(images: ImageSet) -> ImageSet:
        return replace(images, labels=100 * images.labels + 1, names=None)

    names, sets = ["mlp"], {"real": train}
    dense = plan_evaluation(sets, held_out, architectures=names, protocol=MINIMAX, seeds=1)
    sparse = plan_evaluation(
        {"real": spread(train)}, spread(held_out), architectures=names, protocol=MINIMAX, seeds=1
    )
    assert (sparse.test.classes, sparse.train["real"].classes) == (10, 10)
    assert sparse.train["real"].sha256() == dense.train["real"].sha256()
    assert steps_of(sparse) == steps_of(dense)


def test_an_architecture_that_is_not_evaluated_leaves_nothing_out(
    train: ImageSet, held_out: ImageSet
) -> None:
    assert once(train, held_out, distilled_with="convnet3").others == ("mlp",)
