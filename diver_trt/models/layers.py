"""Layers of a model, adapted: in another type, with float32 sums, or joined to one product."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def in_dtype(layer: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Return the layer itself if it has this type already, else a copy that has."""
    if all(parameter.dtype == dtype for parameter in layer.parameters()):
        return layer
    # Module.to changes a module in place, and the model's own float32 layer is still needed.
    return copy.deepcopy(layer).to(dtype)


class InFloat32(nn.Module):
    """A normalisation that computes in float32 and returns its input's type.

    Its sums overflow float16.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.float())
        return normalised.to(x.dtype)


def joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return layers that read the same input as one product, their outputs after each other."""
    one = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    one.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    one.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return one
