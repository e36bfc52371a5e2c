"""A DiT as facebookresearch/DiT defines it (arXiv 2212.09748), names of its checkpoints included.

Nothing here comes from diffusers: it is written from the paper and the checkpoint's layout, to hold
the exporter against something that is not its own source.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(timestep: Tensor, width: int = 256) -> Tensor:
    """DiT's sinusoids: frequencies 10000^(-i / (width / 2)), cosines first."""
    frequencies = torch.exp(
        -math.log(10000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2)
    )
    angles = timestep[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(width: int, grid: int) -> Tensor:
    """Fixed 2-D sinusoids, [1, grid * grid, width].

    The first half of the channels encodes the column.
    """
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    parts = [
        f(axis.reshape(-1, 1).double() * omega)
        for axis in (columns, rows)
        for f in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=1).float()[None]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(n, tokens, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c)[
            :, None
        ].chunk(6, dim=2)
        x = x + gate_a * self.attn(self.norm(x) * (1 + scale_a) + shift_a)
        out: Tensor = x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)
        return out


class OriginalDiT(nn.Module):
    """Its state dict has the layout of `DiT-XL-2-256x256.pt`."""

    def __init__(
        self,
        width: int = 384,
        heads: int = 6,
        depth: int = 2,
        size: int = 8,
        patch: int = 2,
        channels: int = 4,
        classes: int = 7,
    ) -> None:
        super().__init__()
        self.width = width
        self.patch, self.grid, self.out_channels = patch, size // patch, 2 * channels
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.pos_embed = nn.Parameter(position_embedding(width, self.grid), requires_grad=False)
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
                "linear": nn.Linear(width, patch * patch * self.out_channels),
            }
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        for parameter in self.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.03)

    def condition(self, timestep: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.t_embedder["mlp"](timestep_embedding(timestep)) + self.y_embedder[
            "embedding_table"
        ](label)
        return out

    def modulations(self, timestep: Tensor, label: Tensor) -> Tensor:
        """What our conditioner computes: every block's modulation, then the final layer's.

        Each is shift, 1 + scale and gate, for the attention and for the MLP; the final layer has a
        shift and 1 + scale.
        """
        c = self.condition(timestep, label)
        layers: list[Any] = [
            *(block.adaLN_modulation for block in self.blocks),
            self.final_layer["adaLN_modulation"],
        ]
        vectors = torch.cat([layer(c) for layer in layers], dim=1)
        vectors = vectors.reshape(len(c), -1, self.width)
        scales = [*range(1, 6 * len(self.blocks), 3), 6 * len(self.blocks) + 1]
        vectors[:, scales] += 1
        return vectors.reshape(len(c), -1)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        c = self.condition(timestep, label)
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, dim=2)
        x = self.final_layer["linear"](self.final_norm(x) * (1 + scale) + shift)
        x = x.reshape(-1, self.grid, self.grid, self.patch, self.patch, self.out_channels)
        return torch.einsum("nhwpqc->nchpwq", x).flatten(2, 3).flatten(3)
