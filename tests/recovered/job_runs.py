"""Running a job: with the digits model, also up to an event, or without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.recovered.events import Event
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.job import Job
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.events import RecoveredSample
from diver_trt.runtime.opener import ModelOpener
from tests.conftest import DISTILLED

QUICK = Recipe().scaled_to(6)
BATCH = 4


def quick_job(
    digits: Bundle, source: Path = DISTILLED.parent / "ipc1", *, skip_bad: bool = False
) -> Job:
    """Return a job of few steps; the source of ten digits has one of each class."""
    dataset = read_dataset(source, digits, ReadOptions(classes="model"))
    checked = list(dataset.images.check())
    return Job(dataset=dataset, checked=checked, bundle=digits, recipe=QUICK, skip_bad=skip_bad)


@contextmanager
def opened(job: Job, output: Path) -> Iterator[DatasetWriter]:
    """Open the output folder of a job."""
    with open_output(output, job.head(), samples=job.entries(), classes=job.classes()) as writer:
        yield writer


def opener_of(job: Job) -> ModelOpener:
    """Return what opens the model of a job, for batches of four."""
    placement = Placement(engine="onnx", batch=BATCH, images=len(job.samples))
    return ModelOpener(job.bundle, job.recipe, placement)


def events_of(job: Job, output: Path) -> list[Event]:
    """Run a job to its end."""
    with opened(job, output) as writer:
        return list(recover_job(job, writer, opener_of(job)))


def run_until(job: Job, output: Path, kind: type[Event], number: int) -> int:
    """Stop a job at an event; return how many images the journal then has."""
    seen = 0
    with opened(job, output) as writer:
        with closing(recover_job(job, writer, opener_of(job))) as events:
            for event in events:
                seen += isinstance(event, kind)
                if seen == number:
                    break
        return len(writer.done)


class _Model:
    """Recovers without an engine: makes an image of each distilled one, or a problem."""

    batch, engine, steps_per_batch, memory = 2, "onnx", 1, None

    def __init__(self, problems: Sequence[str | None], make: Callable[[Pixels], Pixels]) -> None:
        self._problems, self._make = iter(problems), make

    def open(self) -> Any:
        return nullcontext(self)

    def events(self, samples: Any) -> Iterator[RecoveredSample]:
        for sample in samples:
            image = self._make(sample.image)
            yield RecoveredSample(sample.key, sample.label, image, next(self._problems))


def copy_job(
    job: Job,
    output: Path,
    problems: Sequence[str | None],
    make: Callable[[Pixels], Pixels] = lambda image: image,
) -> list[Event]:
    """Run a job to its end with a model that copies.

    Args:
        job: The job.
        output: The output folder.
        problems: Of each image that can be read, why it is unusable, or None.
        make: Returns a recovered image, from the distilled one.
    """
    model: Any = _Model(problems, make)
    with opened(job, output) as writer:
        return list(recover_job(job, writer, model))
