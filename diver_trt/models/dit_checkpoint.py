"""A checkpoint file in the layout of facebookresearch/DiT, read into diffusers' module.

qkv is split, the timestep and label embedder are repeated per block; the rest is renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diver_trt.errors import ExportError, shown
from diver_trt.models.network_state import PROBE, network_state
from diver_trt.models.training_args import (
    DIT,
    Training,
    check_base,
    count_classes,
    training_args,
)
from diver_trt.models.weights import (
    check_tensors,
    compare_shapes,
    load_weights,
    read_torch_file,
)

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_TABLE = "y_embedder.embedding_table.weight"

# Width: (name, heads, blocks). A checkpoint's tensors do not show the heads; its settings may.
SIZES = {
    384: ("S", 6, 12),
    768: ("B", 12, 12),
    1024: ("L", 16, 24),
    1152: ("XL", 16, 28),
}

POSITION_TOLERANCE = 1e-4
"""Largest difference at which a float32 position embedding is still the sine table."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    width: int
    heads: int
    channels: int
    patch: int
    outputs: int
    blocks: int
    rows: int
    grid: int


def load_dit_checkpoint(
    path: Path, training: Training = DIT, *, stated: bool = False
) -> tuple[DiTTransformer2DModel, list[str]]:
    """Load a file such as `DiT-XL-2-256x256.pt`, or the EMA weights of a training checkpoint.

    Args:
        path: The file, read with `weights_only=True`.
        training: How the models of the base that it is loaded as were trained.
        stated: Whether the user states that it is one of them.

    Returns:
        The module, and notes on what was found and assumed.

    Raises:
        ExportError: If the file is missing, unsafe to load, not in DiT's layout, or of a model that
            predicts something else or has no null class.
    """
    where = shown(str(path))
    held = read_torch_file(path)
    if not isinstance(held, Mapping):
        raise ExportError(
            f"{where}: holds a {type(held).__name__}, expected a {training.title}'s state dict"
        )
    # What the file states of its training, which is stored beside the network
    args = training_args(held)
    assumed = check_base(args, path, training, stated=stated)
    # Exactly the network's tensors
    state, notes = network_state(held, where)
    state, dropped = _without_projectors(state, training, where)
    notes += dropped
    check_tensors(state, where)
    sizes = _sizes(state, args, training, where)
    # By DiT's own names, so that a message names the tensors as the file does.
    compare_shapes(_expected_shapes(sizes), state, where, f"a {training.title} of its size")
    notes += _doubts(sizes, args, training, where)
    # DiT and SiT begin there, so that an untrained network predicts nothing.
    if not bool(state["final_layer.linear.weight"].any()):
        notes.append("its final layer is zero throughout, as before any training")
    # SiT with `learn_sigma` drops the second half of its outputs in `forward`:
    # https://github.com/willisma/SiT/blob/main/models.py
    if training.is_flow and sizes.outputs == 2 * sizes.channels:
        state, sizes = _first_half(state, sizes), replace(sizes, outputs=sizes.channels)
        notes.append("the second half of its outputs, which its own sampler drops, is left out")
    classes, doubts = count_classes(sizes.rows, args, where)
    notes += doubts
    # diffusers' module with the file's weights
    transformer = _transformer(sizes, classes)
    load_weights(
        transformer, _diffusers_state(state, sizes), where, f"a {training.title} of its size"
    )
    notes += use_position_embedding(transformer, state["pos_embed"], where)
    # DiT has one embedder where diffusers has one in each block; shared, it is stored once.
    embedder = transformer.transformer_blocks[0].norm1.emb
    for block in transformer.transformer_blocks:
        block.norm1.emb = embedder
    return transformer, notes + assumed


def _without_projectors(
    state: dict[str, Tensor], training: Training, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Set aside the heads that REPA (arXiv 2410.06940) trains with and does not sample with."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("projectors.")}
    count = len(state) - len(kept)
    if count and not training.has_projectors:
        raise ExportError(
            f"{where}: has projectors.*, as REPA's models do; expected a {training.title} that "
            f"predicts {training.predicts}. Export it with --base repa."
        )
    return kept, (
        [f"its {count} tensors projectors.*, which only REPA's training used, are left out"]
        if count
        else []
    )


def _first_half(state: dict[str, Tensor], sizes: _Sizes) -> dict[str, Tensor]:
    """Return a state dict whose final layer computes only the first half of the channels."""
    halved = dict(state)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        # Rows are the values of a patch, the channels of each pixel together (DiT's unpatchify).
        values = state[name]
        rows = values.reshape(sizes.patch**2, sizes.outputs, *values.shape[1:])
        halved[name] = rows[:, : sizes.channels].flatten(0, 1)
    return halved


def _sizes(
    state: Mapping[str, Tensor], args: Mapping[str, list[Any]], training: Training, where: str
) -> _Sizes:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != rank or 0 in state[name].shape:
            found = f"has the shape {list(state[name].shape)}" if name in state else "is missing"
            raise ExportError(
                f"{where}: {name} {found}, expected {rank} axes as in a DiT's checkpoint. Give the "
                "file as it was saved."
            )
        return tuple(state[name].shape)

    width, channels, patch, _ = shape(PROBE, 4)
    tokens = shape("pos_embed", 3)[1]
    # DiT's images are square, and nothing else in a file gives their side.
    grid = round(tokens**0.5)
    if grid * grid != tokens:
        raise ExportError(
            f"{where}: pos_embed has {tokens} tokens, which is not a square number. Export a model "
            "of square images."
        )
    # A gap in the numbers shows later, as a block whose tensors are missing.
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return _Sizes(
        width=width,
        heads=_heads(width, args, training, where),
        channels=channels,
        patch=patch,
        outputs=shape("final_layer.linear.weight", 2)[0] // patch**2,
        blocks=len(blocks),
        rows=shape(_TABLE, 2)[0],
        grid=grid,
    )


def _heads(width: int, args: Mapping[str, list[Any]], training: Training, where: str) -> int:
    """Return the number of attention heads, by the width or as the settings state it."""
    stated = {value for value in args.get("num_heads", []) if type(value) is int}
    known = {SIZES[width][1]} if width in SIZES else stated
    if not known:
        sizes = ", ".join(
            f"{size} ({training.family}-{name})" for size, (name, _, _) in SIZES.items()
        )
        raise ExportError(
            f"{where}: has width {width}, expected one of {sizes}. The number of heads is not in "
            "the file; save it with args=argparse.Namespace(num_heads=...)."
        )
    if len(known | stated) > 1 or (heads := min(known)) < 1 or width % heads:
        raise ExportError(
            f"{where}: its training settings have num_heads={min(stated)}, which its width of "
            f"{width} contradicts. Give the file as it was saved."
        )
    return heads


def _layers(sizes: _Sizes) -> dict[str, tuple[tuple[int, ...], list[str]]]:
    """Return, by the name of each layer of a DiT, its weight's shape and its names in diffusers."""
    d, patch = sizes.width, sizes.patch
    blocks = {f"blocks.{i}": f"transformer_blocks.{i}" for i in range(sizes.blocks)}
    # DiT's one embedder is in every block of diffusers' module.
    embedders = [f"{block}.norm1.emb.timestep_embedder" for block in blocks.values()]
    layers: dict[str, tuple[tuple[int, ...], list[str]]] = {
        "x_embedder.proj": ((d, sizes.channels, patch, patch), ["pos_embed.proj"]),
        # 256 is `frequency_embedding_size` of DiT's TimestepEmbedder.
        "t_embedder.mlp.0": ((d, 256), [f"{embedder}.linear_1" for embedder in embedders]),
        "t_embedder.mlp.2": ((d, d), [f"{embedder}.linear_2" for embedder in embedders]),
        "final_layer.linear": ((patch * patch * sizes.outputs, d), ["proj_out_2"]),
        "final_layer.adaLN_modulation.1": ((2 * d, d), ["proj_out_1"]),
    }
    for own, theirs in blocks.items():
        # In the order of timm's Attention, which DiT takes
        projections = [f"{theirs}.attn1.{name}" for name in ("to_q", "to_k", "to_v")]
        layers |= {
            f"{own}.attn.qkv": ((3 * d, d), projections),
            f"{own}.attn.proj": ((d, d), [f"{theirs}.attn1.to_out.0"]),
            # DiT's mlp_ratio of 4
            f"{own}.mlp.fc1": ((4 * d, d), [f"{theirs}.ff.net.0.proj"]),
            f"{own}.mlp.fc2": ((d, 4 * d), [f"{theirs}.ff.net.2"]),
            # Shift, scale and gate, of the attention and of the MLP
            f"{own}.adaLN_modulation.1": ((6 * d, d), [f"{theirs}.norm1.linear"]),
        }
    return layers


def _expected_shapes(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a DiT by DiT's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, sizes.grid**2, sizes.width),
        _TABLE: (sizes.rows, sizes.width),
    }
    for name, (shape, _) in _layers(sizes).items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def _diffusers_state(state: Mapping[str, Tensor], sizes: _Sizes) -> dict[str, Tensor]:
    """Return DiT's state dict under diffusers' names, without `pos_embed`.

    `use_position_embedding` handles that one.
    """
    renamed = {
        f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight": state[_TABLE]
        for i in range(sizes.blocks)
    }
    for own, (_, names) in _layers(sizes).items():
        for kind in ("weight", "bias"):
            tensor = state[f"{own}.{kind}"]
            # qkv [3 D, D] => three times [D, D]
            parts = tensor.chunk(3) if own.endswith(".qkv") else [tensor] * len(names)
            for name, part in zip(names, parts, strict=True):
                renamed[f"{name}.{kind}"] = part
    return renamed


def _doubts(
    sizes: _Sizes, args: Mapping[str, list[Any]], training: Training, where: str
) -> list[str]:
    """Compare the sizes with the model's name in the settings and with the published ones."""
    if sizes.width not in SIZES:
        return []
    size_name, _, blocks = SIZES[sizes.width]
    name = f"{training.family}-{size_name}"
    full_name = f"{name}/{sizes.patch}"
    for stated in args.get("model", []):
        size = re.match(rf"({training.family}-(?:S|B|L|XL))/(\d+)", str(stated))
        if size and size[0] != full_name:
            raise ExportError(
                f"{where}: its training settings have model={shown(repr(stated))}, but its "
                f"tensors are those of a {full_name}. Give the file as it was saved."
            )
    if sizes.blocks != blocks:
        return [f"it has {sizes.blocks} blocks, where {name} has {blocks}"]
    return []


def _transformer(sizes: _Sizes, classes: int) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=sizes.width // sizes.heads,
        in_channels=sizes.channels,
        out_channels=sizes.outputs,
        num_layers=sizes.blocks,
        sample_size=sizes.grid * sizes.patch,
        patch_size=sizes.patch,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,  # DiT's; diffusers' own default is 1e-5
    )


def use_position_embedding(
    transformer: DiTTransformer2DModel, stored: Tensor, where: str
) -> list[str]:
    """Put a file's position embedding into the transformer where it is not the sine table.

    Args:
        transformer: The module, which computes the sine table itself.
        stored: The file's, [1, tokens, width].
        where: The file, as the message names it.

    Returns:
        A note if the file's is used.

    Raises:
        ExportError: If it has another shape.
    """
    table = transformer.pos_embed.pos_embed
    compare_shapes({"pos_embed": tuple(table.shape)}, {"pos_embed": stored}, where, "its sizes")
    # In the file's own type, since float16 and bfloat16 have rounded the table.
    difference = float((stored.float() - table.to(stored.dtype).float()).abs().max())
    if difference <= max(POSITION_TOLERANCE, torch.finfo(stored.dtype).eps):
        return []
    del transformer.pos_embed.pos_embed
    # A parameter, unlike the table, is hashed into the model's identity.
    # Contiguous, which a resized table often is not.
    own = stored.float().clone(memory_format=torch.contiguous_format)
    transformer.pos_embed.pos_embed = nn.Parameter(own, requires_grad=False)
    return [
        f"its position embedding is not the sine table (up to {difference:.2g} off); it is used"
    ]
