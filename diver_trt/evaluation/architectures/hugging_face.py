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
        for module in network.modules():
            # transformers passes TensorFlow's 0.997 and 0.99 on to torch, where momentum is the
            # weight of the new value: the statistics would be those of the last batch.
            # https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits
