"""Networks of Hugging Face `transformers` as plain modules from images to logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

MOMENTUM = 0.1
"""Weight of the current batch in batch normalisation's running statistics, torch's default."""


class Logits(nn.Module):
    """A classifier of `transformers`: [n, 3, side, side] float32 => logits [n, classes]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            _initialise(network)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def _initialise(network: nn.Module) -> None:
    """Draw the weights of a network with batch normalisation as torchvision does."""
    # transformers 5.24 draws EfficientNet's batch normalisation weights around 0 instead of 1, and
    # the signal vanishes. It passes TensorFlow's momentum, 0.997 or 0.99, on to torch, where it is
    # the weight of the new value: the running statistics would be those of the last batch.
    # https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
