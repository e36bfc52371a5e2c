"""Networks of an open session as jobs: each runs what a recovery runs for one batch of images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.bench.recovery import distilled_batch
from diver_trt.bench.timing import Job
from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.method.noise import sample_noise
from diver_trt.method.schedule import Schedule
from diver_trt.pixels import Pixels, to_network
from diver_trt.recipe import Recipe
from diver_trt.runtime.conditions import class_conditions
from diver_trt.runtime.engine import (
    Conditions,
    Denoiser,
    Engine,
    Latents,
    Session,
    copy_checked,
)
from diver_trt.runtime.stepping import SteppedDenoiser


@dataclass(frozen=True, slots=True)
class Work:
    """One batch of images, the same for whatever is measured.

    Attributes:
        images: Distilled images, each [H, W, 3] uint8 of the model's size.
        labels: The model's class of each.
        latents: Latents to decode and to denoise, [n, c, h, w] float32, standard normal.
        schedule: The model's process under the recipe.
    """

    images: tuple[Pixels, ...]
    labels: tuple[int, ...]
    latents: Latents
    schedule: Schedule

    @property
    def pixels(self) -> NDArray[np.float32]:
        """The images as the encoder reads them, [n, 3, H, W] float32."""
        return np.stack([to_network(image) for image in self.images])


def work_for(bundle: Bundle, batch: int, recipe: Recipe) -> Work:
    """Return a batch of distilled images as work, with noise of its own for latents."""
    images, labels = distilled_batch(bundle, batch)
    latents = [sample_noise(0, f"bench/{i}", bundle.latent_shape) for i in range(batch)]
    schedule = Schedule(bundle.process, recipe, bundle.layout)
    return Work(images, labels, np.stack(latents), schedule)


class OpenNetwork(Protocol):
    """One network, open on one contestant."""

    runs: int
    """How often the network runs in one job."""
    run_size: int
    """Size of its dynamic axis in one run."""
    ahead: bool
    """Whether it is a denoiser that computes ahead, so that a job is all steps of a batch."""

    def __call__(self) -> float:
        """Run the job once and return its seconds."""


class StackJob:
    """The encoder or the decoder over a batch, in as many runs as its size takes.

    Args:
        engine: The open network.
        source: Its input, and the values of the whole batch, [n, …] float32.
        output: Its output.
    """

    ahead = False

    def __init__(
        self, engine: Engine, source: tuple[str, NDArray[np.float32]], output: str
    ) -> None:
        self._engine, self._output = engine, output
        self._input, values = source
        self.run_size, self.runs = engine.batch, -(-len(values) // engine.batch)
        # np.resize repeats the images until the last run is full.
        filled = np.resize(values, (self.runs * engine.batch, *values.shape[1:]))
        self._parts = np.split(filled, self.runs)

    def __call__(self) -> float:
        """Run the whole batch."""
        started = time.perf_counter()
        for part in self._parts:
            self._engine.write(self._input, part)
            self._engine.run()
            self._engine.read(self._output)
        return time.perf_counter() - started


class ConditionerJob:
    """The conditions of every step, for as many classes as there are images in a batch."""

    ahead = False

    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine, self._labels, self._times = engine, work.labels, work.schedule.times
        self.run_size = engine.batch
        self.runs = len(work.labels) * -(-len(self._times) // engine.batch)

    def __call__(self) -> float:
        """Compute the conditions of each class."""
        started = time.perf_counter()
        for label in self._labels:
            class_conditions(self._engine, self._times, label)
        return time.perf_counter() - started


class DenoiserJob:
    """One step of a batch; where a run computes ahead, the mean of all its steps.

    Args:
        denoiser: The open denoiser.
        batch: Images per batch that it was opened for.
        work: The batch, at most as many.
        conditions: Conditions of every step by label, null included.
        null: The label of the null class.
    """

    runs = 1

    def __init__(
        self,
        denoiser: Denoiser,
        batch: int,
        work: Work,
        conditions: dict[int, Conditions],
        null: int,
    ) -> None:
        self._denoiser, self.run_size = denoiser, batch
        # Recorded here, because closing a denoiser frees its CUDA graph.
        self.ahead = denoiser.ahead
        self._latents = np.resize(work.latents, (batch, *work.latents.shape[1:]))
        self._tables = [conditions[label] for label in work.labels]
        self._null = conditions[null]
        self._steps = len(work.schedule.times)
        self._run: Iterator[int] = iter(())
        self._left = 0

    def __call__(self) -> float:
        """Run the next step; after the last one the batch is loaded again, which does not count."""
        if self._left == 0:
            # A recovery loads once for all steps of a batch, so this is not part of a step.
            self._denoiser.load(
                self._latents, self._latents, self._latents, self._tables, self._null
            )
            self._run, self._left = self._denoiser.run(), self._steps
        started = time.perf_counter()
        # A step that was computed ahead is done before it is asked for: only the whole run can be
        # timed.
        if not self.ahead:
            next(self._run)
            self._left -= 1
            return time.perf_counter() - started
        for _ in self._run:
            pass
        self._left = 0
        return (time.perf_counter() - started) / self._steps


@contextmanager
def open_network(
    session: Session, name: NetworkName, bundle: Bundle, work: Work
) -> Iterator[OpenNetwork]:
    """Hold one network of a session open, with the work of one batch.

    Raises:
        BundleError: If the network's files have changed since the export.
        EngineError: If the engine cannot run it here.
    """
    if name != "denoiser":
        with closing(session.open(name)) as engine:
            if name == "encoder":
                yield StackJob(engine, ("image", work.pixels), "latent")
            elif name == "decoder":
                yield StackJob(engine, ("latent", work.latents), "image")
            else:
                yield ConditionerJob(engine, work)
        return
    with closing(session.open("conditioner")) as conditioner:
        labels = {*work.labels, bundle.null_label}
        conditions = {
            label: class_conditions(conditioner, work.schedule.times, label) for label in labels
        }
    with closing(session.open_denoiser(work.schedule.table, len(work.schedule.times))) as denoiser:
        yield DenoiserJob(denoiser, session.batch, work, conditions, bundle.null_label)


class _Idle:
    """An engine that takes inputs as any other and does nothing with them."""

    def __init__(self, bundle: Bundle, batch: int) -> None:
        network = bundle.networks["denoiser"]
        self.batch = batch
        self._buffers = {
            spec.name: spec.allocate(batch) for spec in (*network.inputs, *network.outputs)
        }

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        copy_checked(name, values, self._buffers[name])

    def run(self) -> None:
        pass

    def read(self, name: str) -> NDArray[np.generic]:
        return self._buffers[name]

    def close(self) -> None:
        pass


def python_overhead(bundle: Bundle, work: Work) -> Job:
    """Return a job that is the loop over steps around an engine that does nothing, per step.

    What it takes is this package's own: copies of conditions and coefficients, and checks.

    Args:
        bundle: The model, for the shapes.
        work: The batch.
    """
    pair, batch = bundle.condition_pair, len(work.labels)
    table = np.zeros((len(work.schedule.times), bundle.condition_width), pair.dtype)
    conditions = dict.fromkeys({*work.labels, bundle.null_label}, table)
    steps = len(work.schedule.times)
    loop = SteppedDenoiser(_Idle(bundle, batch), pair, work.schedule.table, steps)
    return DenoiserJob(loop, batch, work, conditions, bundle.null_label)
