"""Protocols: how a network is trained on a small set of images. Torch-free; one entry each.

The lengths, rates and augmentations are those of the code that each line of papers evaluates with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from diver_trt.errors import UsageError, shown

AugmentationName = Literal[
    # Of pixels, Minimax' train.py; of normalised values, DSA; a small turn, scale and shift.
    "resized_crop", "jitter", "lighting", "colour", "crop", "cutout", "flip", "scale", "rotate",
    "affine",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProtocol:
    """How one network is trained and tested.

    Attributes:
        name: The value of `--protocol`.
        title: What it is, for people.
        optimiser: `"sgd"` (with `momentum`) or `"adam"`.
        learning_rate: At the beginning.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        schedule: `"steps"`: the rate is multiplied by `factor` after each fraction of the training
            in `milestones`. `"cosine"`: it falls to 0 along a half cosine.
        milestones: Fractions of the training, 0 to 1.
        factor: What the rate is multiplied by.
        batch: Most images in a batch; an epoch is cut into batches of equal size.
        epochs: Pairs of images per class and epochs: the first pair that is not exceeded counts.
            Not used where `steps` is given.
        epochs_beyond: Epochs where there are more images per class than any pair has.
        many_classes: Factor of the epochs from 100 classes on.
        steps: Steps of the optimiser instead of epochs, or None.
        normalisation: Statistics of the networks' input (`diver_trt.distilled.normalisation`).
        augmentations: Names of `diver_trt.evaluation.augmentation.AUGMENTATIONS`.
        one_of: Whether one of them, drawn for each batch, is applied, instead of all in order.
        of_pixels: Whether they are applied to pixels from 0 to 1, instead of normalised values.
        cutmix: Whether a rectangle of each image is replaced by one of another (CutMix).
        temperature: Of the softmax, for labels of a teacher.
    """

    name: str
    title: str
    optimiser: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float
    schedule: Literal["steps", "cosine"]
    milestones: tuple[float, ...] = ()
    factor: float = 1.0
    batch: int
    epochs: tuple[tuple[int, int], ...] = ()
    epochs_beyond: int = 0
    many_classes: float = 1.0
    steps: int | None = None
    normalisation: str
    augmentations: tuple[AugmentationName, ...]
    one_of: bool = False
    of_pixels: bool = False
    cutmix: bool = False
    temperature: float = 20.0

    def without_flip(self) -> EvaluationProtocol:
        """Return the protocol without mirror images, for digits, letters and the like."""
        kept = tuple(name for name in self.augmentations if name != "flip")
        return replace(self, augmentations=kept)

    def batches(self, images: int) -> int:
        """Return how many batches an epoch has."""
        return -(-images // self.batch)

    def total_steps(self, images: int, classes: int) -> int:
        """Return how many steps of the optimiser a training has.

        Args:
            images: Images of the training set.
            classes: Its classes.
        """
        if self.steps is not None:
            return self.steps
        per_class = images / classes
        epochs = next((n for most, n in self.epochs if per_class <= most), self.epochs_beyond)
        if classes >= 100:
            epochs = int(epochs * self.many_classes)
        return epochs * self.batches(images)

    def rate(self, done: float) -> float:
        """Return the learning rate after a fraction of the training, 0 to 1."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        passed = sum(done >= milestone for milestone in self.milestones)
        return self.learning_rate * self.factor**passed


MINIMAX = EvaluationProtocol(
    name="minimax",
    title="as IDC, Minimax, IGD and MGD3 evaluate",
    # https://github.com/vimar-gu/MinimaxDiffusion, train.py and argument.py, as IDC's before it.
    optimiser="sgd",
    learning_rate=0.01,
    weight_decay=5e-4,
    schedule="steps",
    milestones=(2 / 3, 5 / 6),
    factor=0.2,
    batch=64,
    # argument.py, ipc_epoch
    epochs=((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500)),
    epochs_beyond=300,
    # Not as there from 100 classes on: docs/evaluating.md, "Departures".
    many_classes=2 / 3,
    normalisation="imagenet",
    # In the order of data.py, transform_imagenet
    augmentations=("resized_crop", "flip", "jitter", "lighting"),
    of_pixels=True,
    # For every batch, with Beta(1, 1): mix_p and beta of argument.py.
    cutmix=True,
)
DSA = EvaluationProtocol(
    name="dsa",
    title="DSA, as DC with DSA, DM and MTT evaluate",
    # https://github.com/VICO-UoE/DatasetCondensation, utils.py, evaluate_synset. MTT replaces the
    # rate by one that it learned, which its files do not hold.
    optimiser="sgd",
    learning_rate=0.01,
    weight_decay=5e-4,
    schedule="steps",
    milestones=(0.5,),
    factor=0.1,
    batch=256,
    epochs_beyond=1000,
    normalisation="imagenet",
    augmentations=("colour", "crop", "cutout", "flip", "scale", "rotate"),
    one_of=True,
)
QUICK = EvaluationProtocol(
    name="quick",
    title="diver-trt's own, for small images on a CPU",
    # Not of a paper. Short, since a set of 100 images is learned by heart in fewer steps, and Adam,
    # since one rate has to suit every architecture.
    optimiser="adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    schedule="cosine",
    batch=32,
    steps=300,
    normalisation="minus1to1",
    augmentations=("affine",),
)

PROTOCOLS: dict[str, EvaluationProtocol] = {
    protocol.name: protocol for protocol in (MINIMAX, DSA, QUICK)
}


def find_protocol(name: str) -> EvaluationProtocol:
    """Return the protocol of a name.

    Raises:
        UsageError: If no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise UsageError(
            f"--protocol {shown(name)}: no such protocol; expected one of {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]
