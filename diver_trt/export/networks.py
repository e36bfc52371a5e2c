"""The four networks of a bundle as torch modules around diffusers' own layers.

Every border is float32 (conditions have the bundle's precision), and so is everything that sums or normalises: in an fp16
bundle the matrix products, convolutions and attention are float16, while the residual stream, normalisation, scale and shift,
gates and the whole DIVER step stay float32. With `dtype=torch.float32` the casts vanish and the layers are the caller's own.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor, nn

from diver_trt.bundle import NetworkName
from diver_trt.errors import ExportError
from diver_trt.export.checkpoint import Model
from diver_trt.method.step import StepLayout, guided_step

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_networks(model: Model, dtype: torch.dtype) -> dict[NetworkName, nn.Module]:
    """Return the four networks computing in `dtype`, float32 or float16; float32 shares the model's weights.

    Raises:
        ExportError: The transformer's or the VAE's outputs do not fit DIVER.
    """
    return {
        "encoder": Encoder(model.vae, dtype).eval(),
        "conditioner": Conditioner(model.transformer, dtype).eval(),
        "denoiser": Denoiser(model.transformer, step_layout(model.transformer), dtype).eval(),
        "decoder": Decoder(model.vae, dtype).eval(),
    }


def step_layout(transformer: DiTTransformer2DModel) -> StepLayout:
    """Return the columns of this model's step table.

    Raises:
        ExportError: The model predicts neither noise alone nor noise and variance.
    """
    channels, outputs = transformer.config.in_channels, transformer.out_channels
    if outputs not in (channels, 2 * channels):
        raise ExportError(
            f"the transformer maps {channels} channels to {outputs}; expected {channels} (noise) or {2 * channels} (noise and variance)"
        )
    return StepLayout(channels, learned_variance=outputs == 2 * channels)


def in_dtype(layer: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Return the layer itself if it has this type already, else a copy that has."""
    if all(parameter.dtype == dtype for parameter in layer.parameters()):
        return layer
    return copy.deepcopy(layer).to(dtype)


class Conditioner(nn.Module):
    """(time [m] float32, label [m] int64) => every adaLN-Zero modulation of the DiT, [m, M].

    A block's modulation depends on nothing else (DiT, arXiv 2212.09748, section 3.2), so splitting it off is exact. diffusers
    stores the timestep and label embedder once per block; equal copies become one here, and the blocks behind one embedder
    become one matrix product. A model whose copies really differ keeps each of them.
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
    """A DiT block without its conditioner: tokens [n, T, D] float32, modulation [n, 6 D] => tokens [n, T, D] float32."""

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


class Denoiser(nn.Module):
    """One DIVER step: (latent, anchor, condition [2, n, M], coefficients [C]) => next latent, all float32 but the condition.

    The network runs once on the latent under both conditions, class then null; guidance, DDIM and semantic guidance follow in
    float32 (`diver_trt.method.step.guided_step`).
    """

    def __init__(
        self, transformer: DiTTransformer2DModel, layout: StepLayout, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.layout, self.dtype = layout, dtype
        self.patch_size, self.out_channels = transformer.config.patch_size, transformer.out_channels
        self.width = transformer.inner_dim
        self.patch_projection = in_dtype(transformer.pos_embed.proj, dtype)
        self.register_buffer("position", transformer.pos_embed.pos_embed.float())
        self.blocks = nn.ModuleList(Block(block, dtype) for block in transformer.transformer_blocks)
        self.final_norm, self.final_projection = (
            transformer.norm_out,
            in_dtype(transformer.proj_out_2, dtype),
        )

    def forward(
        self, latent: Tensor, anchor: Tensor, condition: Tensor, coefficients: Tensor
    ) -> Tensor:
        prediction = self.predict(torch.cat([latent, latent]), condition.flatten(0, 1))
        by_class, by_null = prediction.reshape(2, -1, *prediction.shape[1:])
        eps_class, eps_null = (
            by_class[:, : self.layout.channels],
            by_null[:, : self.layout.channels],
        )
        variance = by_class[:, self.layout.channels :]  # the class-conditional one, as in DiT
        next_latent: Tensor = guided_step(
            latent, anchor, eps_class, eps_null, variance, coefficients, self.layout, torch.exp
        )
        return next_latent

    def predict(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Run the DiT itself: latent [n, c, h, w], condition [n, M] => prediction [n, c or 2 c, h, w] float32."""
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


class Encoder(nn.Module):
    """image [n, 3, H, W] float32 in [-1, 1] => latent [n, c, h, w] float32: the posterior mean in the DiT's units."""

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.channels = dtype, vae.config.latent_channels
        self.encoder, self.quant = (
            with_float32_norms(in_dtype(vae.encoder, dtype), dtype),
            vae.quant_conv,
        )
        self.register_buffer("shift", _latent_shift(vae))
        self.register_buffer("scale", _latent_scale(vae))

    def forward(self, image: Tensor) -> Tensor:
        moments = self.encoder(image.to(self.dtype)).float()
        if self.quant is not None:
            moments = self.quant(moments)
        latent: Tensor = (moments[:, : self.channels] - self.shift) * self.scale
        return latent


class Decoder(nn.Module):
    """latent [n, c, h, w] float32 in the DiT's units => image [n, 3, H, W] float32, clipped to [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.decoder, self.post_quant = (
            with_float32_norms(in_dtype(vae.decoder, dtype), dtype),
            vae.post_quant_conv,
        )
        self.register_buffer("shift", _latent_shift(vae))
        self.register_buffer("scale", _latent_scale(vae))

    def forward(self, latent: Tensor) -> Tensor:
        latent = latent / self.scale + self.shift
        if self.post_quant is not None:
            latent = self.post_quant(latent)
        image: Tensor = self.decoder(latent.to(self.dtype)).float().clamp(-1, 1)
        return image


def _latent_shift(vae: AutoencoderKL) -> Tensor:
    shift = vae.config.latents_mean or [vae.config.shift_factor or 0.0]
    return torch.tensor(shift).float().reshape(1, -1, 1, 1)


def _latent_scale(vae: AutoencoderKL) -> Tensor:
    deviations = torch.tensor(vae.config.latents_std or [1.0]).float()
    scale: Tensor = vae.config.scaling_factor / deviations
    return scale.reshape(1, -1, 1, 1)


class Float32GroupNorm(nn.Module):
    """A group normalisation that computes in float32 and answers in the type it was asked in: its sums overflow float16."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x.float())
        return normalised.to(x.dtype)


def with_float32_norms(network: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Wrap every group normalisation of a float16 network in `Float32GroupNorm`; a float32 network is returned untouched."""
    if dtype != torch.float32:
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.GroupNorm):
                    setattr(parent, name, Float32GroupNorm(child))
    return network
