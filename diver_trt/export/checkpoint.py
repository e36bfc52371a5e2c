"""Loading a class-conditional DiT and its VAE: a diffusers `DiTPipeline`, or a checkpoint file in DiT's own layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import ModelCard
from huggingface_hub.utils import logging as hub_logging

from diver_trt.errors import ExportError, shown
from diver_trt.export.components import (
    AUTOENCODERS,
    TRANSFORMERS,
    check_fit,
    load_autoencoder,
    load_transformer,
)
from diver_trt.export.dit_checkpoint import SUFFIXES, load_dit_checkpoint
from diver_trt.export.model_files import ModelFiles
from diver_trt.export.scheduler import noise_schedule
from diver_trt.method.schedule import NoiseSchedule

TimestepFrequencies = Literal["dit", "diffusers"]
Base = Literal["dit"]

DIT_NOISE_SCHEDULE = NoiseSchedule(
    kind="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000
)
DIT_VAE = "stabilityai/sd-vae-ft-mse"
INDEX = "model_index.json"


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
        notes: What was assumed, taken off or set aside, a sentence each.
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
    notes: tuple[str, ...] = ()


def load_model(
    source: str,
    *,
    revision: str | None = None,
    vae: str | None = None,
    timestep_frequencies: TimestepFrequencies | None = None,
    base: Base | None = None,
) -> Model:
    """Load a model for export.

    Args:
        source: A diffusers directory, a name on the hub, or a file in DiT's layout.
        revision: Branch, tag or commit on the hub.
        vae: Directory or hub name of another VAE; a file has none and takes the one of DiT's own
            sampler by default.
        timestep_frequencies: The sinusoids the weights were trained with; None decides by where the
            weights come from.
        base: `"dit"` states that a file holds a DiT that predicts the noise, where nothing in the file
            does.

    Raises:
        ExportError: If the source is not a DiT, cannot be read, or was trained in a way that DIVER's
            equations do not cover; if a tensor is missing, unexpected, of another shape or not finite.
    """
    diffusers_logging.set_verbosity_error()  # what it would warn about is checked here
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports each retry while there is no network
    if source.endswith(SUFFIXES) or Path(source).is_file():
        return _from_file(Path(source), vae, timestep_frequencies, base)
    return _from_pipeline(ModelFiles.at(source, revision), vae, timestep_frequencies)


def _from_file(
    path: Path, vae: str | None, frequencies: TimestepFrequencies | None, base: Base | None
) -> Model:
    transformer, notes = load_dit_checkpoint(path, base)
    autoencoder, vae_notes = load_autoencoder(ModelFiles.at(vae or DIT_VAE))
    check_fit(transformer, autoencoder, vae or DIT_VAE)
    chosen, reason = _frequencies(frequencies, "dit", "the file is in DiT's own layout")
    return _finished(
        transformer,
        autoencoder,
        noise_schedule=DIT_NOISE_SCHEDULE,
        class_names=None,
        model_id=path.name,
        revision=None,
        licence=None,
        timestep_frequencies=chosen,
        frequencies_reason=reason,
        notes=(*notes, *vae_notes),
    )


def _from_pipeline(
    files: ModelFiles, vae: str | None, frequencies: TimestepFrequencies | None
) -> Model:
    index = _pipeline_index(files)
    kind = _component(index, "scheduler", None, files)
    _component(index, "transformer", TRANSFORMERS, files)
    transformer, notes = load_transformer(files.within("transformer"))
    if vae is None:
        _component(index, "vae", AUTOENCODERS, files)
    vae_files = files.within("vae") if vae is None else ModelFiles.at(vae)
    scheduler = files.within("scheduler")
    schedule, schedule_notes = noise_schedule(
        scheduler.read_json("scheduler_config.json", "expected the scheduler of a DiTPipeline"),
        kind,
        scheduler.where("scheduler_config.json"),
        learned_variance=transformer.out_channels == 2 * transformer.config.in_channels,
    )
    names = _class_names(index, transformer.config.num_embeds_ada_norm, files.where(INDEX))
    autoencoder, vae_notes = load_autoencoder(vae_files)
    check_fit(transformer, autoencoder, vae_files.where())
    chosen, reason = _frequencies(frequencies, *_trained_frequencies(transformer))
    return _finished(
        transformer,
        autoencoder,
        noise_schedule=schedule,
        class_names=names,
        model_id=Path(files.source).name if files.is_local else files.source,
        revision=files.revision,
        licence=_licence(files),
        timestep_frequencies=chosen,
        frequencies_reason=reason,
        notes=(*notes, *schedule_notes, *vae_notes),
    )


def _finished(
    transformer: DiTTransformer2DModel, autoencoder: AutoencoderKL, **facts: Any
) -> Model:
    set_timestep_frequencies(transformer, facts["timestep_frequencies"])
    return Model(
        transformer=transformer.float().eval().requires_grad_(False),
        vae=autoencoder.float().eval().requires_grad_(False),
        **facts,
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
    if size == (28, 16, 72, 1000):
        return "dit", "this is DiT-XL for ImageNet, published with DiT's own weights"
    return "diffusers", "taken to be trained with diffusers' class"


def _pipeline_index(files: ModelFiles) -> dict[str, Any]:
    expected = "expected a diffusers pipeline directory, a hub name or a .pt file"
    index = files.read_json(INDEX, expected)
    if (kind := index.get("_class_name")) != "DiTPipeline":
        raise ExportError(
            f"{files.where()}: holds a {shown(str(kind))}, expected a DiTPipeline (a class-conditional "
            "diffusion transformer)"
        )
    return index


def _component(
    index: Mapping[str, Any], name: str, classes: tuple[str, ...] | None, files: ModelFiles
) -> str:
    """Return the class of a component; `classes` are those that are accepted, None for any of diffusers'."""
    library, kind = (
        entry if isinstance(entry := index.get(name), list) and len(entry) == 2 else (None, None)
    )
    expected = " or ".join(classes[:1]) if classes else "one of diffusers'"
    if library != "diffusers" or not isinstance(kind, str) or (classes and kind not in classes):
        found = f"{library}.{kind}" if kind else "missing"
        raise ExportError(
            f"{files.where(INDEX)}: the {name} is {shown(found)}, expected {expected}"
            + (". Choose another one with --vae." if name == "vae" else "")
        )
    return kind


def _class_names(index: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """Return `id2label` of model_index.json in the order of its classes, or None where it is empty."""
    names = index.get("id2label")
    if not names:
        return None
    remedy = "Correct it, or leave id2label out."
    if not isinstance(names, dict):
        raise ExportError(
            f"{where}: id2label is a {type(names).__name__}, expected an object. {remedy}"
        )
    for key, name in names.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):  # int() raises at thousands of digits
            raise ExportError(
                f"{where}: id2label has the key {shown(repr(key))}, expected class numbers. {remedy}"
            )
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ExportError(
                f"{where}: id2label names class {key} {shown(repr(name))}, expected a text on one "
                f"line. {remedy}"
            )
    wanted = {str(label) for label in range(classes)}
    if wrong := sorted(wanted ^ names.keys(), key=int):
        what = "has no" if wrong[0] in wanted else "has a"
        raise ExportError(
            f"{where}: id2label {what} class {wrong[0]}: it names {len(names)} classes, the transformer "
            f"has {classes}, 0 to {classes - 1}. {remedy}"
        )
    return tuple(names[str(label)] for label in range(classes))


def _licence(files: ModelFiles) -> str | None:
    card = files.find("README.md")
    try:
        stated = ModelCard.load(card).data.license if card else None
    except Exception:  # a card without a header simply states none
        return None
    return str(stated) if stated else None
