"""`recover_job` yields events, and its caller may stop at any of them without losing an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.crash import different
from diver_trt import Bundle, Recipe
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DeviceMemoryError, EngineError, OutputError
from diver_trt.recovered.background import Background
from diver_trt.recovered.events import (
    BatchStarts,
    Event,
    Finished,
    ImageDone,
    Opened,
    Skipped,
    StepDone,
)
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.job import Job
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.second_try import SecondTry
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.runtime.backends.onnx import OnnxEngine
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.opener import ModelOpener
from diver_trt.runtime.recoverer import Recoverer
from tests.conftest import DISTILLED

pytestmark = pytest.mark.slow

QUICK = Recipe().scaled_to(6)
BATCH = 4


@pytest.fixture
def job(digits: Bundle) -> Job:
    """Ten digits, one of each class."""
    dataset = read_dataset(DISTILLED.parent / "ipc1", digits, ReadOptions())
    return Job(dataset=dataset, checked=list(dataset.images.check()), bundle=digits, recipe=QUICK)


@contextmanager
def opened(job: Job, output: Path) -> Iterator[tuple[DatasetWriter, ModelOpener]]:
    placement = Placement(engine="onnx", batch=BATCH, images=len(job.samples))
    with open_output(output, job.head(), samples=job.entries(), classes=job.classes()) as writer:
        yield writer, ModelOpener(job.bundle, job.recipe, placement)


def events_of(job: Job, output: Path) -> list[Event]:
    with opened(job, output) as (writer, opener):
        return list(recover_job(job, writer, opener))


def test_every_event_comes_in_its_place(job: Job, tmp_path: Path) -> None:
    events = events_of(job, tmp_path / "out")
    batch = [BatchStarts] + [StepDone] * QUICK.start_step
    kinds = [type(event) for event in events]
    assert [kind for kind in kinds if kind is not ImageDone] == [Opened, *batch * 3, Finished]
    # An image is written while the next batch is denoised: after its own batch, before the end.
    starts = [number for number, kind in enumerate(kinds) if kind is BatchStarts]
    assert len(starts) == 3
    assert all(kinds[:start].count(ImageDone) <= 4 * i for i, start in enumerate(starts))
    first = events[0]
    assert isinstance(first, Opened)
    assert (first.engine, first.batch, first.images, first.batches) == ("onnx", 4, 10, 3)
    assert first.steps_per_batch == QUICK.start_step
    done = [event for event in events if isinstance(event, ImageDone)]
    assert [event.sample for event in done] == list(job.samples)
    assert all(event.path.is_file() for event in done)
    assert events[-1] == Finished(tmp_path / "out" / "manifest.json")
    assert events_of(job, tmp_path / "out") == [events[-1]]


def test_an_image_is_on_disk_and_in_the_journal_when_its_event_comes(
    job: Job, tmp_path: Path
) -> None:
    with opened(job, tmp_path / "out") as (writer, opener):
        for event in recover_job(job, writer, opener):
            if isinstance(event, ImageDone):
                assert writer.entry(event.sample.key)["engine"] == event.engine
                with Image.open(event.path) as image:
                    assert image.size == (32, 32)


@pytest.mark.parametrize(
    ("kind", "number", "kept"),
    [
        (Opened, 1, 0),
        (BatchStarts, 1, 0),
        (BatchStarts, 2, 4),
        (BatchStarts, 3, 8),
        (StepDone, QUICK.start_step + 2, 4),
        (ImageDone, 4, 4),
    ],
)
def test_a_caller_may_stop_at_any_event(
    job: Job, tmp_path: Path, kind: type[Event], number: int, kept: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    events_of(job, whole)
    seen = 0
    with opened(job, out) as (writer, opener):
        with closing(recover_job(job, writer, opener)) as events:
            for event in events:
                seen += isinstance(event, kind)
                if seen == number:
                    break
        assert len(writer.done) == kept
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
    with opened(job, out) as (writer, opener):
        with closing(recover_job(job, writer, opener)) as events:
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

    def failing(self: Background[ImageDone]) -> None:
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
    with opened(job, tmp_path / "out") as (writer, opener):
        events = recover_job(job, writer, opener)
        while not isinstance(next(events), StepDone):
            pass
        events.close()
        with pytest.raises(EngineError, match="the recoverer is closed"):
            models[0].encode([])


def test_left_out_images_come_with_the_reason_that_the_manifest_gives(
    job: Job, tmp_path: Path
) -> None:
    for sample in job.samples[:3]:
        folder = tmp_path / "in" / str(sample.index)
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (sample.index, 80, 200)).save(folder / "0.png")
    (tmp_path / "in" / "1" / "0.png").write_bytes(b"not an image")
    dataset = read_dataset(tmp_path / "in", job.bundle, ReadOptions(classes="model"))
    bad = Job(
        dataset=dataset,
        checked=list(dataset.images.check()),
        bundle=job.bundle,
        recipe=QUICK,
        skip_bad=True,
    )
    events = events_of(bad, tmp_path / "out")
    (skipped,) = [event for event in events if isinstance(event, Skipped)]
    assert skipped == Skipped(bad.samples[1], "not an image, or a damaged one")
    assert len([event for event in events if isinstance(event, ImageDone)]) == 2


@pytest.mark.filterwarnings("ignore:out of memory:RuntimeWarning")
def test_the_model_is_opened_again_when_memory_runs_out(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxEngine.run

    def running(self: OnnxEngine) -> None:
        if self._name == "denoiser" and self.batch > 2:
            raise DeviceMemoryError("out of memory: a gigabyte failed")
        run(self)

    monkeypatch.setattr(OnnxEngine, "run", running)
    events = events_of(job, tmp_path / "out")
    assert [event.batch for event in events if isinstance(event, Opened)] == [4, 2]
    assert len([event for event in events if isinstance(event, ImageDone)]) == 10
