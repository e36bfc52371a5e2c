"""The transformer of a diffusers `DiTPipeline`, loaded from its folder.

diffusers' own `from_pretrained` leaves a tensor that a file lacks uninitialised, and one that it
has too many unused. Here the module is built from `config.json`, and `weights` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import DiTTransformer2DModel
from torch import Tensor

from diver_trt.errors import ExportError, shown
from diver_trt.models.dit_checkpoint import use_position_embedding
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import build_module, check_class, unknown_fields
from diver_trt.models.weights import load_weights, network_weights

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter until diffusers 0.29

_POSITION = "pos_embed.pos_embed"
_TABLE = "class_embedder.embedding_table.weight"
_SIZES = (
    *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers"),
    *("sample_size", "patch_size", "num_embeds_ada_norm"),
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
    # The defaults here and below are those of diffusers' class.
    side, patch = config.get("sample_size", 32), config.get("patch_size", 2)
    if side % patch:
        raise ExportError(
            f"{where}: sample_size is {side}, expected a multiple of patch_size {patch}"
        )
    state, notes = network_weights(files, "proj_out_2.weight")
    _check_blocks(config, state, where)
    # diffusers computes this table and does not store it, but a file may hold it.
    position = state.pop(_POSITION, None)
    transformer: Any = build_module(DiTTransformer2DModel, config, where)
    # Before the comparison of shapes, which would only report a row too few.
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
            f"{where}: num_layers is {layers}, but the weights have {len(stored)} transformer "
            "blocks. Give the weights and the configuration of one model."
        )


def _check_null_class(classes: int, state: Mapping[str, Tensor], where: str) -> None:
    for name, table in state.items():
        if name.endswith(_TABLE) and table.ndim == 2 and len(table) == classes:
            raise ExportError(
                f"{where}: {name} has {classes} rows for {classes} classes, so there is no null "
                "class, which DIVER guides with. Export a model that was trained with class "
                "dropout."
            )
