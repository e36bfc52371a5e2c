"""The DiT's conditioner and predictor as torch modules around diffusers' own layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diver_trt.models.denoiser import in_dtype


class Conditioner(nn.Module):
    """(time [m] float32, label [m] int64) => every adaLN-Zero modulation of the DiT, [m, M].

    A block's modulation depends on nothing else (DiT, arXiv 2212.09748, section 3.2), so splitting
    it off is exact. diffusers stores the timestep and label embedder once per block; equal copies
    become one here, and the blocks behind one embedder become one matrix product. A model whose
    copies really differ keeps each of them.
    """

    def __init__(self, transformer: DiTTransformer2DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        blocks: list[Any] = list(transformer.transformer_blocks)
        self.time_proj = blocks[0].norm1.emb.time_proj
        embedders: list[Any] = []
        sections: list[tuple[int, list[nn.Linear]]] = []
        for embedder, layer in [(b.norm1.emb, b.norm1.linear) for b in blocks] + [
            (blocks[0].norm1.emb, transformer.proj_out_1)
        ]:
            known = next(
                (i for i, other in enumerate(embedders) if _same_weights(embedder, other)), None
            )
            if known is None:
                known = len(embedders)
                embedders.append(embedder)
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
        self.sections = nn.ModuleList(_joined(layers).to(dtype) for _, layers in sections)

    def forward(self, time: Tensor, label: Tensor) -> Tensor:
        # Computed in float32, since float16 represents whole numbers only up to 2,048.
        sinusoids = self.time_proj(time).to(self.dtype)
        conditions = [
            F.silu(embed(sinusoids) + table(label))
            for embed, table in zip(self.timestep_embedders, self.label_tables, strict=True)
        ]
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


def _joined(layers: list[nn.Linear]) -> nn.Linear:
    joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return joined


class Block(nn.Module):
    """tokens [n, T, D] float32, modulation [n, 6 D] => tokens [n, T, D] float32: one block."""

    attention: Any  # diffusers' Attention

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.attention_norm, self.mlp_norm = block.norm1.norm, block.norm3
        self.attention, self.mlp = in_dtype(block.attn1, dtype), in_dtype(block.ff, dtype)

    def forward(self, tokens: Tensor, modulation: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            modulation.float().unsqueeze(1).chunk(6, dim=2)
        )
        attended = self._attend(
            (self.attention_norm(tokens) * (1 + scale_a) + shift_a).to(self.dtype)
        )
        tokens = gate_a * attended.float() + tokens
        widened = self.mlp((self.mlp_norm(tokens) * (1 + scale_m) + shift_m).to(self.dtype))
        mixed: Tensor = gate_m * widened.float() + tokens
        return mixed

    def _attend(self, tokens: Tensor) -> Tensor:
        heads = self.attention.heads
        query, key, value = (
            project(tokens).reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)
            for project in (self.attention.to_q, self.attention.to_k, self.attention.to_v)
        )
        attended: Tensor = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.attention.to_out[0](attended.transpose(1, 2).flatten(2))
        return projected


class Predictor(nn.Module):
    """latent [n, c, h, w], condition [n, M] => prediction [n, c or 2 c, h, w] float32."""

    def __init__(self, transformer: DiTTransformer2DModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.patch_size, self.out_channels = transformer.config.patch_size, transformer.out_channels
        self.width = transformer.inner_dim
        self.patch_projection = in_dtype(transformer.pos_embed.proj, dtype)
        self.register_buffer("position", transformer.pos_embed.pos_embed.float())
        self.blocks = nn.ModuleList(Block(block, dtype) for block in transformer.transformer_blocks)
        self.final_norm, self.final_projection = (
            transformer.norm_out,
            in_dtype(transformer.proj_out_2, dtype),
        )

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        patches = self.patch_projection(latent.to(self.dtype))
        grid = patches.shape[2]
        tokens = patches.flatten(2).transpose(1, 2).float() + self.position
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, condition[:, 6 * self.width * i : 6 * self.width * (i + 1)])
        shift, scale = condition[:, -2 * self.width :].float().unsqueeze(1).chunk(2, dim=2)
        outputs = self.final_projection(
            (self.final_norm(tokens) * (1 + scale) + shift).to(self.dtype)
        ).float()
        patch = self.patch_size
        outputs = outputs.reshape(-1, grid, grid, patch, patch, self.out_channels).permute(
            0, 5, 1, 3, 2, 4
        )
        image: Tensor = outputs.reshape(-1, self.out_channels, grid * patch, grid * patch)
        return image
