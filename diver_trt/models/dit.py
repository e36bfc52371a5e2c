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
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.base import Modules
from diver_trt.models.dit_checkpoint import SUFFIXES, load_dit_checkpoint
from diver_trt.models.dit_networks import Conditioner, Predictor
from diver_trt.models.dit_pipeline import TRANSFORMERS, load_transformer
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import (
    DIT_PIPELINE,
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
    Decoder,
    Encoder,
    LatentModel,
    autoencoder_files,
    decoded_side,
    load_autoencoder,
)


@dataclass(frozen=True, kw_only=True)
class Dit(LatentModel):
    """A loaded DiT; see `BaseModel` for its facts.

    Attributes:
        training: How such models are trained, where a file holds one.
        default_vae: The VAE that such a file is taken to belong to: what DiT's sample.py takes.
        transformer: The DiT; its timestep frequencies are already the right ones.
    """

    base: ClassVar[str] = "dit"
    training: ClassVar[Training] = DIT
    default_vae: ClassVar[str] = "stabilityai/sd-vae-ft-mse"
    # DiT's `forward_with_cfg` guides three channels of four "for exact reproducibility":
    # https://github.com/facebookresearch/DiT/blob/main/models.py
    guided_channels: ClassVar[int | None] = 3

    transformer: DiTTransformer2DModel

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

    def original_predict(self, latent: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the prediction by diffusers' own code."""
        prediction: Tensor = self.transformer(latent, time, class_labels=label).sample
        return prediction


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
    return load_as(Dit, source, options)


def load_as(kind: type[DitT], source: str, options: ModelOptions) -> DitT:
    """Load a model with the networks of a DiT as one of a base.

    Args:
        kind: The class of the base's models.
        source: See `load_model`; a flow is a file, since flows are published as nothing else.
        options: See `load_model`.

    Raises:
        ExportError: See `load_model`.
    """
    silence_loaders()
    refuse_prompts(options.prompts, source)
    if is_checkpoint(source):
        return _from_checkpoint(kind, source, options)
    if kind.training.is_flow:
        raise ExportError(
            f"{shown(source)}: is not a file; expected the .pt file of a {kind.training.title}. "
            "Download it and give its path."
        )
    return _from_pipeline(kind, source, options)


def silence_loaders() -> None:
    """Keep what diffusers and the hub's client would print off the terminal."""
    diffusers_logging.set_verbosity_error()  # what it would warn about is checked here
    # The hub's client would print each retry while there is no network.
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def is_checkpoint(source: str) -> bool:
    """Return whether a source is a file, and not a diffusers directory or a name on the hub."""
    return source.endswith(SUFFIXES) or Path(source).is_file()


def _from_checkpoint(kind: type[DitT], source: str, options: ModelOptions) -> DitT:
    if options.revision is not None:
        raise ExportError(
            f"{shown(source)}: is a file, and a revision ({shown(options.revision)}) is of a name "
            "on the hub; leave it out"
        )
    path = Path(source)
    transformer, notes = load_dit_checkpoint(path, kind.training, stated=options.base is not None)
    # Such a file holds the transformer alone.
    autoencoder, vae_notes = load_autoencoder(
        ModelFiles.at(options.vae or kind.default_vae), transformer.config.in_channels
    )
    return _finished(
        kind,
        transformer,
        autoencoder,
        options.timestep_frequencies,
        ("dit", "the file is in DiT's own layout"),
        process=kind.training.process,
        model_id=path.name,
        notes=(*notes, *vae_notes),
    )


def _from_pipeline(kind: type[DitT], source: str, options: ModelOptions) -> DitT:
    files = ModelFiles.at(source, options.revision)
    index = pipeline_index(files, DIT_PIPELINE)
    scheduler_kind = component_class(index, "scheduler", None, files)
    component_class(index, "transformer", TRANSFORMERS, files)
    vae_files = autoencoder_files(index, files, options.vae)
    # The network
    transformer, notes = load_transformer(files.within("transformer"))
    scheduler = files.within("scheduler")
    process, process_notes = ddpm_process(
        scheduler.read_json("scheduler_config.json", "expected the scheduler of a DiTPipeline"),
        scheduler_kind,
        scheduler.where("scheduler_config.json"),
        learned_variance=_learned_variance(transformer),
    )
    names = class_names(index, transformer.config.num_embeds_ada_norm, files.where(INDEX))
    autoencoder, vae_notes = load_autoencoder(vae_files, transformer.config.in_channels)
    return _finished(
        kind,
        transformer,
        autoencoder,
        options.timestep_frequencies,
        _trained_frequencies(transformer),
        process=process,
        class_names=names,
        model_id=files.model_id,
        revision=files.revision,
        licence=licence(files),
        notes=(*notes, *lora_notes(files, "transformer"), *process_notes, *vae_notes),
    )


def _finished(
    kind: type[DitT],
    transformer: DiTTransformer2DModel,
    autoencoder: AutoencoderKL,
    asked: TimestepFrequencies | None,
    trained: tuple[TimestepFrequencies, str],
    **facts: Any,
) -> DitT:
    frequencies, reason = trained if asked is None else (asked, "as asked")
    # Once, in the model itself: its own code, which `compare` runs, must compute the same ones.
    set_timestep_frequencies(transformer, frequencies)
    config = transformer.config
    return kind(
        image_size=decoded_side(autoencoder, config.sample_size),
        latent_shape=(config.in_channels, config.sample_size, config.sample_size),
        scaling_factor=autoencoder.config.scaling_factor,
        num_classes=config.num_embeds_ada_norm,
        learned_variance=_learned_variance(transformer),
        timestep_frequencies=frequencies,
        frequencies_reason=reason,
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


def _trained_frequencies(transformer: DiTTransformer2DModel) -> tuple[TimestepFrequencies, str]:
    """Return the sinusoids that a pipeline's weights were trained with, and why those."""
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
