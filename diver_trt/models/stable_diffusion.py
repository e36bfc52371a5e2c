"""Stable Diffusion (arXiv 2112.10752) as a base model: a UNet conditioned on a prompt per class.

It comes as a diffusers `StableDiffusionPipeline` with one CLIP text encoder: 1.x, and 2.x where it
predicts the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diver_trt.errors import ExportError, shown
from diver_trt.method.ddpm import Ddpm
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.base import Modules
from diver_trt.models.dit import silence_loaders
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import (
    STABLE_DIFFUSION,
    component_class,
    licence,
    lora_notes,
    pipeline_index,
)
from diver_trt.models.prompts import prompt_doubts, prompts_from_options
from diver_trt.models.scheduler import ddpm_process
from diver_trt.models.text_encoder import embedded_prompts
from diver_trt.models.unet import CHANNELS, UNETS, load_unet
from diver_trt.models.unet_networks import Conditioner, Predictor
from diver_trt.models.vae import (
    Decoder,
    Encoder,
    LatentModel,
    autoencoder_files,
    decoded_side,
    load_autoencoder,
)


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(LatentModel):
    """A loaded Stable Diffusion; see `BaseModel` for its facts.

    Attributes:
        unet: The UNet.
        table: The embedding of each class's prompt, then of the null class's, [classes + 1, S * E].
        tokens: Number `S` of tokens of a prompt.
    """

    base: ClassVar[str] = "sd"
    guided_channels: ClassVar[int | None] = None  # all of them, as in diffusers' pipeline

    unet: UNet2DConditionModel
    table: nn.Embedding
    tokens: int

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The UNet, the autoencoder and the prompts: other prompts make another model."""
        return self.unet, self.vae, self.table

    def modules(self, dtype: torch.dtype) -> Modules:
        """Return the networks around diffusers' own layers."""
        return Modules(
            encoder=Encoder(self.vae, dtype),
            conditioner=Conditioner(self.unet, self.table, dtype),
            predictor=Predictor(self.unet, self.tokens, dtype),
            decoder=Decoder(self.vae, dtype),
        )

    def probe_points(self, predictor: nn.Module) -> Mapping[str, nn.Module]:
        """Return where the tokens are normalised: three times per transformer block."""
        assert isinstance(predictor, Predictor)
        return dict(predictor.layer_norms())

    def original_predict(self, latent: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the prediction by diffusers' own code."""
        text = self.table(label).unflatten(1, (self.tokens, -1))
        prediction: Tensor = self.unet(latent, time, encoder_hidden_states=text).sample
        return prediction


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> StableDiffusion:
    """Load a Stable Diffusion, and run its text encoder on every prompt.

    Args:
        source: A diffusers directory, or a name on the hub.
        options: What is stated about it, without sinusoids, which a UNet's configuration has. The
            base has no effect, since a pipeline states what it is; the default of the prompts is
            ImageNet's classes with D4M's.

    Raises:
        ExportError: If the source is not such a pipeline, cannot be read, or predicts something
            else than the noise; if a tensor is missing, unexpected, of another shape or not finite;
            if a prompt is too long.
        MissingExtraError: If transformers is not installed.
    """
    silence_loaders()
    if options.timestep_frequencies is not None:
        raise ExportError(
            f"{shown(source)}: a UNet's configuration states its own sinusoids; leave out "
            "--timestep-frequencies"
        )
    files = ModelFiles.at(source, options.revision)
    index = pipeline_index(files, STABLE_DIFFUSION)
    scheduler_kind = component_class(index, "scheduler", None, files)
    component_class(index, "unet", UNETS, files)
    vae_files = autoencoder_files(index, files, options.vae)
    # Network, VAE and chain
    unet, notes = load_unet(files.within("unet"))
    autoencoder, vae_notes = load_autoencoder(vae_files, CHANNELS)
    process, process_notes = _process(files.within("scheduler"), scheduler_kind)
    # Prompts => table [classes + 1, S E]
    chosen = options.prompts or prompts_from_options(None, None, None, None)
    table, tokens, text_notes = embedded_prompts(
        files.within("text_encoder"), files.within("tokenizer"), chosen
    )
    _check_text_width(table, tokens, unet, files)
    side = unet.config.sample_size
    return StableDiffusion(
        model_id=files.model_id,
        revision=files.revision,
        licence=licence(files),
        image_size=decoded_side(autoencoder, side),
        latent_shape=(CHANNELS, side, side),
        scaling_factor=autoencoder.config.scaling_factor,
        num_classes=len(chosen.names),
        class_names=chosen.names,
        prompts=chosen.stored,
        process=process,
        # As many outputs as latent channels are the noise alone.
        learned_variance=False,
        notes=(
            *(*notes, *lora_notes(files, "unet"), *process_notes, *vae_notes, *text_notes),
            *prompt_doubts(chosen),
        ),
        unet=unet.float().eval().requires_grad_(False),
        vae=autoencoder.float().eval().requires_grad_(False),
        table=table,
        tokens=tokens,
    )


def _process(files: ModelFiles, kind: str) -> tuple[Ddpm, list[str]]:
    """Return the chain and the steps that diffusers' pipeline takes on it with DDIM."""
    name = "scheduler_config.json"
    config = files.read_json(name, "expected the scheduler of a StableDiffusionPipeline")
    process, notes = ddpm_process(
        config, kind, files.where(name), learned_variance=False, own_steps=True
    )
    if not isinstance(last := config.get("set_alpha_to_one", True), bool):
        raise ExportError(
            f"{files.where(name)}: set_alpha_to_one is {shown(repr(last))}, expected true or false"
        )
    # The pipeline replaces any other steps_offset by 1 (`steps_offset!=1` in its __init__):
    # https://github.com/huggingface/diffusers/blob/main/src/diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py
    return replace(process, steps_offset=1, set_alpha_to_one=last), notes


def _check_text_width(table: nn.Embedding, tokens: int, unet: Any, files: ModelFiles) -> None:
    width, expected = table.embedding_dim // tokens, unet.config.cross_attention_dim
    if width != expected:
        raise ExportError(
            f"{files.where('text_encoder')}: its states have {width} values, expected the UNet's "
            f"{expected} (cross_attention_dim). Give the text encoder that it was trained with."
        )
