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


def joined(layers: Sequence[nn.Linear], scales: Sequence[float] | None = None) -> nn.Linear:
    """Return layers that read the same input as one product, their outputs after each other.

    Args:
        layers: The layers, all with a bias or all without.
        scales: A factor of each layer's outputs, multiplied into its weights; None is 1.
    """
    outputs = sum(layer.out_features for layer in layers)
    biased = layers[0].bias is not None
    # On "meta" nothing is allocated or drawn for the weights that are set below.
    one = nn.Linear(layers[0].in_features, outputs, bias=biased, device="meta")
    factors = scales or [1.0] * len(layers)
    for name in ("weight", "bias") if biased else ("weight",):
        parts = [getattr(layer, name) * scale for layer, scale in zip(layers, factors, strict=True)]
        setattr(one, name, nn.Parameter(torch.cat(parts), requires_grad=False))
    return one
