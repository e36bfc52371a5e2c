"""Loading the transformer and the autoencoder of a diffusers pipeline from their folders.

diffusers' own `from_pretrained` leaves a tensor that a file lacks uninitialised, and one that it has
too many unused. Here the module is built from `config.json`, and `weights` fills it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

from diver_trt.errors import ExportError, shown
from diver_trt.export.dit_checkpoint import use_position_embedding
from diver_trt.export.model_files import ModelFiles, one_line
from diver_trt.export.weights import first_few, load_weights, stored_weights, unwrapped

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter until diffusers 0.29
AUTOENCODERS = ("AutoencoderKL",)

_POSITION = "pos_embed.pos_embed"
_TABLE = "class_embedder.embedding_table.weight"
_SIZES = (
    *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers"),
    *("sample_size", "patch_size", "num_embeds_ada_norm"),
)
_SD_WIDTHS = [
    128,
    256,
    512,
    512,
]  # Stable Diffusion's VAE, whose first files omit the scaling factor

# Names of the attention's projections until diffusers 0.15, which published VAEs still have.
_OLD_ATTENTION = re.compile(
    r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))"
)
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def check_class(config: Mapping[str, Any], classes: tuple[str, ...], where: str) -> None:
    """Refuse a configuration of another class, or of quantised weights.

    Raises:
        ExportError: If `_class_name` is there and not one of `classes`.
    """
    if (found := config.get("_class_name", classes[0])) not in classes:
        raise ExportError(f"{where}: holds a {shown(str(found))}, expected {classes[0]}")
    if config.get("quantization_config"):
        raise ExportError(
            f"{where}: its weights are quantised (quantization_config). Give the weights as they were "
            "before."
        )


def load_transformer(files: ModelFiles) -> tuple[DiTTransformer2DModel, list[str]]:
    """Load a DiT from the folder of a pipeline's transformer, in float32.

    Returns:
        The module, and notes on what was found.

    Raises:
        ExportError: If the folder holds something else, or configuration and weights contradict
            each other.
    """
    config = files.read_json("config.json", "expected the transformer of a DiTPipeline")
    where = files.where("config.json")
    check_class(config, TRANSFORMERS, where)
    sizes = {name: config[name] for name in _SIZES if name in config}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ExportError(
                f"{where}: {name} is {shown(repr(value))}, expected a whole number, 1 or more"
            )
    if config.get("sample_size", 32) % (patch := config.get("patch_size", 2)):
        raise ExportError(
            f"{where}: sample_size is {config['sample_size']}, expected a multiple of patch_size {patch}"
        )
    state, notes = stored_weights(files)
    state, prefix = unwrapped(state, "proj_out_2.weight")
    notes += [f"{files.where()}: the prefix {prefix!r} is taken off the names"] if prefix else []
    _check_blocks(config, state, where)
    position = state.pop(_POSITION, None)
    transformer: Any = _built(DiTTransformer2DModel, config, where)
    _check_null_class(config.get("num_embeds_ada_norm", 1000), state, files.where())
    load_weights(transformer, state, files.where(), "config.json")
    if position is not None:
        notes += use_position_embedding(transformer, position, files.where())
    return transformer, notes + unknown_fields(DiTTransformer2DModel, config, where)


def _check_blocks(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> None:
    stored = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
    # Without any, the names are others altogether, and are listed later.
    if stored and (layers := config.get("num_layers", 28)) != len(stored):
        raise ExportError(
            f"{where}: num_layers is {layers}, but the weights have {len(stored)} transformer blocks. "
            "Give the weights and the configuration of one model."
        )


def _check_null_class(classes: int, state: Mapping[str, Tensor], where: str) -> None:
    for name, table in state.items():
        if name.endswith(_TABLE) and table.ndim == 2 and len(table) == classes:
            raise ExportError(
                f"{where}: {name} has {classes} rows for {classes} classes, so there is no null class, "
                "which DIVER guides with. Export a model that was trained with class dropout."
            )


def load_autoencoder(files: ModelFiles) -> tuple[AutoencoderKL, list[str]]:
    """Load an AutoencoderKL from its folder, in float32.

    Returns:
        The module, and notes on what was found.

    Raises:
        ExportError: If the folder holds something else, or configuration and weights contradict
            each other, or it does not decode to three channels.
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
    _check_latent_statistics(config, where)
    state, notes = stored_weights(files)
    state, prefix = unwrapped(state, "decoder.conv_out.weight")
    notes += [f"{files.where()}: the prefix {prefix!r} is taken off the names"] if prefix else []
    autoencoder: Any = _built(AutoencoderKL, config, where)
    load_weights(autoencoder, _with_new_attention_names(state), files.where(), "config.json")
    if "scaling_factor" not in config and widths != _SD_WIDTHS:
        factor = autoencoder.config.scaling_factor
        notes.append(f"{where}: has no scaling_factor; {factor}, Stable Diffusion's, is assumed")
    return autoencoder, notes + unknown_fields(AutoencoderKL, config, where)


def _check_latent_statistics(config: Mapping[str, Any], where: str) -> None:
    if config.get("shift_factor") and config.get("latents_mean"):
        raise ExportError(
            f"{where}: has both shift_factor and latents_mean, expected one of them: which of the two "
            "latents are shifted by is not stated. Set the other one to null."
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
            or (positive and min(values) <= 0)
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


def _built(kind: Any, config: Mapping[str, Any], where: str) -> Any:
    try:
        return kind.from_config(dict(config))
    except Exception as cause:  # diffusers raises whatever a bad field makes it
        raise ExportError(
            f"{where}: not a configuration of {kind.__name__}: {one_line(cause)}"
        ) from cause


def unknown_fields(kind: Any, config: Mapping[str, Any], where: str) -> list[str]:
    """Return a note on fields that are set, and that the class does not have."""
    known = inspect.signature(kind.__init__).parameters
    unknown = [
        f"{shown(name)}={shown(repr(value))}"
        for name, value in config.items()
        if name not in known
        and not name.startswith("_")
        and value not in (None, False, 0, "", [], {})
    ]
    unknown = [field for field in unknown if field != "attention_type='default'"]
    return (
        [f"{where}: {kind.__name__} does not have {first_few(unknown)}; ignored"] if unknown else []
    )


def check_fit(transformer: DiTTransformer2DModel, autoencoder: AutoencoderKL, where: str) -> None:
    """Refuse an autoencoder with other latents than the transformer's.

    Raises:
        ExportError: If the numbers of channels differ.
    """
    latent, wanted = autoencoder.config.latent_channels, transformer.config.in_channels
    if latent != wanted:
        raise ExportError(
            f"{where}: the autoencoder has {latent} latent channels, expected the transformer's "
            f"{wanted}. Choose the one it was trained with, by --vae."
        )
