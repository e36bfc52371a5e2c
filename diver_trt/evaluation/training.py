"""Training one network from scratch on a small set of images, and testing it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.evaluation.architectures import Architecture
from diver_trt.evaluation.augmentation import augment, cut_mix
from diver_trt.evaluation.events import StepDone
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.protocols import EvaluationProtocol
from diver_trt.evaluation.teacher import NORMALISATION as TEACHERS
from diver_trt.evaluation.teacher import Teacher

TEST_BATCH = 256
"""Bounds memory alone: a network in evaluation mode treats each image independently."""
_SEED_LIMIT = 2**62


def device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    architecture: Architecture,
    images: ImageSet,
    protocol: EvaluationProtocol,
    seed: int,
    teacher: Teacher | None = None,
) -> Generator[StepDone, None, tuple[nn.Module, float]]:
    """Train a network; the same arguments give the same network on the same machine.

    Args:
        architecture: What is trained.
        images: The training set.
        protocol: How.
        seed: Of the weights, the order of the images, their augmentation and dropout.
        teacher: What labels the images softly; None trains on their classes.

    Yields:
        `StepDone` after each step.

    Returns:
        The network in eval mode on `device()`, and the loss of the last step.

    Raises:
        UsageError: If the images are too small for the architecture.
    """
    place = device()
    generator = torch.Generator().manual_seed(seed)
    with _seeded(place, seed):
        # Built on the CPU: every device starts from the same weights.
        net = architecture.build(images.classes, images.side).to(place).train()
    optimiser = _optimiser(net, protocol)
    # [n, side, side, 3] => [n, 3, side, side], still uint8: a quarter of the memory of float32.
    pixels = torch.from_numpy(images.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(images.labels)
    steps, loss = protocol.total_steps(len(labels), images.classes), math.nan
    order: list[Tensor] = []
    for step in range(steps):
        if not order:
            shuffled = torch.randperm(len(labels), generator=generator)
            # Equal parts: batch normalisation cannot train on a last batch of one image.
            order = list(shuffled.tensor_split(protocol.batches(len(labels))))
        index = order.pop(0)
        for group in optimiser.param_groups:
            group["lr"] = protocol.rate(step / steps)
        batch = pixels[index].to(place), labels[index].to(place)
        # Dropout draws from torch's global generators, which whoever receives the yields may use.
        with _seeded(place, int(torch.randint(_SEED_LIMIT, (), generator=generator))):
            error = _loss(net, *batch, protocol, generator, teacher)
            optimiser.zero_grad(set_to_none=True)
            error.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if step == steps - 1:
            # Only the last: reading a loss waits for the GPU.
            loss = float(error.detach())
        yield StepDone(step + 1)
    return net.eval(), loss


@torch.no_grad()
def count_correct(net: nn.Module, test: ImageSet, protocol: EvaluationProtocol) -> int:
    """Return how many test images have their largest logit at their class.

    Args:
        net: A network of `train`, in eval mode.
        test: The test set.
        protocol: As in training: it has the normalisation.
    """
    place, correct = device(), 0
    for first in range(0, len(test.labels), TEST_BATCH):
        part = slice(first, first + TEST_BATCH)
        pixels = torch.from_numpy(test.images[part]).to(place).permute(0, 3, 1, 2)
        labels = torch.from_numpy(test.labels[part]).to(place)
        logits = net(_normalised(pixels.float() / 255, protocol.normalisation))
        correct += int((logits.argmax(1) == labels).sum())
    return correct


@contextmanager
def _seeded(place: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators for the block, and make cuDNN deterministic."""
    devices = [torch.cuda.current_device()] if place.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        # benchmark=True would choose algorithms by their time, which differs between runs:
        # https://docs.pytorch.org/docs/stable/notes/randomness.html
        torch.backends.cudnn.flags(
            enabled=True,
            benchmark=False,
            deterministic=True,
            # The default would enable it for the block.
            allow_tf32=torch.backends.cudnn.allow_tf32,
        ),
    ):
        torch.manual_seed(seed)
        yield


def _optimiser(net: nn.Module, protocol: EvaluationProtocol) -> torch.optim.Optimizer:
    rate, decay = protocol.learning_rate, protocol.weight_decay
    if protocol.optimiser == "adam":
        return torch.optim.Adam(net.parameters(), rate, weight_decay=decay)
    return torch.optim.SGD(net.parameters(), rate, protocol.momentum, weight_decay=decay)


def _loss(
    net: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    protocol: EvaluationProtocol,
    generator: torch.Generator,
    teacher: Teacher | None,
) -> Tensor:
    """Return the loss of a batch, [n, 3, side, side] uint8 and [n] int64."""
    images, others, share = _augmented(pixels.float() / 255, protocol, generator), labels, 1.0
    if protocol.cutmix:
        images, order, share = cut_mix(images, generator)
        others = labels[order]
    logits: Tensor = net(images)
    if teacher is None:
        own = F.cross_entropy(logits, labels) * share
        return own + F.cross_entropy(logits, others) * (1 - share)
    # What the network sees, augmented and mixed, in the teacher's normalisation.
    shown = _normalised(_pixels(images, protocol.normalisation), TEACHERS)
    taught = torch.from_numpy(teacher.logits(shown.cpu().numpy())).to(logits)
    # Without the factor temperature squared, as SRe2L trains (arXiv 2306.13092, train_FKD.py).
    heat = protocol.temperature
    return F.kl_div(
        F.log_softmax(logits / heat, 1), F.softmax(taught / heat, 1), reduction="batchmean"
    )


def _augmented(
    images: Tensor, protocol: EvaluationProtocol, generator: torch.Generator
) -> Tensor:  # 0 to 1 => augmented and normalised, [n, 3, H, W]
    if protocol.of_pixels:
        return _normalised(augment(images, protocol, generator), protocol.normalisation)
    return augment(_normalised(images, protocol.normalisation), protocol, generator)


def _statistics(name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    found = find_normalisation(name)
    mean, std = (like.new_tensor(values).view(1, 3, 1, 1) for values in (found.mean, found.std))
    return mean, std


def _normalised(images: Tensor, name: str) -> Tensor:  # 0 to 1 => normalised, [n, 3, H, W]
    mean, std = _statistics(name, images)
    return (images - mean) / std


def _pixels(images: Tensor, name: str) -> Tensor:  # normalised => 0 to 1, [n, 3, H, W]
    mean, std = _statistics(name, images)
    return images * std + mean
