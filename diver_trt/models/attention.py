"""Multi-head self-attention in few nodes: query, key and value are one product.

`torch.nn.functional.scaled_dot_product_attention` would export its key's shape as eleven nodes, and
diffusers' layers have three products where one does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diver_trt.models.denoiser import in_dtype


class SelfAttention(nn.Module):
    """tokens [n, T, D] => tokens [n, T, D], both in `dtype` (arXiv 1706.03762, section 3.2).

    Args:
        attention: diffusers' `Attention`, of which the three projections and the output's are read.
        dtype: What it computes in.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.query_key_value = in_dtype(_fused_projection(attention), dtype)
        self.output = in_dtype(attention.to_out[0], dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what every token takes from all tokens of its image."""
        # [n, T, 3 D] => three times [n, heads, T, d]
        heads = self.query_key_value(tokens).reshape(*tokens.shape[:2], 3 * self.heads, -1)
        query, key, value = torch.split(heads.transpose(1, 2), self.heads, dim=1)
        # The weights of the query already hold the division by sqrt(d).
        attended = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
        projected: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return projected


def _fused_projection(attention: Any) -> nn.Linear:
    """Return query, key and value as one layer, [.., D] => [.., 3 D], the query over sqrt(d)."""
    layers: list[nn.Linear] = [attention.to_q, attention.to_k, attention.to_v]
    # The division is done once, in the weights, and before they are rounded to float16.
    scales = (layers[0].out_features // attention.heads) ** -0.5, 1.0, 1.0
    outputs = sum(layer.out_features for layer in layers)
    biased = layers[0].bias is not None
    # On "meta" nothing is allocated or drawn for the weights that are set below.
    fused = nn.Linear(layers[0].in_features, outputs, bias=biased, device="meta")
    for name in ("weight", "bias") if biased else ("weight",):
        parts = [getattr(layer, name) * scale for layer, scale in zip(layers, scales, strict=True)]
        setattr(fused, name, nn.Parameter(torch.cat(parts), requires_grad=False))
    return fused
