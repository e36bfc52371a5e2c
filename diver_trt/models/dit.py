"""The DiT (arXiv 2212.09748) as a base model: loading it, its networks, its own code.

It comes as a diffusers `DiTPipeline` or as a checkpoint file in DiT's own layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn

from diver_trt.bundle import TimestepFrequencies
from diver_trt.errors import ExportError, shown
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.process import Process
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.base import BaseModel, Modules
from diver_trt.models.dit_checkpoint import SUFFIXES, load_dit_checkpoint
from diver_trt.models.dit_networks import Conditioner, Predictor
from diver_trt.models.dit_pipeline import TRANSFORMERS, load_transformer
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import DIT as DIT_PIPELINE
from diver_trt.models.pipeline import (
    INDEX,
    class_names,
    component_class,
    licence,
    lora_notes,
    pipeline_index,
)
from diver_trt.models.prompts import refuse_prompts
from diver_trt.models.scheduler import ddpm_process
from diver_trt.models.training_args import DIT, Training
from diver_trt.models.vae import (
    AUTOENCODERS,
    Decoder,
    Encoder,
    check_fit,
    decoded_side,
    load_autoencoder,
    original_decode,
    original_encode,
)

# The "linear" schedule of DiT's `create_diffusion`: https://github.com/facebookresearch/DiT
DIT_PROCESS = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
DIT_VAE = "stabilityai/sd-vae-ft-mse"
"""What DiT's sample.py takes."""


@dataclass(frozen=True, kw_only=True)
class Dit(BaseModel):
    """A loaded DiT; see `BaseModel` for its facts.

    Attributes:
        transformer: The DiT; its timestep frequencies are already the right ones.
        vae: The autoencoder.
    """

    base: ClassVar[str] = "dit"
    # DiT's `forward_with_cfg` guides three channels of four "for exact reproducibility":
    # https://github.com/facebookresearch/DiT/blob/main/models.py
    guided_channels: ClassVar[int | None] = 3

    transformer: DiTTransformer2DModel
    vae: AutoencoderKL

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The transformer and the autoencoder."""
        return self.transformer, self.vae

    def modules(self, dtype: torch.dtype) -> Modules:
        """Return the networks around diffusers' own layers."""
        return Modules(
            encoder=Encoder(self.vae, dtype),
            conditioner=Conditioner(self.transformer, dtype),
            predictor=Predictor(self.transformer, dtype),
            decoder=Decoder(self.vae, dtype),
        )

    def probe_points(self, predictor: nn.Module) -> Mapping[str, nn.Module]:
        """Return where the residual stream is normalised: twice per block, and once at the end."""
        assert isinstance(predictor, Predictor)
        norms = [
            norm for block in predictor.blocks for norm in (block.attention_norm, block.mlp_norm)
        ]
        places = stage_names(len(predictor.blocks))
        return dict(zip(places, [*norms, predictor.final_norm], strict=True))

    def original_encode(self, image: Tensor) -> Tensor:
        """Return the scaled latent by diffusers' own code."""
        return original_encode(self.vae, image)

    def original_predict(self, latent: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the prediction by diffusers' own code."""
        prediction: Tensor = self.transformer(latent, time, class_labels=label).sample
        return prediction

    def original_decode(self, latent: Tensor) -> Tensor:
        """Return the image by diffusers' own code."""
        return original_decode(self.vae, latent)


DitT = TypeVar("DitT", bound=Dit)


def stage_names(blocks: int) -> list[str]:
    """Return the places of the residual stream: `"patch embedding"`, `"block 1, attention"`, ..."""
    # What a norm reads is named after the layer that wrote it: block 1 first reads the patches.
    parts = ("attention", "MLP")
    return [
        "patch embedding",
        *(f"block {block + 1}, {part}" for block in range(blocks) for part in parts),
    ]


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> Dit:
    """Load a DiT.

    Args:
        source: A diffusers directory, a name on the hub, or a file in DiT's layout.
        options: What is stated about it, without prompts: the classes of a DiT are numbers. A file
            has no VAE and takes the one of DiT's own sampler by default; the base `"dit"` states
            that it holds a DiT that predicts the noise, where nothing in the file does.

    Raises:
        ExportError: If the source is not a DiT, cannot be read, or was trained in a way that
            DIVER's equations do not cover; if a tensor is missing, unexpected, of another shape or
            not finite.
    """
    silence_loaders()
    refuse_prompts(options.prompts, source)
    if is_checkpoint(source):
        refuse_revision(source, options.revision)
        return load_checkpoint(
            Dit,
            Path(source),
            DIT,
            DIT_PROCESS,
            vae=options.vae or DIT_VAE,
            frequencies=options.timestep_frequencies,
            stated=options.base is not None,
        )
    files = ModelFiles.at(source, options.revision)
    return _from_pipeline(files, options.vae, options.timestep_frequencies)


def silence_loaders() -> None:
    """Keep what diffusers and the hub's client would print off the terminal."""
    diffusers_logging.set_verbosity_error()  # what it would warn about is checked here
    # The hub's client would print each retry while there is no network.
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def is_checkpoint(source: str) -> bool:
    """Return whether a source is a file, and not a diffusers directory or a name on the hub."""
    return source.endswith(SUFFIXES) or Path(source).is_file()


def refuse_revision(source: str, revision: str | None) -> None:
    """Refuse the revision of a source that is a file.

    Raises:
        ExportError: If there is a file and a revision.
    """
    if revision is not None and is_checkpoint(source):
        raise ExportError(
            f"{shown(source)}: is a file, and a revision ({shown(revision)}) is of a name on the "
            "hub; leave it out"
        )


def load_checkpoint(
    kind: type[DitT],
    path: Path,
    training: Training,
    process: Process,
    *,
    vae: str,
    frequencies: TimestepFrequencies | None,
    stated: bool,
) -> DitT:
    """Load a file in DiT's layout as a model of one base.

    Args:
        kind: The class of the base's models.
        path: The file.
        training: How the base's models were trained.
        process: The process that they were trained on.
        vae: Directory or hub name of the VAE, which such a file does not have.
        frequencies: The sinusoids that the weights were trained with, or None for DiT's.
        stated: Whether the user states that the file is of this base.

    Raises:
        ExportError: See `load_model`.
    """
    transformer, notes = load_dit_checkpoint(path, training, stated=stated)
    # Such a file holds the transformer alone.
    autoencoder, vae_notes = load_autoencoder(ModelFiles.at(vae))
    check_fit(autoencoder, transformer.config.in_channels, vae)
    chosen, reason = _frequencies(frequencies, "dit", "the file is in DiT's own layout")
    return _finished(
        kind,
        transformer,
        autoencoder,
        process=process,
        model_id=path.name,
        timestep_frequencies=chosen,
        frequencies_reason=reason,
        notes=(*notes, *vae_notes),
    )


def _from_pipeline(
    files: ModelFiles, vae: str | None, frequencies: TimestepFrequencies | None
) -> Dit:
    index = pipeline_index(files, DIT_PIPELINE)
    kind = component_class(index, "scheduler", None, files)
    component_class(index, "transformer", TRANSFORMERS, files)
    # A VAE that the user names replaces the pipeline's, whose class then does not matter.
    if vae is None:
        component_class(index, "vae", AUTOENCODERS, files)
    # The network
    transformer, notes = load_transformer(files.within("transformer"))
    vae_files = files.within("vae") if vae is None else ModelFiles.at(vae)
    scheduler = files.within("scheduler")
    process, process_notes = ddpm_process(
        scheduler.read_json("scheduler_config.json", "expected the scheduler of a DiTPipeline"),
        kind,
        scheduler.where("scheduler_config.json"),
        learned_variance=_learned_variance(transformer),
    )
    names = class_names(index, transformer.config.num_embeds_ada_norm, files.where(INDEX))
    autoencoder, vae_notes = load_autoencoder(vae_files)
    check_fit(autoencoder, transformer.config.in_channels, vae_files.where())
    chosen, reason = _frequencies(frequencies, *_trained_frequencies(transformer))
    return _finished(
        Dit,
        transformer,
        autoencoder,
        process=process,
        class_names=names,
        model_id=files.model_id,
        revision=files.revision,
        licence=licence(files),
        timestep_frequencies=chosen,
        frequencies_reason=reason,
        notes=(*notes, *lora_notes(files, "transformer"), *process_notes, *vae_notes),
    )


def _finished(
    kind: type[DitT],
    transformer: DiTTransformer2DModel,
    autoencoder: AutoencoderKL,
    *,
    timestep_frequencies: TimestepFrequencies,
    **facts: Any,
) -> DitT:
    # Once, in the model itself: its own code, which `compare` runs, must compute the same ones.
    set_timestep_frequencies(transformer, timestep_frequencies)
    config = transformer.config
    return kind(
        image_size=decoded_side(autoencoder, config.sample_size),
        latent_shape=(config.in_channels, config.sample_size, config.sample_size),
        scaling_factor=autoencoder.config.scaling_factor,
        num_classes=config.num_embeds_ada_norm,
        learned_variance=_learned_variance(transformer),
        timestep_frequencies=timestep_frequencies,
        transformer=transformer.float().eval().requires_grad_(False),
        vae=autoencoder.float().eval().requires_grad_(False),
        **facts,
    )


def _learned_variance(transformer: DiTTransformer2DModel) -> bool:
    """Return whether the transformer predicts a variance beside the noise.

    Raises:
        ExportError: If it predicts something else than the noise, or noise and variance.
    """
    channels, outputs = transformer.config.in_channels, transformer.out_channels
    if outputs not in (channels, 2 * channels):
        raise ExportError(
            f"the transformer maps {channels} channels to {outputs}; expected {channels} (noise) "
            f"or {2 * channels} (noise and variance)"
        )
    return bool(outputs == 2 * channels)


def set_timestep_frequencies(
    transformer: DiTTransformer2DModel, frequencies: TimestepFrequencies
) -> None:
    """Make the transformer compute the sinusoids its weights were trained with.

    diffusers' class divides by 127 where DiT divides by 128, and diffusers publishes DiT's weights
    under its own class.
    """
    # https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/embeddings.py has
    # downscale_freq_shift = 1 there, which divides by half the width minus 1.
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0 if frequencies == "dit" else 1


def _frequencies(
    asked: TimestepFrequencies | None, trained: TimestepFrequencies, reason: str
) -> tuple[TimestepFrequencies, str]:
    return (trained, reason) if asked is None else (asked, "as asked")


def _trained_frequencies(transformer: DiTTransformer2DModel) -> tuple[TimestepFrequencies, str]:
    config = transformer.config
    size = (
        config.num_layers,
        config.num_attention_heads,
        config.attention_head_dim,
        config.num_embeds_ada_norm,
    )
    # The published weights are DiT's own, converted; nothing in their configuration states it.
    if size == (28, 16, 72, 1000):
        return "dit", "this is DiT-XL for ImageNet, published with DiT's own weights"
    return "diffusers", "taken to be trained with diffusers' class"
