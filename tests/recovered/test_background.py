"""Images are written beside the engine.

They are written in order, none after a failure, and all that were ready when a run stops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt.errors import OutputError
from diver_trt.pixels import Pixels
from diver_trt.recovered.background import Background
from diver_trt.recovered.events import BatchStarts, StepDone
from diver_trt.recovered.job import Job
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.writer import DatasetWriter
from tests.recovered.job_runs import events_of, opened, opener_of, run_until


def test_tasks_run_in_order_on_another_thread() -> None:
    background, ran = Background(), list[tuple[int, bool]]()
    main = threading.get_ident()
    for number in range(20):
        background.add(
            partial(lambda value: ran.append((value, threading.get_ident() != main)), number)
        )
    background.wait()
    assert ran == [(number, True) for number in range(20)]
    background.close()


@pytest.mark.parametrize("ask", ["check", "close"])
def test_after_a_task_that_fails_no_other_runs(ask: str) -> None:
    background, ran = Background(), list[int]()
    gate = threading.Event()

    def fails() -> None:
        gate.wait()
        raise OutputError("the disk is full")

    background.add(lambda: ran.append(1))
    background.add(fails)
    background.add(lambda: ran.append(3))
    gate.set()
    with pytest.raises(OutputError, match="the disk is full"):
        background.wait()
        background.check() if ask == "check" else background.close()
    background.check()  # it is raised once
    background.close()
    assert ran == [1]


def test_adding_waits_while_too_many_tasks_are_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diver_trt.recovered.background.MOST_WAITING", 2)
    background, gate, happened = Background(), threading.Event(), list[str]()
    background.add(gate.wait)
    background.add(lambda: None)

    def add() -> None:
        background.add(lambda: None)
        happened.append("added")

    adding = threading.Thread(target=add)
    adding.start()
    adding.join(0.2)  # long enough to be added, were nothing waited for
    happened.append("the first task may end")
    gate.set()
    adding.join()
    background.close()
    assert happened == ["the first task may end", "added"]


Add = Callable[[DatasetWriter, str, Pixels], Path]


def test_the_next_batch_is_denoised_while_an_image_is_written(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write waits for a step of the second batch, which never comes if they alternate."""
    add: Add = DatasetWriter.add
    stepped, steps = threading.Event(), 0

    def adding(self: DatasetWriter, name: str, image: Pixels) -> Path:
        assert stepped.wait(60), "no step while the image was being written"
        return add(self, name, image)

    monkeypatch.setattr(DatasetWriter, "add", adding)
    with opened(job, tmp_path / "out") as writer:
        for event in recover_job(job, writer, opener_of(job)):
            steps += isinstance(event, StepDone)
            if steps > job.recipe.start_step:
                stepped.set()
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_run_that_stops_keeps_the_images_that_were_ready(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    events_of(job, whole)
    add: Add = DatasetWriter.add
    stopped = threading.Event()

    def adding(self: DatasetWriter, name: str, image: Pixels) -> Path:
        stopped.wait(1)
        return add(self, name, image)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add", adding)
        assert run_until(job, out, BatchStarts, 3) == 8
    assert run_until(job, out, StepDone, -1) == 10
    assert different(whole, out) == []


def test_a_write_that_fails_ends_the_run_with_the_journal_whole(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    events_of(job, whole)
    add: Add = DatasetWriter.add
    names: list[str] = []

    def adding(self: DatasetWriter, name: str, image: Pixels) -> Path:
        names.append(name)
        if len(names) == 3:
            raise OutputError(f"{name}: cannot be written (No space left on device)")
        return add(self, name, image)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add", adding)
        with pytest.raises(OutputError, match="No space left on device"):
            run_until(job, out, StepDone, -1)
    assert len(names) == 3
    assert run_until(job, out, StepDone, job.recipe.start_step + 1) == 6
    assert run_until(job, out, StepDone, -1) == 10
    assert different(whole, out) == []
