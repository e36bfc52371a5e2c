"""Recovering the images of a job that are not on disk yet; `events` describes what it yields."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from diver_trt.distilled.dataset import Sample
from diver_trt.errors import DatasetError, DeviceMemoryError, EngineError
from diver_trt.files import file_sha256
from diver_trt.method.noise import sample_noise
from diver_trt.pixels import Pixels, square
from diver_trt.recovered.background import Background
from diver_trt.recovered.complete import complete
from diver_trt.recovered.distilled_input import DistilledInput
from diver_trt.recovered.events import Event, Finished, Opened, StepDone
from diver_trt.recovered.job import Job
from diver_trt.recovered.second_try import SecondTry, second_engine
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.runtime.events import RecoveredSample
from diver_trt.runtime.opener import Opener, OpenModel
from diver_trt.runtime.samples import Sample as ModelSample


def recover_job(job: Job, writer: DatasetWriter, opener: Opener) -> Generator[Event, None, None]:
    """Recover the images that are not on disk yet, then write the companion files.

    When memory runs out, on the device or on the host, the batch is halved and the run continues.

    Args:
        job: What is to be recovered.
        writer: The output folder, from `open_output`.
        opener: Opens the model.

    Yields:
        What happens, see `diver_trt.recovered.events`.

    Raises:
        DatasetError: If an image is bad, or has changed or vanished since it was checked, and such
            images are not skipped; or if the input as a whole has vanished.
        OutputError: If a file cannot be written.
        EngineError: If the engine fails, or an image is unusable and bad ones are not skipped.
    """
    run = _Run(job, writer)
    # Once, or again with half the batch each time that memory runs out.
    while run.remaining:
        with opener.open() as recoverer:
            try:
                yield from run.recover(recoverer)
            except DeviceMemoryError as error:
                # Raises if the batch is a single image already.
                opener.halve(error)
    yield Finished(None if writer.finished else complete(job, writer))


class _Run:
    """One run of a job: which samples remain, and what becomes of each."""

    def __init__(self, job: Job, writer: DatasetWriter) -> None:
        self._job, self._writer = job, writer
        self._distilled = DistilledInput(job)
        self._second_try = SecondTry(job, self._distilled)

    @property
    def remaining(self) -> list[Sample]:
        """The samples without a line in the journal."""
        if self._writer.finished:
            return []
        return [sample for sample in self._job.samples if sample.key not in self._writer.done]

    def recover(self, recoverer: OpenModel) -> Iterator[Event]:
        """Recover what remains."""
        unread, taken = deque(self.remaining), dict[str, Sample]()
        yield Opened(
            engine=recoverer.engine,
            batch=recoverer.batch,
            steps_per_batch=recoverer.steps_per_batch,
            images=len(unread),
            memory=recoverer.memory,
        )
        self._background = Background()
        # Closed however the run ends: the background first, which keeps what the engine has
        # finished, and the second try even if that fails.
        with closing(self._second_try), closing(self._background):
            for event in recoverer.events(self._read(unread, taken)):
                self._background.check()
                if isinstance(event, RecoveredSample):
                    self._write(taken.pop(event.key), event, recoverer.engine)
                # After the last sample the recoverer finds out that none is left: not a batch.
                elif isinstance(event, StepDone) or unread or taken:
                    yield event

    def _read(self, unread: deque[Sample], taken: dict[str, Sample]) -> Iterator[ModelSample]:
        """Yield the samples that can be read, moving each from `unread` to `taken`."""
        bundle = self._job.bundle
        while unread:
            sample = unread.popleft()
            try:
                image = self._distilled.read(sample)
            except DatasetError as error:
                if self._distilled.is_gone(sample):
                    raise
                self._skip_unread(sample, error)
                continue
            taken[sample.key] = sample
            # From the key alone, so that batches, shards and resuming never change it.
            noise = sample_noise(self._job.seed, sample.key, bundle.latent_shape)
            # image [H, W, 3] uint8 => [S, S, 3] uint8, the side S that the model takes
            yield ModelSample(sample.key, sample.label, square(image, bundle.image_size), noise)

    def _write(self, sample: Sample, result: RecoveredSample, engine: str) -> None:
        """Write an image while the engine runs the next batch, or skip an unusable one."""
        if result.problem:
            again = self._second_try.recover(sample)
            if again is None or again.problem:
                self._skip_unusable(sample, engine, result.problem)
                return
            result, engine = again, second_engine(self._job.bundle.precision)
        self._background.add(partial(self._write_image, sample, result.image, engine))

    def _write_image(self, sample: Sample, image: Pixels, engine: str) -> None:
        # image [S, S, 3] uint8 => [side, side, 3] uint8, where `--size` asks for another side
        path = self._writer.add(self._job.files[sample.key], square(image, self._job.side))
        self._writer.record(
            {
                **self._job.entry(sample),
                "engine": engine,
                "file": self._job.files[sample.key],
                "sha256": file_sha256(path),
            }
        )

    def _skip_unusable(self, sample: Sample, engine: str, problem: str) -> None:
        if not self._job.skip_bad:
            raise EngineError(f"{sample.key}: {problem}")
        try:
            self._distilled.read(sample)
        except DatasetError as error:
            # The second try in fp32 could not read it, so the model is not to blame.
            self._skip_unread(sample, error)
            return
        # The engine in the entry keeps later runs from retrying what would fail again.
        self._skip({**self._job.entry(sample), "engine": engine}, problem)

    def _skip_unread(self, sample: Sample, error: DatasetError) -> None:
        if not self._job.skip_bad:
            raise error
        # Without an engine in its entry a later run retries it: the file may be readable then.
        self._skip(self._job.entry(sample), self._job.reason(sample, str(error)))

    def _skip(self, entry: dict[str, Any], problem: str) -> None:
        # The journal has one writer at a time.
        self._background.wait()
        self._writer.record({**entry, "problem": problem})
