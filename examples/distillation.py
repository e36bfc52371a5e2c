"""Two ways to distil a data set from random noise on a ConvNet-3.

DM matches mean embeddings (Zhao & Bilen 2023, arXiv 2110.04181), DC matches gradients (Zhao et al.
2021, arXiv 2006.05929). Distilled images are [10 * per_class, channels, 32, 32], class by class;
a single channel is repeated before a network sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.convnet import ConvNet
from examples.dataset import IMAGE_SIZE, NUM_CLASSES, Augment, Split, to_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a set is distilled, and from what.

    Attributes:
        iterations: Random networks that the images are matched on, one after another.
        real_batch: Real images per class in every match.
        channels: Channels of a distilled image, 3 or 1.
        clipped: Whether the images are kept within [-1, 1], so that what is saved as 8 bits is
            what was optimised.
        matches: DC only: matches per network, `T`; the network learns from the distilled images
            between them.
        net_steps: DC only: steps that it learns for between two matches.
        learning_rate: Of the images.
    """

    iterations: int
    real_batch: int
    channels: int
    clipped: bool
    matches: int = 1
    net_steps: int = 0
    learning_rate: float = 1.0


class DistilledImages:
    """Images that begin as noise and are moved by gradient descent."""

    def __init__(self, per_class: int, budget: Budget, generator: torch.Generator) -> None:
        self.labels = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
        self.pixels = torch.randn(
            len(self.labels), budget.channels, IMAGE_SIZE, IMAGE_SIZE, generator=generator
        ).requires_grad_()
        self._clipped = budget.clipped
        self._clip()
        self._optimizer = torch.optim.SGD([self.pixels], lr=budget.learning_rate, momentum=0.5)

    @property
    def images(self) -> Tensor:  # => [n, 3, 32, 32]
        return self.pixels.expand(-1, 3, -1, -1)

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=[self.pixels])  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._clip()

    @torch.no_grad()
    def _clip(self) -> None:
        if self._clipped:
            self.pixels.clamp_(-1, 1)


class RealBatches:
    """Draws real images class by class."""

    def __init__(self, real: Split, size: int, generator: torch.Generator) -> None:
        self._images, self._size, self._generator = real.images, size, generator
        self._members = [np.flatnonzero(real.labels == label) for label in range(NUM_CLASSES)]

    def draw(self, label: int) -> Tensor:  # => [size, 3, 32, 32]
        members = self._members[label]
        index = torch.randint(len(members), (self._size,), generator=self._generator)
        return to_tensor(self._images[members[index.numpy()]])


def match_distributions(
    real: Split, augment: Augment, budget: Budget, *, per_class: int, seed: int
) -> Tensor:
    """Return images whose mean embedding per class is that of real images (DM, Eq. 4).

    Each iteration draws a new random ConvNet and a new batch of real images.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    distilled = DistilledImages(per_class, budget, generator)
    batches = RealBatches(real, budget.real_batch, generator)
    for iteration in range(budget.iterations):
        net = ConvNet().requires_grad_(False)
        batch = torch.cat([batches.draw(label) for label in range(NUM_CLASSES)])
        target = class_means(net.embed(augment(batch, generator)))
        found = class_means(net.embed(augment(distilled.images, generator)))
        loss = (found - target).square().sum()
        distilled.step(loss)
        if iteration % 100 == 99:
            report(per_class, iteration, budget, loss)
    return distilled.images.detach()


def class_means(embeddings: Tensor) -> Tensor:  # [10 * n, d] => [10, d]
    return embeddings.view(NUM_CLASSES, -1, embeddings.shape[1]).mean(1)


def match_gradients(
    real: Split, augment: Augment, budget: Budget, *, per_class: int, seed: int
) -> Tensor:
    """Return images that give a network the gradient that real images give it (DC, Algorithm 1).

    Every class is matched on its own, and one step is taken on the sum over classes, as in the
    authors' code. Nothing is augmented, as in the paper.
    """
    del augment
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    distilled = DistilledImages(per_class, budget, generator)
    batches = RealBatches(real, budget.real_batch, generator)
    for iteration in range(budget.iterations):
        net = ConvNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5)
        for match in range(budget.matches):
            loss = torch.zeros(())
            for label in range(NUM_CLASSES):
                images = distilled.images[distilled.labels == label]
                target = gradients(net, batches.draw(label), label)
                found = gradients(net, images, label, differentiable=True)
                loss = loss + distance(found, target)
            distilled.step(loss)
            if match < budget.matches - 1:
                learn(net, optimizer, distilled, budget.net_steps)
        if iteration % 10 == 9:
            report(per_class, iteration, budget, loss)
    return distilled.images.detach()


def gradients(
    net: ConvNet, images: Tensor, label: int, *, differentiable: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradient of a class's cross-entropy with respect to every parameter."""
    loss = F.cross_entropy(net(images), torch.full((len(images),), label))
    return torch.autograd.grad(loss, list(net.parameters()), create_graph=differentiable)


def distance(found: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """Return the sum over layers and output nodes of 1 - cosine similarity (DC, Eq. 7 and 8)."""
    # Biases and the normalisation's parameters are vectors and are left out, as in the authors'
    # code: https://github.com/VICO-UoE/DatasetCondensation/blob/master/utils.py
    pairs = [(a, b) for a, b in zip(found, target, strict=True) if a.dim() > 1]
    return torch.stack(
        [(1 - F.cosine_similarity(a.flatten(1), b.flatten(1))).sum() for a, b in pairs]
    ).sum()


def learn(
    net: ConvNet, optimizer: torch.optim.Optimizer, distilled: DistilledImages, steps: int
) -> None:
    """Train the network on the distilled images as they are, `steps` times."""
    images = distilled.images.detach()
    for _ in range(steps):
        loss = F.cross_entropy(net(images), distilled.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def report(per_class: int, iteration: int, budget: Budget, loss: Tensor) -> None:
    print(
        f"{per_class} per class, {iteration + 1}/{budget.iterations}: loss {loss.item():.2f}",
        flush=True,
    )
