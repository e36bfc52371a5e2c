"""The ConvNets that DC, DSA, DM and MTT distil with (arXiv 2006.05929, section 4.1).

https://github.com/VICO-UoE/DatasetCondensation/blob/master/networks.py: blocks of a 3 x 3
convolution, instance normalisation, ReLU and 2 x 2 average pooling, then one linear layer.
"""

from __future__ import annotations

from torch import nn

DEPTH_AND_WIDTH = {
    "convnet-small": (3, 32),
    "convnet3": (3, 128),
    "convnet5": (5, 128),
    "convnet6": (6, 128),
}


def build(name: str, classes: int, side: int) -> nn.Module:
    """Build a ConvNet: [n, 3, side, side] float32 => logits [n, classes]."""
    depth, width = DEPTH_AND_WIDTH[name]
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [
            nn.Conv2d(3 if block == 0 else width, width, 3, padding=1),
            # One group per channel is instance normalisation with an affine map.
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    # Every block halves the side, rounding down.
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side >> depth) ** 2, classes))
