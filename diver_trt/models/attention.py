"""Multi-head attention in few nodes: projections that read one input are one product.

`torch.nn.functional.scaled_dot_product_attention` would export its key's shape as eleven nodes, and
diffusers' layers have three products where one does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diver_trt.models.layers import in_dtype, joined


class SelfAttention(nn.Module):
    """tokens [n, T, D] => tokens [n, T, D], both in `dtype` (arXiv 1706.03762, section 3.2).

    Args:
        attention: diffusers' `Attention`, of which the three projections and the output's are read.
        dtype: What it computes in.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = attention.heads
        projections = [attention.to_q, attention.to_k, attention.to_v]
        self.query_key_value = in_dtype(joined(projections, [_root(attention), 1.0, 1.0]), dtype)
        self.output = in_dtype(attention.to_out[0], dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what every token takes from all tokens of its image."""
        # [n, T, 3 D] => three times [n, heads, T, d]
        heads = self.query_key_value(tokens).reshape(*tokens.shape[:2], 3 * self.heads, -1)
        query, key, value = torch.split(heads.transpose(1, 2), self.heads, dim=1)
        projected: Tensor = self.output(_attended(query, key, value))
        return projected


class CrossAttention(nn.Module):
    """tokens [n, T, D], context [n, S, E] => tokens [n, T, D], all in `dtype`.

    The arguments are those of `SelfAttention`.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.query = in_dtype(joined([attention.to_q], [_root(attention)]), dtype)
        self.key_value = in_dtype(joined([attention.to_k, attention.to_v]), dtype)
        self.output = in_dtype(attention.to_out[0], dtype)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return what every token takes from the context of its image."""
        # [n, T, D] => [n, heads, T, d], and [n, S, 2 D] => twice [n, heads, S, d]
        query = self.query(tokens).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
        pairs = self.key_value(context).reshape(*context.shape[:2], 2 * self.heads, -1)
        key, value = torch.split(pairs.transpose(1, 2), self.heads, dim=1)
        projected: Tensor = self.output(_attended(query, key, value))
        return projected


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T) v: q [n, heads, T, d], k and v [n, heads, S, d] => [n, T, heads d]."""
    # The weights of the query already hold the division by sqrt(d).
    attended = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
    return attended.transpose(1, 2).flatten(2)


def _root(attention: Any) -> float:
    """Return 1 / sqrt(d), which is multiplied into the query's weights before they are rounded."""
    return float((attention.to_q.out_features // attention.heads) ** -0.5)
