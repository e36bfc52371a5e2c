"""Images are written beside the engine.

They are written in order, none after a failure, and all that were ready when a run stops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt import Bundle, Recipe
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import OutputError
from diver_trt.pixels import Pixels
from diver_trt.recovered.background import Background
from diver_trt.recovered.events import BatchStarts, StepDone
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.job import Job
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.opener import ModelOpener
from tests.conftest import DISTILLED


def test_tasks_run_in_order_on_another_thread() -> None:
    background = Background[tuple[int, bool]]()
    main = threading.get_ident()
    for number in range(20):
        background.add(partial(lambda value: (value, threading.get_ident() != main), number))
    background.wait()
    assert list(background.finished()) == [(number, True) for number in range(20)]
    assert list(background.finished()) == []
    background.close()


@pytest.mark.parametrize("ask", ["finished", "close"])
def test_after_a_task_that_fails_no_other_runs(ask: str) -> None:
    background, ran = Background[None](), []
    gate = threading.Event()

    def fails() -> None:
        gate.wait()
        raise OutputError("the disk is full")

    background.add(lambda: ran.append(1))
    background.add(fails)
    background.add(lambda: ran.append(3))
    gate.set()
    with pytest.raises(OutputError, match="the disk is full"):
        if ask == "finished":
            background.wait()
            list(background.finished())
        else:
            background.close()
    background.close() if ask == "finished" else None
    assert ran == [1]


def test_adding_waits_while_too_many_tasks_are_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diver_trt.recovered.background.MOST_WAITING", 2)
    background, gate, happened = Background[bool](), threading.Event(), list[str]()
    background.add(gate.wait)
    background.add(lambda: True)

    def add() -> None:
        background.add(lambda: True)
        happened.append("added")

    adding = threading.Thread(target=add)
    adding.start()
    adding.join(0.2)  # long enough to be added, were nothing waited for
    happened.append("the first task may end")
    gate.set()
    adding.join()
    background.close()
    assert happened == ["the first task may end", "added"]


@pytest.fixture
def job(digits: Bundle) -> Job:
    """Ten digits, one of each class."""
    dataset = read_dataset(DISTILLED.parent / "ipc1", digits, ReadOptions())
    recipe = Recipe().scaled_to(6)
    return Job(dataset=dataset, checked=list(dataset.images.check()), bundle=digits, recipe=recipe)


Add = Callable[[DatasetWriter, str, Pixels], Path]


def recover_until(job: Job, output: Path, kind: type, number: int) -> int:
    """Stop at an event; return how many images the journal then has."""
    placement = Placement(engine="onnx", batch=4, images=len(job.samples))
    with open_output(output, job.head(), samples=job.entries(), classes=job.classes()) as writer:
        opener, seen = ModelOpener(job.bundle, job.recipe, placement), 0
        with closing(recover_job(job, writer, opener)) as events:
            for event in events:
                seen += isinstance(event, kind)
                if seen == number:
                    break
        return len(writer.done)


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
    placement = Placement(engine="onnx", batch=4, images=len(job.samples))
    output = tmp_path / "out"
    with open_output(output, job.head(), samples=job.entries(), classes=job.classes()) as writer:
        for event in recover_job(job, writer, ModelOpener(job.bundle, job.recipe, placement)):
            steps += isinstance(event, StepDone)
            if steps > job.recipe.start_step:
                stepped.set()
    assert (output / "manifest.json").exists()


def test_a_run_that_stops_keeps_the_images_that_were_ready(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    recover_until(job, whole, StepDone, -1)
    add: Add = DatasetWriter.add
    stopped = threading.Event()

    def adding(self: DatasetWriter, name: str, image: Pixels) -> Path:
        stopped.wait(1)
        return add(self, name, image)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetWriter, "add", adding)
        assert recover_until(job, out, BatchStarts, 3) == 8
    assert recover_until(job, out, StepDone, -1) == 10
    assert different(whole, out) == []


def test_a_write_that_fails_ends_the_run_with_the_journal_whole(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    recover_until(job, whole, StepDone, -1)
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
            recover_until(job, out, StepDone, -1)
    assert len(names) == 3
    assert recover_until(job, out, StepDone, job.recipe.start_step + 1) == 6
    assert recover_until(job, out, StepDone, -1) == 10
    assert different(whole, out) == []
