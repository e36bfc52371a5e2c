"""The VAE of latent diffusion, diffusers' `AutoencoderKL`: its own code, loading, networks."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from diver_trt.errors import ExportError, shown
from diver_trt.models.attention import SelfAttention
from diver_trt.models.base import BaseModel
from diver_trt.models.layers import InFloat32, ModuleT, in_dtype
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import (
    build_module,
    check_class,
    component_class,
    unknown_fields,
)
from diver_trt.models.weights import load_weights, network_weights

AUTOENCODERS = ("AutoencoderKL",)

# Stable Diffusion's VAE, whose first files omit the scaling factor.
_SD_WIDTHS = [128, 256, 512, 512]

# Names of the attention's projections until diffusers 0.15, which published VAEs still have.
_OLD_ATTENTION = re.compile(
    r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))"
)
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class LatentModel(BaseModel):
    """A base model on the latents of an `AutoencoderKL`, which is its field `vae`."""

    vae: AutoencoderKL

    def original_encode(self, image: Tensor) -> Tensor:
        """Return the scaled latent by diffusers' own code."""
        shift, scale = _original_scaling(self.vae)
        latent: Tensor = (self.vae.encode(image).latent_dist.mean - shift) * scale
        return latent

    def original_decode(self, latent: Tensor) -> Tensor:
        """Return the image by diffusers' own code."""
        shift, scale = _original_scaling(self.vae)
        image: Tensor = self.vae.decode(latent / scale + shift).sample
        return image.clamp(-1, 1)


def _original_scaling(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    # Written apart from the networks' own shift and scale below, which are checked against it.
    config = vae.config
    shift = torch.tensor(config.latents_mean or [config.shift_factor or 0.0])
    scale = config.scaling_factor / torch.tensor(config.latents_std or [1.0])
    return shift.reshape(1, -1, 1, 1), scale.reshape(1, -1, 1, 1)


def autoencoder_files(index: Mapping[str, Any], files: ModelFiles, other: str | None) -> ModelFiles:
    """Return the folder of a pipeline's VAE, or of the one that the user names in its place.

    Raises:
        ExportError: If the pipeline's is of another class, or the other one cannot be found.
    """
    if other is not None:
        return ModelFiles.at(other)
    component_class(index, "vae", AUTOENCODERS, files)
    return files.within("vae")


def load_autoencoder(files: ModelFiles, latent_channels: int) -> tuple[AutoencoderKL, list[str]]:
    """Load an AutoencoderKL from its folder, in float32.

    Args:
        files: The folder.
        latent_channels: Channels of the latents that the model was trained on.

    Returns:
        The module, and notes on what was found.

    Raises:
        ExportError: If the folder holds something else, or configuration and weights contradict
            each other, or it has other latents, or does not decode to three channels.
    """
    expected = "expected the folder of an AutoencoderKL"
    if files.find("config.json") is None and files.find("model_index.json"):
        expected = f"it is a whole pipeline, expected the autoencoder in it: {files.where('vae')}"
    config = files.read_json("config.json", expected)
    where = files.where("config.json")
    check_class(config, AUTOENCODERS, where)
    for name in ("in_channels", "out_channels"):
        if (channels := config.get(name, 3)) != 3:
            raise ExportError(
                f"{where}: {name} is {shown(repr(channels))}, expected 3: DIVER recovers RGB images"
            )
    widths = config.get("block_out_channels", [64])
    blocks = [config.get(f"{way}_block_types", [None]) for way in ("down", "up")]
    if not all(isinstance(part, list) and len(part) == len(widths) for part in (widths, *blocks)):
        raise ExportError(
            f"{where}: block_out_channels, down_block_types and up_block_types differ in length"
        )
    # A shift or scale that is read wrongly changes every image, and no check of shapes finds it.
    _check_latent_statistics(config, where)
    state, notes = network_weights(files, "decoder.conv_out.weight")
    autoencoder: Any = build_module(AutoencoderKL, config, where)
    load_weights(autoencoder, _with_new_attention_names(state), files.where(), "config.json")
    if (found := autoencoder.config.latent_channels) != latent_channels:
        raise ExportError(
            f"{files.where()}: the autoencoder has {found} latent channels, expected the "
            f"transformer's {latent_channels}. Choose the one it was trained with, by --vae."
        )
    if "scaling_factor" not in config and widths != _SD_WIDTHS:
        factor = autoencoder.config.scaling_factor
        notes.append(f"{where}: has no scaling_factor; {factor}, Stable Diffusion's, is assumed")
    return autoencoder, notes + unknown_fields(AutoencoderKL, config, where)


def _check_latent_statistics(config: Mapping[str, Any], where: str) -> None:
    if config.get("shift_factor") and config.get("latents_mean"):
        raise ExportError(
            f"{where}: has both shift_factor and latents_mean, expected one of them: which of the "
            "two latents are shifted by is not stated. Set the other one to null."
        )
    channels = config.get("latent_channels", 4)
    fields = {
        name: config[name]
        for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        if config.get(name) is not None or (name == "scaling_factor" and name in config)
    }
    for name, field in fields.items():
        values = field if isinstance(field, list) else [field]
        per_channel = name.startswith("latents_")
        right = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        positive = name in ("scaling_factor", "latents_std")
        if (
            not right
            or per_channel != isinstance(field, list)
            or (per_channel and len(values) != channels)
            or (positive and any(value <= 0 for value in values))
        ):
            kind = "positive number" if positive else "number"
            count = f"{channels} {kind}s" if per_channel else f"a {kind}"
            raise ExportError(f"{where}: {name} is {shown(repr(field))}, expected {count}")


def _with_new_attention_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def renamed(name: str) -> str:
        old = _OLD_ATTENTION.fullmatch(name)
        return f"{old[1]}{_NEW_ATTENTION[old[2]]}{old[3]}" if old else name

    names = {name: renamed(name) for name in state}
    clash = len(set(names.values())) < len(names)  # both names there: neither is chosen
    return state if clash else {names[name]: tensor for name, tensor in state.items()}


def decoded_side(vae: AutoencoderKL, latent_side: int) -> int:
    """Return the side of the decoded image: every level of the VAE but one halves it."""
    return int(latent_side * 2 ** (len(vae.config.block_out_channels) - 1))


class Encoder(nn.Module):
    """image [n, 3, H, W] in [-1, 1] => latent [n, c, h, w], both float32.

    The latent is the posterior mean in the base model's units.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.channels = dtype, vae.config.latent_channels
        # The quant convolution is float32 in every precision (docs/precision.md).
        self.encoder, self.quant = lean(vae.encoder, dtype), vae.quant_conv
        self.register_buffer("shift", _latent_shift(vae))
        self.register_buffer("scale", _latent_scale(vae))

    def forward(self, image: Tensor) -> Tensor:
        # Posterior of q(z | x); its mean is the latent, without drawing from it
        moments = self.encoder(image.to(self.dtype)).float()
        if self.quant is not None:
            moments = self.quant(moments)
        # moments [n, 2 c, h, w]: the mean, then the log-variance
        latent: Tensor = (moments[:, : self.channels] - self.shift) * self.scale
        return latent


class Decoder(nn.Module):
    """latent [n, c, h, w] => image [n, 3, H, W] clipped to [-1, 1], both float32.

    The latent is in the base model's units.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        # The quant convolution is float32 in every precision (docs/precision.md).
        self.decoder, self.post_quant = lean(vae.decoder, dtype), vae.post_quant_conv
        self.register_buffer("shift", _latent_shift(vae))
        self.register_buffer("scale", _latent_scale(vae))

    def forward(self, latent: Tensor) -> Tensor:
        # Undo the scaling of latents in float32, and round to the network's type only once.
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


class SpatialAttention(nn.Module):
    """x [n, C, H, W] => x + attention over its positions: diffusers' VAE attention, fused."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.attention = attention.group_norm, SelfAttention(attention, dtype)
        self.rescale = attention.rescale_output_factor

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:  # noqa: ARG002
        # `temb` is what diffusers' blocks pass on; a VAE has none.
        # maps [n, C, H, W] => tokens [n, H W, C]
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        attended: Tensor = self.attention(tokens).transpose(1, 2).reshape(x.shape)
        # Dividing by 1, as every VAE does, would be a node.
        return attended + x if self.rescale == 1 else (attended + x) / self.rescale


def lean(network: ModuleT, dtype: torch.dtype) -> ModuleT:
    """Return an encoder or decoder in a type, with the attention fused and its norms in float32.

    The copy shares float32 weights with the model, whose own code `compare` still runs.
    """
    # deepcopy takes what its memo holds as copied already.
    shared = {id(weight): weight for weight in network.parameters()}
    copied = copy.deepcopy(network, shared)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Attention) and _is_plain(child):
                setattr(parent, name, SpatialAttention(child, dtype))
    if dtype == torch.float32:
        return copied
    # A second walk: the norms of the attention that the first one put in are among them. Layer by
    # layer, so that the norms keep their float32 weights.
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, InFloat32(child))
            elif not list(child.children()):
                setattr(parent, name, in_dtype(child, dtype))
    return copied


def _is_plain(attention: Any) -> bool:
    """Return whether an attention is the VAE's usual one, which `SpatialAttention` computes."""
    absent = (attention.spatial_norm, attention.norm_q, attention.norm_k)
    return attention.residual_connection and attention.group_norm and not any(absent)
