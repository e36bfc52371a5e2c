"""What a data set of the examples is: 32-pixel images of ten classes, their splits and a jitter.

Arrays are NHWC uint8; tensors are NCHW float32 in [-1, 1], and -1 is the background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGE_SIZE = 32
NUM_CLASSES = 10
HERE = Path(__file__).parent

_MODULES = {"digits": "examples.digits.handwritten", "fashion": "examples.fashion.fashion"}
DATASETS = tuple(_MODULES)

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Split:
    """Images, [n, 32, 32, 3] uint8, and their classes, [n] int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: NDArray[np.int64]) -> Split:
        return Split(self.images[index], self.labels[index])

    def parts(self, size: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield self.images[part], self.labels[part]


@dataclass(frozen=True, slots=True)
class Splits:
    """Images to train on, to choose settings with, and to report."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set of the examples.

    Attributes:
        name: Its folder in `examples`.
        class_names: The classes' names, in the order of their indices.
        load: Reads its splits.
        augment: Jitters every image, [n, 3, 32, 32], as another picture of the same thing.
        vae_steps: Steps that the example's VAE was trained for.
        dit_steps: Steps that its DiT was trained for.
        dit_variants: Copies of every image whose latents the DiT was trained on; all but the first
            are jittered.
        methods: The methods it was distilled with, and where in its folder their images are.
    """

    name: str
    class_names: tuple[str, ...]
    load: Callable[[], Splits]
    augment: Augment
    vae_steps: int
    dit_steps: int
    dit_variants: int
    methods: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def model(self) -> Path:
        return self.folder / f"dit-{self.name}"

    def distilled(self, method: str, per_class: int) -> Path:
        return self.folder / self.methods[method] / f"ipc{per_class}"


def load_dataset(name: str) -> Dataset:
    dataset: Dataset = import_module(_MODULES[name]).DATASET
    return dataset


def to_tensor(
    images: NDArray[np.uint8],
) -> Tensor:  # [n, H, W, 3] uint8 => [n, 3, H, W] float32 in [-1, 1]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(
    tensor: Tensor,
) -> NDArray[np.uint8]:  # [n, 3, H, W] float32 in [-1, 1] => [n, H, W, 3] uint8
    pixels = ((tensor.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
