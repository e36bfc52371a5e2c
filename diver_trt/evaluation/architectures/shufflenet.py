"""ShuffleNetV2 (arXiv 1807.11164, table 5 and figure 3 c and d).

Written here, since no library that installs beside a CPU build of torch has it: torchvision must
match the build of torch, and `transformers` has no ShuffleNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = {
    "shufflenet-small": (24, 48, 96, 192, 512),
    "shufflenetv2": (24, 116, 232, 464, 1024),
}
"""Channels of the first convolution, of stages 2 to 4, and of the last convolution.

The small one has the channels of x0.5, and half as many in the last convolution.
"""
REPEATS = {"shufflenet-small": (2, 2, 2), "shufflenetv2": (4, 8, 4)}


def build(name: str, classes: int, _: int) -> nn.Module:
    """Build a ShuffleNetV2.

    `shufflenet-small` starts with stride 1 and without pooling, so that 32 px end as 4 x 4 values.
    """
    small = name == "shufflenet-small"
    first, *stages, last = CHANNELS[name]
    layers: list[nn.Module] = [_convolution(3, first, 3, 1 if small else 2)]
    if not small:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = first
    for outputs, repeats in zip(stages, REPEATS[name], strict=True):
        layers.append(Unit(inputs, outputs, stride=2))
        layers += [Unit(outputs, outputs, stride=1) for _ in range(repeats - 1)]
        inputs = outputs
    layers += [_convolution(inputs, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, classes))


class Unit(nn.Module):
    """One unit: [n, i, H, W] => [n, o, H / stride, W / stride].

    With stride 1 one half of the channels passes unchanged (figure 3 c); with stride 2 both halves
    are made of all channels (figure 3 d).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        own = inputs if stride == 2 else half
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(_depthwise(own, 2), _convolution(own, half, 1))
        self.branch = nn.Sequential(
            _convolution(own, half, 1), _depthwise(half, stride), _convolution(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, its channels shuffled between both halves."""
        kept, changed = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        halves = torch.stack([self.shortcut(kept), self.branch(changed)], dim=2)
        # [n, o / 2, 2, H, W] flattened: the channels of both halves alternate.
        return halves.flatten(1, 2)


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _depthwise(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        # Without a ReLU (figure 3).
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    )
