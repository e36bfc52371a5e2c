"""The three-layer ConvNet of dataset distillation, and how it is trained and tested.

The network is the one that DC, DM and MTT distil with: three blocks of 3 x 3 convolution, instance
normalisation, ReLU and 2 x 2 average pooling, then one linear layer (Gidaris & Komodakis 2018, as
used by Zhao et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.dataset import IMAGE_SIZE, NUM_CLASSES, Augment, Split, to_tensor


class ConvNet(nn.Module):
    """ConvNet-3: images [n, 3, 32, 32] in [-1, 1] => logits [n, 10]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = [3, width, width, width]
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels[i], channels[i + 1], 3, padding=1),
                    nn.GroupNorm(channels[i + 1], channels[i + 1]),
                    nn.ReLU(),
                    nn.AvgPool2d(2),
                )
                for i in range(3)
            )
        )
        self.classifier = nn.Linear(width * (IMAGE_SIZE // 8) ** 2, NUM_CLASSES)

    def embed(self, images: Tensor) -> Tensor:  # [n, 3, 32, 32] => [n, 16 * width]
        embedding: Tensor = self.features(images).flatten(1)
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def train_classifier(
    real: Split, augment: Augment, *, seed: int, steps: int = 600, batch: int = 128
) -> ConvNet:
    """Train a ConvNet-3 on real images that are jittered; return it in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, labels = ConvNet(), torch.from_numpy(real.labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(real), (min(batch, len(real)),), generator=generator)
        logits = net(augment(to_tensor(real.images[index.numpy()]), generator))
        loss = F.cross_entropy(logits, labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, split: Split) -> float:
    """Return the fraction of a split's images whose largest logit is at their class."""
    right = sum(
        int((net(to_tensor(images)).argmax(1).numpy() == labels).sum())
        for images, labels in split.parts(500)
    )
    return right / len(split)
