"""The small training sets that results.py compares, made once and kept in a work folder.

A set is a source (real or distilled images, one or ten per class) and what it went through:
nothing, the VAE alone, or a recovery. Its file is named by a hash of everything that it follows
from, so a set that would come out otherwise today is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

from diver_trt import Bundle, Recipe, Recoverer
from diver_trt.distilled.copies import copy_key
from examples.dataset import NUM_CLASSES, Dataset, Split, to_images, to_tensor

REAL = "real"
BATCH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What a source goes through.

    Attributes:
        recipe: The recovery's settings, or None for none.
        vae: Whether it is encoded and decoded, without a recovery.
        copies: How often every image is recovered, each time with noise of its own; all are kept.
    """

    recipe: Recipe | None = None
    vae: bool = False
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """A training set to make.

    Attributes:
        source: `"real"`, or the method that distilled it.
        per_class: Images per class of the source.
        treatment: What the source goes through.
        seed: Seed of the noise, and of the choice of real images.
    """

    source: str
    per_class: int
    treatment: Treatment
    seed: int


class Workshop:
    """Makes training sets of a data set with its bundle.

    Args:
        dataset: The data set.
        train: Its real images to train on.
        bundle: The exported model.
        folder: Where the sets are kept.
    """

    def __init__(self, dataset: Dataset, train: Split, bundle: Bundle, folder: Path) -> None:
        self._dataset, self._train, self._bundle, self._folder = dataset, train, bundle, folder
        self._vae = AutoencoderKL.from_pretrained(
            dataset.model / "vae", low_cpu_mem_usage=False
        ).eval()

    def make(self, sets: Iterable[TrainingSet]) -> Iterator[tuple[TrainingSet, Split]]:
        """Yield every set with its images, from the folder where it is there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for wanted in sets:
            source = self._source(wanted)
            path = self._folder / f"{self._digest(wanted, source)}.npz"
            if not path.exists():
                write(self._treated(source, wanted), path)
            yield wanted, read(path)

    def _source(self, wanted: TrainingSet) -> Split:
        if wanted.source == REAL:
            return random_real(self._train, wanted.per_class, wanted.seed)
        return read_images(self._dataset.distilled(wanted.source, wanted.per_class))

    def _digest(self, wanted: TrainingSet, source: Split) -> str:
        treatment = wanted.treatment
        recovered = treatment.recipe is not None
        record = {
            "source": hashlib.sha256(source.images.tobytes()).hexdigest(),
            "labels": source.labels.tolist(),
            "treatment": asdict(treatment),
            "bundle": self._bundle.sha256 if recovered or treatment.vae else None,
            "seed": wanted.seed if recovered else None,
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]

    def _treated(self, source: Split, wanted: TrainingSet) -> Split:
        treatment = wanted.treatment
        if treatment.vae:
            return Split(through_vae(self._vae, source.images), source.labels)
        if treatment.recipe is None:
            return source
        with Recoverer(self._bundle, treatment.recipe, engine="onnx", batch=BATCH) as recoverer:
            return recovered_copies(recoverer, source, treatment.copies, wanted.seed)


def random_real(train: Split, per_class: int, seed: int) -> Split:
    """Return real images chosen at random, class by class."""
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(train.labels == label), per_class, replace=False)
        for label in range(NUM_CLASSES)
    ]
    return train.at(np.concatenate(chosen))


def read_images(folder: Path) -> Split:
    """Return the images of class folders, class by class."""
    paths = [
        path
        for label in range(NUM_CLASSES)
        for path in sorted((folder / str(label)).glob("*.png"), key=lambda path: int(path.stem))
    ]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return Split(images, np.array([int(path.parent.name) for path in paths], np.int64))


@torch.no_grad()
def through_vae(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return to_images(vae.decode(vae.encode(to_tensor(images)).latent_dist.mean).sample)


def recovered_copies(recoverer: Recoverer, source: Split, copies: int, seed: int) -> Split:
    """Return every image recovered `copies` times, as `diver-trt recover --copies` does."""
    sizes = np.bincount(source.labels)
    numbers = np.concatenate([np.arange(size) for size in sizes])
    images, labels = [], []
    for copy in range(copies):
        keys = [
            copy_key(label, number, copy, sizes[label])
            for label, number in zip(source.labels, numbers, strict=True)
        ]
        for sample in recoverer(source.images, source.labels.tolist(), seed=seed, keys=keys):
            images.append(sample.image)
            labels.append(sample.label)
    return Split(np.stack(images), np.array(labels, np.int64))


def write(split: Split, path: Path) -> None:
    """Write a set so that an interrupted run leaves nothing that looks finished."""
    # Two processes may make the same set.
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, images=split.images, labels=split.labels)
    unfinished.replace(path)


def read(path: Path) -> Split:
    with np.load(path) as stored:
        return Split(stored["images"], stored["labels"])
