"""The inputs of a comparison: distilled images by default, random ones on request."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.counted import counted
from diver_trt.digits import default_bundle, default_images, find_source
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from diver_trt.method.noise import sample_noise
from diver_trt.pixels import Pixels, square

_CONVERTED_WITH = ("--normalisation", "--format", "--collage")
"""Options that errors about tensors name, and that `convert` has."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The images that every engine is given.

    Attributes:
        origin: Where they come from, in words.
        keys: The images' names; an image's noise follows from its name and the seed.
        labels: The model's class of each image.
        images: The images, each [H, W, 3] uint8, of the model's size.
        noise: The noise of every image, [n, c, h, w] float32.
        notes: What a user should know about the dataset.
    """

    origin: str
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    images: tuple[Pixels, ...]
    noise: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


def distilled_inputs(
    bundle: Bundle,
    count: int,
    *,
    folder: Path | None = None,
    classes: str | None = None,
    seed: int = 0,
) -> Inputs:
    """Read up to `count` distilled images: the first of every class, then the second, and so on.

    Args:
        bundle: The model under test.
        count: Largest number of images.
        folder: A distilled dataset in any format of `read_dataset`; None means the ten distilled
            digits that come with the package. Their classes are the digits model's; any other model
            gets them as mere pictures, under labels that it has.
        classes: Which classes these are (`diver_trt.distilled.class_map.load_class_map`).
        seed: Seed of the noise.

    Raises:
        DatasetError: If the folder cannot be read with these options.
    """
    root = find_source(folder) if folder else default_images()
    options = ReadOptions(classes=classes if folder else None)
    try:
        # The digits' labels are classes of the digits model, whatever model is compared.
        dataset = read_dataset(root, bundle if folder else Bundle.open(default_bundle()), options)
    except DatasetError as cause:
        if not any(option in str(cause) for option in _CONVERTED_WITH):
            raise
        raise DatasetError(
            f"{str(cause).removesuffix('.')}. compare has no such option: give it to `diver-trt "
            f"convert {shlex.quote(str(root))} NEW.npz`, and compare with --images NEW.npz."
        ) from cause
    by_class = defaultdict(list)
    for sample in dataset.samples:
        by_class[sample.index].append(sample)
    # Class by class, `count` images might all be of the first class.
    rounds = zip_longest(*(by_class[index] for index in sorted(by_class)))
    chosen = [sample for one in rounds for sample in one if sample is not None][:count]
    return Inputs(
        origin=counted(len(chosen), "distilled image")
        + (f" of {root.resolve().name}" if folder else ", the digits that come with diver-trt"),
        keys=tuple(sample.key for sample in chosen),
        # Modulo: the digits serve models with fewer than ten classes too.
        labels=tuple(sample.label % bundle.num_classes for sample in chosen),
        images=tuple(
            square(dataset.images.read(sample.position), bundle.image_size) for sample in chosen
        ),
        noise=_noise(seed, [sample.key for sample in chosen], bundle),
        notes=dataset.origin.notes,
    )


def random_pixels(bundle: Bundle, count: int, *, seed: int = 0) -> Inputs:
    """Return images of uniformly random pixels, under random labels."""
    generator = np.random.default_rng(seed % 2**64)  # it takes no negative seeds
    size = bundle.image_size
    keys = [f"random/{number:05d}" for number in range(count)]
    return Inputs(
        origin=f"{counted(count, 'image')} of random pixels",
        keys=tuple(keys),
        labels=tuple(int(label) for label in generator.integers(0, bundle.num_classes, count)),
        images=tuple(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)),
        noise=_noise(seed, keys, bundle),
    )


def _noise(seed: int, keys: list[str], bundle: Bundle) -> NDArray[np.float32]:
    return np.stack([sample_noise(seed, key, bundle.latent_shape) for key in keys])
