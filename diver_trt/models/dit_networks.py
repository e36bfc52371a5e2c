"""The DiT's conditioner and predictor as torch modules around diffusers' own layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diver_trt.models.attention import SelfAttention
from diver_trt.models.layers import in_dtype, joined

BLOCK_VECTORS = ("shift", "scale", "gate") * 2
"""Vectors of a block's modulation, each of the model's width: attention's three, then the MLP's."""
FINAL_VECTORS = ("shift", "scale")
"""Vectors of the final layer's modulation."""


class Conditioner(nn.Module):
    """(time [m] float32, label [m] int64) => every adaLN-Zero modulation of the DiT, [m, M].

    A block's modulation depends on nothing else (DiT, arXiv 2212.09748, section 3.2), so splitting
    it off is exact. diffusers stores the timestep and label embedder once per block; equal copies
    become one here, and the blocks behind one embedder become one matrix product. A model whose
    copies really differ keeps each of them.

    A condition holds six vectors per block and two of the final layer (`BLOCK_VECTORS`,
    `FINAL_VECTORS`). Its scales are `1 + scale` of the paper.
    """

    def __init__(self, transformer: DiTTransformer2DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        blocks: list[Any] = list(transformer.transformer_blocks)
        self.time_proj = blocks[0].norm1.emb.time_proj
        embedders: list[Any] = []
        sections: list[tuple[int, list[nn.Linear]]] = []
        modulations: list[tuple[Any, Any, tuple[str, ...]]] = [
            *((block.norm1.emb, block.norm1.linear, BLOCK_VECTORS) for block in blocks),
            (blocks[0].norm1.emb, transformer.proj_out_1, FINAL_VECTORS),
        ]
        for embedder, modulation, vectors in modulations:
            layer = _with_one_added(modulation, vectors)
            # A copy is compared by its values: diffusers loads equal weights as separate tensors.
            known = next(
                (i for i, other in enumerate(embedders) if _same_weights(embedder, other)), None
            )
            if known is None:
                known = len(embedders)
                embedders.append(embedder)
            # Only neighbours are joined, since the predictor reads the vectors block by block.
            if sections and sections[-1][0] == known:
                sections[-1][1].append(layer)
            else:
                sections.append((known, [layer]))
        self.timestep_embedders = nn.ModuleList(
            in_dtype(embedder.timestep_embedder, dtype) for embedder in embedders
        )
        self.label_tables = nn.ModuleList(
            in_dtype(embedder.class_embedder.embedding_table, dtype) for embedder in embedders
        )
        self.section_embedders = [embedder for embedder, _ in sections]
        self.sections = nn.ModuleList(joined(layers).to(dtype) for _, layers in sections)

    def forward(self, time: Tensor, label: Tensor) -> Tensor:
        # Timestep and label embedding (DiT, section 3.2)
        # Computed in float32, since float16 represents whole numbers only up to 2,048.
        sinusoids = self.time_proj(time).to(self.dtype)
        conditions = [
            F.silu(embed(sinusoids) + table(label))
            for embed, table in zip(self.timestep_embedders, self.label_tables, strict=True)
        ]
        # adaLN-Zero modulations of all blocks, in the order in which the denoiser reads them
        return torch.cat(
            [
                layer(conditions[i])
                for i, layer in zip(self.section_embedders, self.sections, strict=True)
            ],
            dim=1,
        )


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    return one is other or all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def _with_one_added(layer: nn.Linear, vectors: tuple[str, ...]) -> nn.Linear:
    """Return an adaLN layer that computes `1 + scale` wherever the model's own computes `scale`.

    The denoiser reads every condition fifty times per image, and would add the 1 each time.
    """
    width = layer.out_features // len(vectors)
    ones = torch.tensor([float(vector == "scale") for vector in vectors])
    added = nn.Linear(layer.in_features, layer.out_features, device="meta")
    added.weight = layer.weight
    added.bias = nn.Parameter(layer.bias + ones.repeat_interleave(width), requires_grad=False)
    return added


class Block(nn.Module):
    """tokens [n, T, D] float32, modulation 6 x [n, 1, D] => tokens [n, T, D] float32: one block."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.attention_norm, self.mlp_norm = block.norm1.norm, block.norm3
        self.attention = SelfAttention(block.attn1, dtype)
        self.mlp = in_dtype(block.ff, dtype)

    def forward(self, tokens: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        # adaLN-Zero (DiT, Fig. 3). The scales already are 1 + scale.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (v.float() for v in modulation)
        # Multi-head self-attention
        attended = self.attention((self.attention_norm(tokens) * scale_a + shift_a).to(self.dtype))
        tokens = gate_a * attended.float() + tokens
        # Pointwise feedforward
        widened = self.mlp((self.mlp_norm(tokens) * scale_m + shift_m).to(self.dtype))
        mixed: Tensor = gate_m * widened.float() + tokens
        return mixed


class Predictor(nn.Module):
    """latent [n, c, h, w], condition [n, M] => prediction [n, c or 2 c, h, w] float32."""

    def __init__(self, transformer: DiTTransformer2DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.patch_size, self.out_channels = transformer.config.patch_size, transformer.out_channels
        self.width = transformer.inner_dim
        self.patch_projection = in_dtype(transformer.pos_embed.proj, dtype)
        # float32 in every precision, since the residual stream begins with it.
        self.register_buffer("position", transformer.pos_embed.pos_embed.float())
        self.blocks = nn.ModuleList(Block(block, dtype) for block in transformer.transformer_blocks)
        self.final_norm = transformer.norm_out
        self.final_projection = in_dtype(transformer.proj_out_2, dtype)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        # Patch embedding, latent [n, c, h, w] => tokens [n, T, D]
        patches = self.patch_projection(latent.to(self.dtype))
        grid = patches.shape[2]
        tokens = patches.flatten(2).transpose(1, 2).float() + self.position
        # One split for the whole network: a slice for each block would be three nodes each.
        vectors = torch.split(condition.unsqueeze(1), self.width, dim=2)
        for i, block in enumerate(self.blocks):
            first = len(BLOCK_VECTORS) * i
            tokens = block(tokens, vectors[first : first + len(BLOCK_VECTORS)])
        # Final layer
        shift, scale = (vector.float() for vector in vectors[-len(FINAL_VECTORS) :])
        # tokens [n, T, D] => outputs [n, T, p p c']
        outputs = self.final_projection(
            (self.final_norm(tokens) * scale + shift).to(self.dtype)
        ).float()
        # Unpatchify, tokens [n, T, p p c'] => prediction [n, c', h, w]
        patch = self.patch_size
        outputs = outputs.reshape(-1, grid, grid, patch, patch, self.out_channels).permute(
            0, 5, 1, 3, 2, 4
        )
        image: Tensor = outputs.reshape(-1, self.out_channels, grid * patch, grid * patch)
        return image
