"""`recover_job` yields events, and its caller may stop at any of them without losing an image."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt.errors import EngineError, OutputError
from diver_trt.recovered.background import Background
from diver_trt.recovered.events import (
    BatchStarts,
    Event,
    Finished,
    Opened,
    StepDone,
)
from diver_trt.recovered.job import Job
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.second_try import SecondTry
from diver_trt.runtime.opener import ModelOpener
from diver_trt.runtime.recoverer import Recoverer
from tests.recovered.job_runs import (
    BATCH,
    QUICK,
    events_of,
    opened,
    opener_of,
    run_until,
)

pytestmark = pytest.mark.slow


def test_every_event_comes_in_its_place(job: Job, tmp_path: Path) -> None:
    first, *events = events_of(job, tmp_path / "out")
    batch = [BatchStarts] + [StepDone] * QUICK.start_step
    assert [type(event) for event in events] == [*batch * 3, Finished]
    assert isinstance(first, Opened)
    assert (first.engine, first.batch, first.images, first.batches) == ("onnx", 4, 10, 3)
    assert first.steps_per_batch == QUICK.start_step
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert events_of(job, tmp_path / "out") == [Finished(None)]


@pytest.mark.parametrize(
    ("kind", "number", "kept"),
    [
        (Opened, 1, 0),
        (BatchStarts, 1, 0),
        (BatchStarts, 2, 4),
        (BatchStarts, 3, 8),
        (StepDone, QUICK.start_step + 2, 4),
    ],
)
def test_a_caller_may_stop_at_any_event(
    job: Job, tmp_path: Path, kind: type[Event], number: int, kept: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    events_of(job, whole)
    assert run_until(job, out, kind, number) == kept
    assert out.exists() == bool(kept)
    events_of(job, out)
    assert different(whole, out) == []


def test_a_caller_may_stop_between_chunks_of_phases(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    events_of(job, whole)
    monkeypatch.setattr("diver_trt.runtime.session.Opened.resident", False)
    monkeypatch.setattr("diver_trt.runtime.chunks.CHUNK_IMAGES", BATCH)
    with opened(job, out) as writer:
        with closing(recover_job(job, writer, opener_of(job))) as events:
            starts = (event for event in events if isinstance(event, BatchStarts))
            done = [len(writer.done) for _ in islice(starts, 3)]
        # The second batch is read before the first one's chunk is known to be full. The images of
        # that chunk are written while the events go on, and all of them when it is closed.
        assert done[:2] == [0, 0]
        assert len(writer.done) == BATCH
    events_of(job, out)
    assert different(whole, out) == []


def test_the_second_model_is_freed_although_the_last_image_cannot_be_written(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[SecondTry] = []
    close = Background.close

    def failing(self: Background) -> None:
        close(self)
        raise OutputError("the disk is full")

    monkeypatch.setattr(Background, "close", failing)
    monkeypatch.setattr(SecondTry, "close", lambda self: closed.append(self))
    with pytest.raises(OutputError, match="the disk is full"):
        events_of(job, tmp_path / "out")
    assert len(closed) == 1


def test_closing_frees_the_model(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Recoverer] = []
    open_model = ModelOpener.open

    def opening(self: ModelOpener) -> Recoverer:
        models.append(open_model(self))
        return models[-1]

    monkeypatch.setattr(ModelOpener, "open", opening)
    with opened(job, tmp_path / "out") as writer:
        events = recover_job(job, writer, opener_of(job))
        while not isinstance(next(events), StepDone):
            pass
        events.close()
        with pytest.raises(EngineError, match="the recoverer is closed"):
            models[0].encode([])
