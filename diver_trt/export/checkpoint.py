"""Loading a class-conditional DiT and its VAE: a diffusers `DiTPipeline`, or a checkpoint file in DiT's own layout."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from diver_trt.errors import ExportError
from diver_trt.method.schedule import BETA_SCHEDULES, NoiseSchedule

TimestepFrequencies = Literal["dit", "diffusers"]

DIT_NOISE_SCHEDULE = NoiseSchedule(
    kind="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000
)
DIT_VAE = "stabilityai/sd-vae-ft-mse"
DIT_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by width, for DiT-S, -B, -L and -XL: a checkpoint's tensors do not show them."""


@dataclass(frozen=True)
class Model:
    """A loaded model, float32 and in eval mode.

    Attributes:
        transformer: The DiT; its timestep frequencies are already the right ones.
        vae: The autoencoder.
        noise_schedule: The betas it was trained with.
        class_names: Name per class, if the pipeline has them.
        model_id: Name on the hub, or the local name.
        revision: Revision on the hub, if one was asked for.
        licence: Licence on the model card, if it states one.
        timestep_frequencies: `"dit"`, 10000^(-i/128), or `"diffusers"`, 10000^(-i/127).
        frequencies_reason: Why those, in words.
    """

    transformer: DiTTransformer2DModel
    vae: AutoencoderKL
    noise_schedule: NoiseSchedule
    class_names: tuple[str, ...] | None
    model_id: str
    revision: str | None
    licence: str | None
    timestep_frequencies: TimestepFrequencies
    frequencies_reason: str


def load_model(
    source: str,
    *,
    revision: str | None = None,
    vae: str | None = None,
    timestep_frequencies: TimestepFrequencies | None = None,
) -> Model:
    """Load a model for export.

    Args:
        source: A diffusers directory, a name on the hub, or a `.pt` file in DiT's layout.
        revision: Branch, tag or commit on the hub.
        vae: Directory or hub name of another VAE; a `.pt` file has none and takes the one of DiT's own sampler by default.
        timestep_frequencies: The sinusoids the weights were trained with; None decides by where the weights come from.

    Raises:
        ExportError: The source is no DiT, cannot be read, or was trained in a way that DIVER's equations do not cover.
    """
    if source.endswith((".pt", ".pth")):
        transformer, schedule, names, licence = (
            load_dit_checkpoint(Path(source)),
            DIT_NOISE_SCHEDULE,
            None,
            None,
        )
        model_id, autoencoder = Path(source).name, _load_vae(vae or DIT_VAE)
    else:
        pipeline = _load_pipeline(source, revision)
        transformer = pipeline.transformer
        autoencoder = _load_vae(vae) if vae else pipeline.vae
        schedule, names, licence = (
            _noise_schedule(pipeline),
            _class_names(source, revision),
            _licence(source),
        )
        model_id = Path(source).name if Path(source).exists() else source
    default, reason = _trained_frequencies(source, transformer)
    if timestep_frequencies is not None:
        default, reason = timestep_frequencies, "as asked"
    set_timestep_frequencies(transformer, default)
    return Model(
        transformer=transformer.float().eval().requires_grad_(False),
        vae=autoencoder.float().eval().requires_grad_(False),
        noise_schedule=schedule,
        class_names=names,
        model_id=model_id,
        revision=revision,
        licence=licence,
        timestep_frequencies=default,
        frequencies_reason=reason,
    )


def weights_sha256(model: Model) -> str:
    """Return a hash of every weight of the transformer and the VAE, in hex: what tells one model from another, whatever it is called."""
    digest = hashlib.sha256()
    for part in (model.transformer, model.vae):
        for name, parameter in sorted(part.named_parameters()):
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(parameter.numpy())
    return digest.hexdigest()


def with_timestep_frequencies(model: Model, frequencies: TimestepFrequencies) -> Model:
    """Return a model with other timestep frequencies; its transformer is changed in place."""
    set_timestep_frequencies(model.transformer, frequencies)
    return replace(model, timestep_frequencies=frequencies, frequencies_reason="as asked")


def set_timestep_frequencies(
    transformer: DiTTransformer2DModel, frequencies: TimestepFrequencies
) -> None:
    """Make the transformer compute the sinusoids its weights were trained with.

    diffusers' class divides by 127 where DiT divides by 128, and diffusers publishes DiT's weights under its own class.
    """
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0 if frequencies == "dit" else 1


def _trained_frequencies(
    source: str, transformer: DiTTransformer2DModel
) -> tuple[TimestepFrequencies, str]:
    if source.endswith((".pt", ".pth")):
        return "dit", "the file is in DiT's own layout"
    config = transformer.config
    size = (
        config.num_layers,
        config.num_attention_heads,
        config.attention_head_dim,
        config.num_embeds_ada_norm,
    )
    if size == (28, 16, 72, 1000):
        return "dit", "this is DiT-XL for ImageNet, published with DiT's own weights"
    return "diffusers", "taken to be trained with diffusers' class"


def _load_pipeline(source: str, revision: str | None) -> DiTPipeline:
    index = Path(source) / "model_index.json"
    if Path(source).exists():
        if not index.is_file():
            raise ExportError(
                f"{source}: has no model_index.json; expected a diffusers pipeline directory, a hub name or a .pt file"
            )
        try:
            kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        except (ValueError, KeyError, TypeError) as cause:
            raise ExportError(f"{index}: not the index of a diffusers pipeline") from cause
        if kind != "DiTPipeline":
            raise ExportError(
                f"{source}: holds a {kind}; expected a DiTPipeline (a class-conditional diffusion transformer)"
            )
    diffusers_logging.disable_progress_bar()  # whoever calls owns the progress bar
    diffusers_logging.set_verbosity_error()  # it warns that id2label's keys are texts, as they are in every JSON file
    try:
        return DiTPipeline.from_pretrained(
            source, revision=revision, dtype=torch.float32, low_cpu_mem_usage=False
        )
    except (
        Exception
    ) as cause:  # diffusers and the hub's client raise whatever a damaged part makes them
        raise ExportError(
            f"{source}: cannot be loaded as a DiTPipeline: {_first_line(cause)}"
        ) from cause


def _load_vae(source: str) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_pretrained(source, dtype=torch.float32, low_cpu_mem_usage=False)
    except (
        Exception
    ) as cause:  # diffusers and the hub's client raise whatever a damaged part makes them
        raise ExportError(
            f"{source}: cannot be loaded as an AutoencoderKL: {_first_line(cause)}; choose one with --vae"
        ) from cause


def _noise_schedule(pipeline: DiTPipeline) -> NoiseSchedule:
    config = pipeline.scheduler.config
    if config.get("trained_betas") is not None or config.beta_schedule not in BETA_SCHEDULES:
        kind = "trained_betas" if config.get("trained_betas") is not None else config.beta_schedule
        raise ExportError(
            f"the scheduler has the beta schedule {kind!r}; expected one of {', '.join(BETA_SCHEDULES)}"
        )
    if (kind := config.get("prediction_type", "epsilon")) != "epsilon":
        raise ExportError(
            f"the model predicts {kind!r}; DIVER's equations are for models that predict the noise ('epsilon')"
        )
    return NoiseSchedule(
        kind=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        train_timesteps=config.num_train_timesteps,
    )


def _class_names(source: str, revision: str | None) -> tuple[str, ...] | None:
    """Return `id2label` of model_index.json, which DiTPipeline reads but keeps in another form."""
    names = DiTPipeline.load_config(source, revision=revision).get("id2label") or {}
    return tuple(names[key] for key in sorted(names, key=int)) or None


def _licence(source: str) -> str | None:
    from huggingface_hub import ModelCard

    card = Path(source) / "README.md"
    try:
        stated = ModelCard.load(card if Path(source).exists() else source).data.license
    except Exception:  # a model without a card, or a card without a header, simply states none
        return None
    return str(stated) if stated else None


def load_dit_checkpoint(path: Path) -> DiTTransformer2DModel:
    """Load a checkpoint file of facebookresearch/DiT, such as `DiT-XL-2-256x256.pt`, into the diffusers module.

    The file is read with `weights_only=True`; of a training checkpoint the moving average is taken.

    Raises:
        ExportError: The file is missing, unsafe to load, or not in DiT's layout.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as cause:
        raise ExportError(f"{path}: no such file") from cause
    except Exception as cause:  # torch raises UnpicklingError, RuntimeError, EOFError and more for what is no safe checkpoint
        raise ExportError(
            f"{path}: not a checkpoint that can be loaded safely ({_first_line(cause)})"
        ) from cause
    if isinstance(state, dict):
        state = state.get("ema", state.get("model", state))
    if not isinstance(state, dict) or "x_embedder.proj.weight" not in state:
        raise ExportError(
            f"{path}: holds no x_embedder.proj.weight; expected a checkpoint in the layout of facebookresearch/DiT"
        )
    try:
        transformer = _transformer_for(state)
        transformer.load_state_dict(diffusers_state(state))
    except (KeyError, RuntimeError) as cause:
        raise ExportError(
            f"{path}: not in the layout of facebookresearch/DiT: {_first_line(cause)}"
        ) from cause
    embedder = transformer.transformer_blocks[0].norm1.emb
    for block in transformer.transformer_blocks:
        block.norm1.emb = embedder
    return transformer


def _transformer_for(state: dict[str, Tensor]) -> DiTTransformer2DModel:
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    if width not in DIT_HEADS:
        raise ExportError(
            f"the DiT has width {width}; known are {', '.join(map(str, DIT_HEADS))} (DiT-S, -B, -L, -XL)"
        )
    tokens = state["pos_embed"].shape[1]
    return DiTTransformer2DModel(
        num_attention_heads=DIT_HEADS[width],
        attention_head_dim=width // DIT_HEADS[width],
        in_channels=channels,
        out_channels=state["final_layer.linear.weight"].shape[0] // patch**2,
        num_layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        sample_size=round(tokens**0.5) * patch,
        patch_size=patch,
        num_embeds_ada_norm=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        norm_eps=1e-6,  # DiT's; diffusers' own default is 1e-5
    )


# DiT's names => diffusers' names; `N` is a block's number. The joint qkv projection is split, the embedder repeated per block.
_RENAMED = {
    r"x_embedder\.proj\.": "pos_embed.proj.",
    r"blocks\.(\d+)\.attn\.proj\.": r"transformer_blocks.\1.attn1.to_out.0.",
    r"blocks\.(\d+)\.mlp\.fc1\.": r"transformer_blocks.\1.ff.net.0.proj.",
    r"blocks\.(\d+)\.mlp\.fc2\.": r"transformer_blocks.\1.ff.net.2.",
    r"blocks\.(\d+)\.adaLN_modulation\.1\.": r"transformer_blocks.\1.norm1.linear.",
    r"final_layer\.adaLN_modulation\.1\.": "proj_out_1.",
    r"final_layer\.linear\.": "proj_out_2.",
}
_EMBEDDER = {
    "t_embedder.mlp.0.": "timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "timestep_embedder.linear_2.",
    "y_embedder.": "class_embedder.",
}


def diffusers_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return DiT's state dict under diffusers' names.

    Raises:
        KeyError: A tensor has a name that DiT's layout does not know.
    """
    blocks = sorted({int(key.split(".")[1]) for key in state if key.startswith("blocks.")})
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "pos_embed":
            continue  # fixed sinusoids, which diffusers computes itself
        if match := re.match(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", key):
            for name, part in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                renamed[f"transformer_blocks.{match[1]}.attn1.{name}.{match[2]}"] = part
        elif prefix := next((prefix for prefix in _EMBEDDER if key.startswith(prefix)), None):
            for block in blocks:
                renamed[
                    f"transformer_blocks.{block}.norm1.emb.{_EMBEDDER[prefix]}{key.removeprefix(prefix)}"
                ] = value
        elif pattern := next((pattern for pattern in _RENAMED if re.match(pattern, key)), None):
            renamed[re.sub(pattern, _RENAMED[pattern], key)] = value
        else:
            raise KeyError(f"unexpected tensor {key}")
    return renamed


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
