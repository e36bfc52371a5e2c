"""The multilayer perceptron that Dataset Condensation transfers to (arXiv 2006.05929, section 4.1).

https://github.com/VICO-UoE/DatasetCondensation/blob/master/networks.py: two hidden layers of 128.
"""

from __future__ import annotations

from torch import nn

WIDTH = 128


def build(_: str, classes: int, side: int) -> nn.Module:
    """Build the perceptron: [n, 3, side, side] float32 => logits [n, classes]."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * side**2, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )
