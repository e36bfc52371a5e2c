"""The conditioner and predictor of a text-conditional UNet, around diffusers' own layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diver_trt.models.attention import CrossAttention, SelfAttention
from diver_trt.models.layers import InFloat32, ModuleT, in_dtype, joined


class Conditioner(nn.Module):
    """(time [m] float32, label [m] int64) => what time and class give the UNet, [m, M].

    A condition holds the embedding of the class's prompt, then the shift of every residual block.
    The shifts depend on the time alone, so their products leave the predictor, which would compute
    them in every step of every image.

    Args:
        unet: The UNet.
        prompts: The embedding of each class's prompt and of the null class's, a row each.
        dtype: What it computes in.
    """

    def __init__(
        self, unet: UNet2DConditionModel, prompts: nn.Embedding, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.time_proj = unet.time_proj
        self.time_embedding = in_dtype(unet.time_embedding, dtype)
        self.prompts = in_dtype(prompts, dtype)
        self.shifts = joined([block.time_emb_proj for block in residual_blocks(unet)]).to(dtype)

    def forward(self, time: Tensor, label: Tensor) -> Tensor:
        # Computed in float32, since float16 represents whole numbers only up to 2,048.
        sinusoids = self.time_proj(time).to(self.dtype)
        # diffusers applies this SiLU in every residual block, before its own projection.
        shifts = self.shifts(F.silu(self.time_embedding(sinusoids)))
        return torch.cat([self.prompts(label), shifts], dim=1)


class Predictor(nn.Module):
    """latent [n, c, h, w], condition [n, M] => prediction [n, c, h, w] float32.

    The UNet of latent diffusion (arXiv 2112.10752, section 3.3). Feature maps are in `dtype`:
    unlike a DiT's residual stream they are normalised in every residual block, and in float32 those
    that wait for the way up would double the memory.
    """

    def __init__(self, unet: UNet2DConditionModel, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.tokens = dtype, tokens
        self.widths = [
            tokens * unet.config.cross_attention_dim,
            # In the order in which the blocks run, as the conditioner joins their shifts.
            *(block.conv1.out_channels for block in residual_blocks(unet)),
        ]
        self.first = in_dtype(unet.conv_in, dtype)
        self.down: Any = nn.ModuleList(Level(level, dtype) for level in unet.down_blocks)
        self.middle: Any = nn.ModuleList(
            [
                ResidualBlock(unet.mid_block.resnets[0], dtype),
                Transformer(unet.mid_block.attentions[0], dtype),
                ResidualBlock(unet.mid_block.resnets[1], dtype),
            ]
        )
        self.up: Any = nn.ModuleList(Level(level, dtype) for level in unet.up_blocks)
        self.last_norm = _in_float32(unet.conv_norm_out, dtype)
        self.last = in_dtype(unet.conv_out, dtype)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        # condition [n, M] => text [n, S E], and a shift [n, C'] for each residual block
        # In another type than the graph's, `compare` gives the reference's condition.
        text, *rest = torch.split(condition.to(self.dtype), self.widths, dim=1)
        context = text.reshape(-1, self.tokens, self.widths[0] // self.tokens)
        shifts = iter(rest)
        # Down: every map is kept for the way up
        maps = self.first(latent.to(self.dtype))
        kept = [maps]
        for level in self.down:
            for block, transformer in level.pairs():
                maps = transformer(block(maps, next(shifts)), context)
                kept.append(maps)
            if level.has_resampling:
                maps = level.resampling(maps)
                kept.append(maps)
        # Middle
        before, transformer, after = self.middle
        maps = after(transformer(before(maps, next(shifts)), context), next(shifts))
        # Up: each block reads the map that was kept at its place
        for level in self.up:
            for block, transformer in level.pairs():
                maps = block(torch.cat([maps, kept.pop()], dim=1), next(shifts))
                maps = transformer(maps, context)
            if level.has_resampling:
                # As diffusers' Upsample2D: nearest neighbours, then a convolution
                maps = level.resampling(F.interpolate(maps, scale_factor=2.0, mode="nearest"))
        prediction: Tensor = self.last(F.silu(self.last_norm(maps))).float()
        return prediction

    def layer_norms(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layer normalisations in the order in which they run, with their places."""
        for place, transformer in self._transformers():
            for number, block in enumerate(transformer.blocks, 1):
                where = f"{place}, block {number}" if len(transformer.blocks) > 1 else place
                yield f"{where}, self-attention", block.self_attention_norm
                yield f"{where}, cross-attention", block.cross_attention_norm
                yield f"{where}, MLP", block.mlp_norm

    def _transformers(self) -> Iterator[tuple[str, Transformer]]:
        levels = [
            *((f"down {number}", level.transformers) for number, level in enumerate(self.down, 1)),
            ("middle", [self.middle[1]]),
            *((f"up {number}", level.transformers) for number, level in enumerate(self.up, 1)),
        ]
        for name, transformers in levels:
            for number, transformer in enumerate(transformers, 1):
                if isinstance(transformer, Transformer):
                    yield (f"{name}.{number}" if name != "middle" else name), transformer


class Level(nn.Module):
    """The blocks of one resolution, and the convolution that leaves it."""

    def __init__(self, level: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(block, dtype) for block in level.resnets)
        self.transformers = nn.ModuleList(
            Transformer(transformer, dtype) if transformer is not None else WithoutAttention()
            # DownBlock2D and UpBlock2D lack attention.
            for transformer in getattr(level, "attentions", [None] * len(level.resnets))
        )
        resamplers = getattr(level, "downsamplers", None) or getattr(level, "upsamplers", None)
        self.has_resampling = resamplers is not None
        if resamplers is not None:
            self.resampling = in_dtype(resamplers[0].conv, dtype)

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield each residual block with its transformer, in the order in which they run."""
        return zip(self.blocks, self.transformers, strict=True)


class ResidualBlock(nn.Module):
    """maps [n, C, h, w], shift [n, C'] => maps [n, C', h, w]: two convolutions around the shift."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.first_norm = _in_float32(block.norm1, dtype)
        self.first = in_dtype(block.conv1, dtype)
        self.second_norm = _in_float32(block.norm2, dtype)
        self.second = in_dtype(block.conv2, dtype)
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if shortcut is None else in_dtype(shortcut, dtype)

    def forward(self, maps: Tensor, shift: Tensor) -> Tensor:
        # shift [n, C'] => [n, C', 1, 1], the same at every position
        inner = self.first(F.silu(self.first_norm(maps))) + shift[:, :, None, None]
        # diffusers' dropout before the convolution does nothing in eval mode.
        outer: Tensor = self.second(F.silu(self.second_norm(inner)))
        maps_out: Tensor = self.shortcut(maps) + outer
        return maps_out


class Transformer(nn.Module):
    """maps [n, C, h, w], context [n, S, E] => maps: attention over positions and to the text."""

    def __init__(self, transformer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = _in_float32(transformer.norm, dtype)
        self.enter = in_dtype(_as_linear(transformer.proj_in), dtype)
        self.blocks: Any = nn.ModuleList(
            TransformerBlock(block, dtype) for block in transformer.transformer_blocks
        )
        self.leave = in_dtype(_as_linear(transformer.proj_out), dtype)

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        # maps [n, C, h, w] => tokens [n, h w, D]
        tokens = self.enter(self.norm(maps).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, context)
        # => [n, C, h, w]
        added: Tensor = self.leave(tokens).transpose(1, 2).reshape(maps.shape)
        return added + maps


class WithoutAttention(nn.Module):
    """maps, context => maps: the place of a transformer in a level that has none."""

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        return maps


class TransformerBlock(nn.Module):
    """tokens [n, T, D], context [n, S, E] => tokens: self-attention, cross-attention, MLP."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.self_attention_norm = block.norm1
        self.self_attention = SelfAttention(block.attn1, dtype)
        self.cross_attention_norm = block.norm2
        self.cross_attention = CrossAttention(block.attn2, dtype)
        self.mlp_norm, self.mlp = block.norm3, in_dtype(block.ff, dtype)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        tokens = tokens + self.self_attention(self._normed(self.self_attention_norm, tokens))
        tokens = tokens + self.cross_attention(
            self._normed(self.cross_attention_norm, tokens), context
        )
        mixed: Tensor = tokens + self.mlp(self._normed(self.mlp_norm, tokens))
        return mixed

    def _normed(self, norm: nn.Module, tokens: Tensor) -> Tensor:
        normed: Tensor = norm(tokens.float())
        return normed.to(self.dtype)


def residual_blocks(unet: UNet2DConditionModel) -> Iterator[Any]:
    """Yield diffusers' residual blocks in the order in which they run."""
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from level.resnets


def _in_float32(norm: ModuleT, dtype: torch.dtype) -> ModuleT | InFloat32:
    return norm if dtype == torch.float32 else InFloat32(norm)


def _as_linear(layer: Any) -> nn.Linear:
    """Return a projection of tokens; older UNets store a convolution of one pixel."""
    if isinstance(layer, nn.Linear):
        return layer
    linear = nn.Linear(layer.in_channels, layer.out_channels, device="meta")
    # [D, C, 1, 1] => [D, C]
    linear.weight = nn.Parameter(layer.weight.flatten(1), requires_grad=False)
    linear.bias = layer.bias
    return linear
