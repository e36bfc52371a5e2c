"""DIVER on a device: encode, condition, denoise, decode, one batch of images at a time.

The engines hold every buffer; between two denoising steps the runtime copies one row of two tables and does no arithmetic.
Latents are [n, c, h, w] float32, images uint8 [H, W, 3].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import DatasetError, EngineError
from diver_trt.method.inheritance import start_latent
from diver_trt.method.noise import sample_noise
from diver_trt.method.schedule import step_table
from diver_trt.pixels import Pixels, from_network, square, to_network
from diver_trt.recipe import Recipe
from diver_trt.runtime.engine import EngineName, open_engine, resolve_engine
from diver_trt.tensors import describe

T = TypeVar("T")
Latents = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RecoveredSample:
    """One recovered image.

    Attributes:
        key: The sample's name, which its noise follows from: `"00003/00007"` is the eighth image of class 3.
        label: Its class in the model.
        image: Pixels, [H, W, 3] uint8.
    """

    key: str
    label: int
    image: Pixels


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    label: int
    image: Pixels
    noise: Latents


class Recoverer:
    """A bundle and a recipe, ready to recover images.

    Example:
        >>> with Recoverer(Bundle.open("engines/digits"), Recipe(), batch=8) as recoverer:
        ...     for sample in recoverer(images, labels, seed=0):
        ...         save(sample.key, sample.image)

    Args:
        bundle: The exported model.
        recipe: The method's settings; the paper's by default.
        engine: `"auto"`, `"onnx"` or `"onnx-cuda"`.
        batch: Images per batch, 1 or more. It changes speed and memory, never the result.

    Raises:
        BundleError: A network's files have changed since the export.
        EngineError: The engine cannot run here.
        RecipeError: The recipe does not fit the model.
    """

    def __init__(self, bundle: Bundle, recipe: Recipe | None = None, *, engine: str = "onnx", batch: int = 8) -> None:
        if batch < 1:
            raise EngineError(f"batch is {batch}; expected 1 or more")
        self.bundle, self.recipe, self.batch = bundle, recipe or Recipe(), batch
        self._table = step_table(bundle.noise_schedule, self.recipe, bundle.layout).astype(np.float32)
        self._timesteps = bundle.noise_schedule.timesteps(self.recipe.steps)[: self.recipe.start_step]
        self._abar = bundle.noise_schedule.respaced(self.recipe.steps)
        self.engine: EngineName = resolve_engine(engine, bundle)
        self._encoder = open_engine(self.engine, bundle, "encoder", batch)
        self._conditioner = open_engine(self.engine, bundle, "conditioner", len(self._timesteps))
        self._denoiser = open_engine(self.engine, bundle, "denoiser", batch, carry=("next_latent", "latent"))
        self._decoder = open_engine(self.engine, bundle, "decoder", batch)
        self._images = bundle.networks["encoder"].inputs[0].allocate(batch)
        self._latents = bundle.networks["decoder"].inputs[0].allocate(batch)
        self._pair = bundle.networks["denoiser"].inputs[2].allocate(batch)
        self._modulations: dict[int, NDArray[np.generic]] = {}

    def __enter__(self) -> Recoverer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines."""
        for engine in (self._encoder, self._conditioner, self._denoiser, self._decoder):
            engine.close()

    def __call__(
        self,
        images: Iterable[Pixels],
        labels: Iterable[int],
        *,
        seed: int = 0,
        keys: Iterable[str] | None = None,
        noise: Iterable[Latents] | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Iterator[RecoveredSample]:
        """Recover images, batch by batch, in the order they come.

        Args:
            images: Distilled images, uint8 [n, H, W, 3] or any iterable of [H, W, 3]; other sizes than the model's are resized.
            labels: The model's class of each image, [n].
            seed: Seed of the noise.
            keys: Name of each sample, which its noise follows from; by default its class and its number within the class.
            noise: The noise itself, float32 [n, c, h, w], instead of the seed's.
            on_step: Called after every denoising step of every batch, for a progress bar.

        Yields:
            The recovered samples.

        Raises:
            DatasetError: An image or label does not fit the model, or their numbers differ.
            EngineError: The engine fails, or an image comes out with values that are no numbers.
        """
        samples = self._samples(images, labels, seed, keys, noise)
        while chunk := list(islice(samples, self.batch)):
            anchor = self.encode([sample.image for sample in chunk])
            start = start_latent(anchor, np.stack([sample.noise for sample in chunk]), self._abar, self.recipe)
            for _ in self.denoise(start, anchor, [sample.label for sample in chunk]):
                on_step()
            for sample, image in zip(chunk, self.decode(self.latent[: len(chunk)]), strict=True):
                yield RecoveredSample(sample.key, sample.label, image)

    @property
    def steps_per_batch(self) -> int:
        """How often `on_step` is called for each batch."""
        return self.recipe.start_step

    @property
    def latent(self) -> Latents:
        """The denoiser's current latent, [batch, c, h, w] float32; the next step overwrites it."""
        return self._denoiser.read("next_latent").astype(np.float32, copy=False)

    def encode(self, images: Sequence[Pixels]) -> Latents:
        """Return z_0 of at most `batch` images, [n, c, h, w] float32."""
        for slot, image in enumerate(images):
            self._images[slot] = to_network(square(image, self.bundle.image_size))
        self._encoder.write("image", self._images)
        self._encoder.run()
        return self._encoder.read("latent")[: len(images)].astype(np.float32)

    def denoise(self, start: Latents, anchor: Latents, labels: Sequence[int]) -> Iterator[int]:
        """Run the steps from `start_step` down to 1 on at most `batch` latents, yielding each step's number when it is done.

        Args:
            start: The latent to start from, [n, c, h, w] float32.
            anchor: z_0 of the distilled images, [n, c, h, w] float32.
            labels: The model's class of each, [n].
        """
        tables = self._condition(labels)
        null = self._modulations[self.bundle.null_label]
        for name, values in (("latent", start), ("anchor", anchor)):
            self._latents[: len(values)] = values
            self._denoiser.write(name, self._latents)
        for k in range(self.recipe.start_step, 0, -1):
            for slot, table in enumerate(tables):
                self._pair[0, slot] = table[k - 1]
            self._pair[1] = null[k - 1]
            self._denoiser.write("modulation", self._pair)
            self._denoiser.write("coefficients", self._table[k - 1])
            self._denoiser.run()
            yield k

    def decode(self, latents: Latents) -> list[Pixels]:
        """Return the images of at most `batch` latents, each [H, W, 3] uint8.

        Raises:
            EngineError: An image holds values that are no numbers.
        """
        self._latents[: len(latents)] = latents
        self._decoder.write("latent", self._latents)
        self._decoder.run()
        images = self._decoder.read("image")[: len(latents)].astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            hint = "; the model overflows in fp16, use its fp32 bundle" if self.bundle.precision == "fp16" else ""
            raise EngineError(f"the decoded image holds values that are no numbers{hint}")
        return [from_network(image) for image in images]

    def _condition(self, labels: Sequence[int]) -> list[NDArray[np.generic]]:
        """Return each label's modulations of all steps, [start_step, M]; only this batch's classes and the null class are kept."""
        wanted = {*labels, self.bundle.null_label}
        self._modulations = {label: table for label, table in self._modulations.items() if label in wanted}
        for label in sorted(wanted - self._modulations.keys()):
            self._conditioner.write("timestep", self._timesteps)
            self._conditioner.write("label", np.full_like(self._timesteps, label))
            self._conditioner.run()
            self._modulations[label] = self._conditioner.read("modulation").copy()
        return [self._modulations[label] for label in labels]

    def _samples(
        self,
        images: Iterable[Pixels],
        labels: Iterable[int],
        seed: int,
        keys: Iterable[str] | None,
        noise: Iterable[Latents] | None,
    ) -> Iterator[_Sample]:
        keys = None if keys is None else iter(keys)
        noise = None if noise is None else iter(noise)
        shape, seen, missing = self.bundle.latent_shape, Counter[int](), object()
        pairs = (int(label) for label in labels)
        for number, image in enumerate(images):
            label = _next(pairs, "labels", number)
            if not 0 <= label < self.bundle.num_classes:
                raise DatasetError(f"image {number} has label {label}; the model has classes 0 to {self.bundle.num_classes - 1}")
            key = f"{label:05d}/{seen[label]:05d}" if keys is None else _next(keys, "keys", number)
            own = sample_noise(seed, key, shape) if noise is None else np.asarray(_next(noise, "noise", number))
            if own.shape != shape or own.dtype != np.float32:
                raise DatasetError(f"noise of image {number}: got {describe(own)}, expected float32{list(shape)}")
            seen[label] += 1
            yield _Sample(key, label, image, own)
        if next(pairs, missing) is not missing:
            raise DatasetError(f"there are {sum(seen.values())} images but more labels; expected one label per image")


def _next(values: Iterator[T], name: str, number: int) -> T:
    for value in values:
        return value
    raise DatasetError(f"there are more than {number} images but only {number} {name}; expected one per image")
