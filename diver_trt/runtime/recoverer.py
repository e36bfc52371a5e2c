"""DIVER on a device: encode, condition, denoise, decode, one batch of images at a time.

The engines hold every buffer; between two denoising steps the runtime copies one row of two tables
and does no arithmetic. Latents are [n, c, h, w] float32, images uint8 [H, W, 3].
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from diver_trt.bundle import Bundle
from diver_trt.contract import HALF_PRECISIONS
from diver_trt.errors import BundleError, EngineError, RecipeError, UsageError, shown
from diver_trt.method.noise import checked_seed
from diver_trt.method.schedule import Schedule
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.runtime.chunks import chunks
from diver_trt.runtime.conditions import ClassConditions
from diver_trt.runtime.engine import Latents, Placement, copy_checked, within_host_memory
from diver_trt.runtime.events import BatchStarts, RecoveredSample, StepDone
from diver_trt.runtime.lifetime import in_use, watch
from diver_trt.runtime.networks import open_networks
from diver_trt.runtime.samples import Sample, checked_label, checked_samples
from diver_trt.runtime.vae import decoded, encoded

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class Recoverer:
    """A bundle and a recipe, ready to recover images.

    Several threads may use one Recoverer: they take turns, one batch (with networks loaded phase by
    phase, one chunk of batches) at a time, and each gets the images that it would get alone. A
    process that was forked from the one that opened it may not use it.

    Example:
        >>> with Recoverer(Bundle.open("engines/digits"), Recipe(), batch=8) as recoverer:
        ...     for sample in recoverer(images, labels, seed=0):
        ...         save(sample.key, sample.image)

    Args:
        bundle: The exported model.
        recipe: The method's settings; the paper's by default.
        engine: A name of `diver_trt.runtime.backends.BACKENDS`, or `"auto"`.
        batch: Images per batch, 1 or more. None leaves it to TensorRT's memory plan; other engines
            take at most eight, or in ONNX Runtime one for each core of the CPU if there are more,
            evenly filled: ten `images` are two batches of five. It changes speed and memory; on the
            CPU never the result.
        memory_budget: Limit on engine memory in bytes, for TensorRT.
        images: How many images there will be, if that is known; helps to choose the batch.
        trust: Whether TensorRT engines that were not built on this machine may run; they are
            remembered, so once is enough.

    Attributes:
        engine: Name of the engine that was opened.
        batch: Images per batch.
        memory: The memory plan that is followed, for TensorRT.
        resident: Whether all networks stay loaded; else one at a time, for a chunk of batches.

    Raises:
        BundleError: If `bundle` is not a Bundle, or its files have changed since the export.
        EngineError: If the engine cannot run here.
        DeviceMemoryError: If the device or the host has no room for such a batch.
        RecipeError: If `recipe` is not a Recipe, or does not fit the model.
        UsageError: If there is no such engine, or a number is out of range.
    """

    def __init__(
        self,
        bundle: Bundle,
        recipe: Recipe | None = None,
        *,
        engine: str = "auto",
        batch: int | None = None,
        memory_budget: int | None = None,
        images: int | None = None,
        trust: bool = False,
    ) -> None:
        if not isinstance(bundle, Bundle):
            raise BundleError(
                f"bundle is {shown(repr(bundle))} ({type(bundle).__name__}); expected a Bundle, "
                "from Bundle.open"
            )
        if recipe is not None and not isinstance(recipe, Recipe):
            raise RecipeError(
                f"recipe is {shown(repr(recipe))} ({type(recipe).__name__}); expected a Recipe, "
                "such as PRESETS['paper']"
            )
        self.bundle, self.recipe = bundle, recipe or Recipe()
        if doubt := self.recipe.doubt:
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        # Reentrant: a chunk holds the lock, and encodes and denoises through the public methods.
        self._lock, self._process, self._turn = RLock(), os.getpid(), object()
        # Before the engines: a recipe that does not fit the model is refused before anything loads.
        self._schedule = Schedule(bundle.process, self.recipe, bundle.layout)
        # numpy raises MemoryError where an engine raises DeviceMemoryError; callers retry both.
        with in_use(), within_host_memory():
            placement = Placement(
                engine=engine, batch=batch, memory_budget=memory_budget, images=images, trust=trust
            )
            self._networks, self.memory = open_networks(bundle, self._schedule, placement)
            watch(self._networks)
            self.engine: str = self._networks.engine
            self.batch: int = self._networks.batch
            self.resident: bool = self._networks.resident
            try:
                # Engines take full batches only. In one that is not full, the last slots keep
                # older values, and nobody reads their images.
                self._start, self._anchor, self._noise = np.zeros(
                    (3, self.batch, *bundle.latent_shape), np.float32
                )
            except MemoryError:
                self.close()
                raise
        self._conditions = ClassConditions(self._networks, self._schedule.times, bundle.null_label)

    def __enter__(self) -> Recoverer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines. In a forked process nothing is freed: they are the parent's."""
        if os.getpid() == self._process:
            with self._lock, in_use():
                self._networks.close()

    def __call__(
        self,
        images: Iterable[Pixels | Image],
        labels: Iterable[int],
        *,
        seed: int = 0,
        keys: Iterable[str] | None = None,
        noise: Iterable[Latents] | None = None,
        keep_bad: bool = False,
        on_step: Callable[[], None] = lambda: None,
    ) -> Iterator[RecoveredSample]:
        """Recover images, batch by batch, in the order they come.

        Args:
            images: Distilled images, uint8 [n, H, W, 3] or any iterable of [H, W, 3] or of PIL
                still images without transparency, whose EXIF orientation is applied; other sizes
                than the model's are resized. What is kept of them is copied, so an iterable may
                reuse its buffer.
            labels: The model's class of each image, [n] whole numbers.
            seed: Seed of the noise, from -2^63 to 2^63 - 1.
            keys: Name of each sample, which its noise follows from, each once; by default its class
                and its number within the class, from 0 in every call.
            noise: The noise itself, float32 [n, c, h, w], instead of the seed's.
            keep_bad: Whether an image that comes out with NaN or infinite values, or all in one
                colour, is yielded with its `problem` instead of ending the recovery.
            on_step: Called after every denoising step of every batch, for a progress bar.

        Yields:
            The recovered samples.

        Raises:
            DatasetError: If an image, label, key or noise does not fit the model, or their numbers
                differ.
            UsageError: If the seed is not such a number.
            EngineError: If the engine fails, an image comes out with NaN or infinite values, or
                this process was forked from the one that opened the engine.
            DeviceMemoryError: If such a batch does not fit in memory, on the device or on the host.
        """
        samples = checked_samples(
            self.bundle, images, labels, seed=checked_seed(seed), keys=keys, noise=noise
        )
        return self._recovered(samples, keep_bad, on_step)

    def events(
        self, samples: Iterable[Sample]
    ) -> Iterator[BatchStarts | StepDone | RecoveredSample]:
        """Recover samples as a call does with `keep_bad`, and yield what happens in between.

        A caller may stop at any of them; steps that an engine has run ahead are then lost. The
        caller is the only user of the Recoverer until then.

        Args:
            samples: The samples, each pulled when its batch starts.

        Raises:
            EngineError: If the engine fails, or another caller used the denoiser in between.
            DeviceMemoryError: If such a batch does not fit in memory, on the device or on the host.
        """
        with within_host_memory():
            for batches in chunks(iter(samples), self.batch, resident=self.resident):
                if isinstance(batches, BatchStarts):
                    yield batches
                else:
                    yield from _in_order(batches, (yield from self._recover_chunk(batches)))

    def _recovered(
        self, samples: Iterator[Sample], keep_bad: bool, on_step: Callable[[], None]
    ) -> Iterator[RecoveredSample]:
        with within_host_memory():
            for batches in chunks(samples, self.batch, resident=self.resident):
                if isinstance(batches, BatchStarts):
                    continue
                # The lock is never held at a yield: a generator that is left half-way would keep
                # it.
                with self._locked():
                    decoded = _returned(self._recover_chunk(batches), on_step)
                for result in _in_order(batches, decoded):
                    if result.problem and not keep_bad:
                        raise EngineError(f"{result.key}: {result.problem}")
                    yield result

    def _recover_chunk(
        self, batches: list[list[Sample]]
    ) -> Generator[StepDone, None, list[list[tuple[Pixels, str | None]]]]:
        """Return the image of every sample, and what is wrong with it."""
        # Phase by phase over all batches, since each phase may load its network and free another.
        # Encode: images [n, S, S, 3] uint8 => anchors [n, c, h, w] float32
        anchors = [self.encode([sample.image for sample in batch]) for batch in batches]
        # Condition: labels => conditions [K, M] for each class
        with self._taking_turns():
            self._conditions.compute({sample.label for batch in batches for sample in batch})
        # Denoise: anchors and noise => final latents, each [n, c, h, w] float32
        finals = []
        for batch, anchor in zip(batches, anchors, strict=True):
            noise = np.stack([sample.noise for sample in batch])
            start = self._schedule.start(anchor, noise)
            steps = self.denoise(start, anchor, noise, [sample.label for sample in batch])
            turn = self._turn
            for _ in steps:
                yield StepDone()
            with self._taking_turns():
                # Another thread may have loaded its own batch since the last step.
                self._require_turn(turn)
                finals.append(self.latent[: len(batch)].copy())
        with self._taking_turns():
            # Decode, all at once while the lock is held: latents => images [S, S, 3] uint8
            return [list(self._decoded(final)) for final in finals]

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        """Use the engines during the block, and let no other thread do so."""
        with self._locked(), in_use():
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other thread use the engines during the block.

        Raises:
            EngineError: If this process was forked from the one that opened them: their threads are
                not in it.
        """
        if os.getpid() != self._process:
            raise EngineError(
                f"the recoverer was opened in process {self._process} and this one, "
                f"{os.getpid()}, was forked from it; "
                "open a Recoverer in each process"
            )
        with self._lock:
            yield

    @property
    def steps_per_batch(self) -> int:
        """How often `on_step` is called for each batch."""
        return self.recipe.start_step

    @property
    def latent(self) -> Latents:
        """The denoiser's current latent, [batch, c, h, w] float32; the next step overwrites it."""
        return self._networks.denoiser().latent()

    def encode(self, images: Sequence[Pixels]) -> Latents:
        """Return z_0 of one or more images, [n, c, h, w] float32."""
        with self._taking_turns():
            return encoded(self._networks.open("encoder"), images, self.bundle.image_size)

    def denoise(
        self, start: Latents, anchor: Latents, noise: Latents, labels: Sequence[int]
    ) -> Iterator[int]:
        """Run steps `start_step` down to 1 on at most `batch` latents, yielding each number.

        Args:
            start: The latent to start from, [n, c, h, w] float32.
            anchor: z_0 of the distilled images, [n, c, h, w] float32.
            noise: The noise that the start was made with, [n, c, h, w] float32.
            labels: The model's class of each, [n].

        Raises:
            UsageError: If the numbers of these differ, or are more than a batch.
            DatasetError: If a label is not a class of the model.
            EngineError: If an array has another type or shape, or another batch has used the
                denoiser since the last step, from this thread or another.
        """
        if not len(start) == len(anchor) == len(noise) == len(labels) <= self.batch:
            raise UsageError(
                f"got {len(start)} starts, {len(anchor)} anchors, {len(noise)} noises and "
                f"{len(labels)} labels; expected the same number of each, at most {self.batch}"
            )
        labels = [
            checked_label(label, i, self.bundle.num_classes) for i, label in enumerate(labels)
        ]
        with self._taking_turns():
            run = self._load_batch(start, anchor, noise, labels)
            self._turn = turn = object()  # a token: no other batch has the same object
        return self._steps(run, turn)

    def _steps(self, run: Iterator[int], turn: object) -> Iterator[int]:
        """Run the steps of a loaded batch, yielding each one's number."""
        # Locked step by step, since the lock is never held at a yield.
        while True:
            with self._taking_turns():
                self._require_turn(turn)
                k = next(run, None)
            if k is None:
                return
            yield k

    def _require_turn(self, turn: object) -> None:
        if self._turn is not turn:
            raise EngineError(
                "another batch has used the denoiser between two steps of this one; finish one "
                "before the next"
            )

    def _load_batch(
        self, start: Latents, anchor: Latents, noise: Latents, labels: Sequence[int]
    ) -> Iterator[int]:
        """Load a batch into the denoiser and return its run."""
        tables, null = self._conditions.of(labels)
        for name, values, buffer in (
            ("start", start, self._start),
            ("anchor", anchor, self._anchor),
            ("noise", noise, self._noise),
        ):
            copy_checked(name, values, buffer[: len(labels)])
        denoiser = self._networks.denoiser()
        denoiser.load(self._start, self._anchor, self._noise, tables, null)
        return denoiser.run()

    def decode(self, latents: Latents) -> list[Pixels]:
        """Return the images of latents [n, c, h, w] float32, each [H, W, 3] uint8.

        Raises:
            EngineError: If an image holds NaN or infinite values, or is all in one colour.
        """
        with self._taking_turns():
            decoded = list(self._decoded(latents))
        for _, problem in decoded:
            if problem:
                raise EngineError(problem)
        return [image for image, _ in decoded]

    def _decoded(self, latents: Latents) -> Iterator[tuple[Pixels, str | None]]:
        """Yield images and why they are unusable."""
        half = self.bundle.precision in HALF_PRECISIONS
        hint = "; the model may overflow in fp16, use its fp32 bundle" if half else ""
        return decoded(self._networks.open("decoder"), latents, hint)


def _in_order(
    batches: list[list[Sample]], decoded: list[list[tuple[Pixels, str | None]]]
) -> Iterator[RecoveredSample]:
    for batch, images in zip(batches, decoded, strict=True):
        for sample, (image, problem) in zip(batch, images, strict=True):
            yield RecoveredSample(sample.key, sample.label, image, problem)


def _returned(steps: Generator[StepDone, None, T], on_step: Callable[[], None]) -> T:
    """Run a generator of steps to its end and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        on_step()
