"""The digits' results in small: real images teach, a resumed run equals an undisturbed one."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diver_trt.digits import default_bundle
from diver_trt.evaluation.protocols import PROTOCOLS
from examples import results
from examples.results import CONVNET, Task, best, row_sets, sweep_sets
from examples.results_document import Measured
from examples.settings import DISTILLED, ROWS, matched, sweep
from examples.training_sets import REAL, TrainingSet, Treatment

pytestmark = pytest.mark.slow

TITLES = ("random real", "distilled")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose bundle is there already."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(default_bundle(), folder / "bundle")
    return folder


class InThisProcess:
    """Stands for the pool: starting a process takes longer than these trainings."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, task: Task) -> Future[list[Measured]]:
        future = Future[list[Measured]]()
        future.set_result(task())
        return future


def run(monkeypatch: pytest.MonkeyPatch, work: Path, json_path: Path) -> dict[str, Any]:
    arguments = ["digits", "--work", str(work), "--json", str(json_path), "--quick", "--only"]
    monkeypatch.setattr(sys, "argv", ["results.py", *arguments, *TITLES])
    monkeypatch.setattr(results, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setitem(PROTOCOLS, "quick", replace(PROTOCOLS["quick"], steps=60))
    results.main()
    found: dict[str, Any] = json.loads(json_path.read_text())
    del found["date"]  # a test may run past midnight
    return found


def test_a_resumed_run_equals_an_undisturbed_one_and_real_images_teach(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run(monkeypatch, work, tmp_path / "first.json")
    printed = capsys.readouterr().out
    # As a run that was killed after two trainings and one set would leave its folder.
    journal = work / "runs" / "ipc1-seed0" / "runs.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    next((work / "sets").iterdir()).unlink()
    assert run(monkeypatch, work, tmp_path / "second.json") == undisturbed
    assert capsys.readouterr().out.endswith(printed[printed.index("\ndm, 1 per class") :])
    assert len(undisturbed["test"]) == len(TITLES) * 2 * 2
    treatment = undisturbed["rows"][0]["treatment"]
    real = [
        one["accuracy"]
        for one in undisturbed["test"]
        if one["source"] == REAL and one["treatment"] == treatment
    ]
    assert sum(real) / len(real) > 30  # chance is 10


def test_every_row_is_measured_with_every_seed_on_each_source() -> None:
    sets = row_sets(ROWS, ["dm", "dc"], (1, 10), 5)
    sources = [2 if row.source == DISTILLED else 1 for row in ROWS]
    assert len(sets) == len(set(sets)) == sum(sources) * 2 * 5


def test_the_sweep_measures_a_treatment_once() -> None:
    points = list(sweep())
    sets = sweep_sets(points, ["dm"], (10,))
    assert len(sets) == len(set(sets))
    assert {one.treatment for one in sets} == {point.treatment for point in points}


def test_the_best_treatment_has_the_highest_mean_over_methods_and_images_per_class() -> None:
    low, high = (Treatment(recipe=matched(step)) for step in (20, 40))
    larger = Treatment(recipe=matched(40), copies=3)
    accuracies = {(low, 1): 60.0, (low, 10): 60.0, (high, 1): 50.0, (high, 10): 75.0}
    accuracies |= {(larger, 1): 90.0, (larger, 10): 90.0}
    measured = [
        Measured(
            training_set=TrainingSet(source="dm", per_class=count, treatment=treatment, seed=0),
            images=10 * count,
            architecture="mlp",
            accuracy=accuracy,
        )
        for (treatment, count), accuracy in accuracies.items()
    ]
    assert best(measured) == high


def test_the_network_of_the_distillation_is_one_of_those_trained() -> None:
    assert CONVNET in results.ARCHITECTURES
    assert CONVNET not in results.SWEEP_ARCHITECTURES
