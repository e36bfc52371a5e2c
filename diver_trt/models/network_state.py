"""The tensors of a DiT within what a trainer saved: its containers, its averages, other families.

A trainer saves the network alone, or in a dictionary beside its optimiser and an average of the
weights (EMA), under names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from diver_trt.counted import few
from diver_trt.errors import ExportError, shown
from diver_trt.models.containers import contents
from diver_trt.models.weights import unwrapped

PROBE = "x_embedder.proj.weight"
HOLDERS = (
    *("ema", "ema_model", "model_ema", "ema_state_dict"),
    *("model", "model_state_dict", "state_dict", "module"),
)
"""Where trainers put the network's state dict, the averaged one first."""
# ema and swa not inside a word, such as `schema` or `swap`; avg only of a network, not of losses.
_NETWORK = "(?:model|net|network|params|state_dict|weights)"
_AVERAGED = re.compile(
    rf"(?<![a-z])(?:ema|swa|avg_?{_NETWORK}|{_NETWORK}_?avg)(?![a-z])|averag|polyak|shadow",
    re.IGNORECASE,
)
# `model_no_ema` and `non_ema` are the weights that are not averaged.
_NOT_AVERAGED = re.compile(
    r"(?<![a-z])(?:no|non|not|without|wo|pre)[_-]?(?:ema|swa|avg|averag)", re.I
)
_DEEPEST = 4

FAMILIES = {
    "y_embedder.y_proj.": "PixArt, which reads a text",
    "double_blocks.": "FLUX, which reads a text",
    "joint_blocks.": "Stable Diffusion 3, which reads a text",
    "sideblocks.": "MDTv2, whose side blocks are not supported",
    "in_blocks.": "U-ViT, whose long skip connections are not supported",
    "input_blocks.": "a UNet of latent diffusion, whose text encoder is not supported",
    "feat_rope.": "LightningDiT, whose rotary embedding and SwiGLU are not supported",
}
"""Prefixes of tensor names that identify networks which are not DiTs, and what each is."""


def network_state(held: Mapping[Any, Any], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the DiT's tensors under DiT's names, without the containers of a trainer.

    Args:
        held: What the file holds.
        where: The file, as messages name it.

    Returns:
        The tensors, and notes on what was found and assumed.

    Raises:
        ExportError: If no DiT is there, or several are; if it is another family's network; or if
            its averaged weights are in a form that is not a state dict.
    """
    # Averaged weights first: a trainer samples with them, and their images are better.
    found = sorted(_state_dicts(held, (), set()), key=lambda pair: _preference(pair[0]))
    if not found:
        names = [
            name
            for key, value in held.items()
            for name in (
                [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [str(key)]
            )
        ]
        _refuse_other_families(names, where)
        raise _without_dit(names, where)
    path, state = found[0]
    if len(found) > 1 and _preference(found[1][0]) == _preference(path):
        networks = few([".".join(path) for path, _ in found])
        raise ExportError(
            f"{where}: holds several networks ({networks}). Save one state dict alone."
        )
    notes = _averages_without_weights(held, path, where)
    if others := [part for part in path if part not in HOLDERS]:
        notes.append(
            f"the weights under {shown('.'.join(path))} are read ({others[0]} is not a usual name)"
        )
    tensors = {str(name): tensor for name, tensor in state.items()}
    # Averages count their updates in a tensor of one integer, and no tensor of a DiT is one.
    counters = [name for name, tensor in tensors.items() if _is_counter(tensor)]
    if counters:
        notes.append(f"its counters are left out: {few(counters)}")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
    tensors, prefix = unwrapped(tensors, PROBE)
    if prefix:
        notes.append(f"the prefix {prefix!r} is taken off the names of its tensors")
    if PROBE not in tensors:
        raise _without_dit(list(tensors), where)
    _refuse_other_families(tensors, where)
    return tensors, notes


def _without_dit(names: Sequence[str], where: str) -> ExportError:
    return ExportError(
        f"{where}: holds no {PROBE}, but {few(names) or 'nothing'}; expected a checkpoint in "
        "the layout of facebookresearch/DiT. Save the network's state dict alone."
    )


def _state_dicts(
    held: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield the state dicts of DiTs in nested dictionaries, each with the keys that lead to it."""
    if any(str(name).endswith(PROBE) for name in held):
        yield path, held
    elif len(path) < _DEEPEST and id(held) not in seen:
        seen.add(id(held))
        for key, value in held.items():
            if isinstance(value, Mapping):
                yield from _state_dicts(value, (*path, str(key)), seen)


def _preference(path: tuple[str, ...]) -> tuple[bool, int]:
    """Return a key that sorts averaged weights to the front, then names that trainers use."""
    known = [HOLDERS.index(part) for part in path if part in HOLDERS]
    return not any(map(_is_averaged, path)), min(known, default=len(HOLDERS))


def _is_counter(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point()


def _is_averaged(name: str) -> bool:
    return bool(_AVERAGED.search(name)) and not _NOT_AVERAGED.search(name)


def _averages_without_weights(
    held: Mapping[Any, Any], path: tuple[str, ...], where: str
) -> list[str]:
    """Return notes on averages that are empty where other weights are read.

    Raises:
        ExportError: If averaged weights are there in a form that is not a state dict.
    """
    notes: list[str] = []
    if any(map(_is_averaged, path)):
        return notes
    level: Any = held
    # Averages lie beside the weights, or beside a dictionary that holds them.
    for part in path:
        for key, value in level.items():
            if not _is_averaged(str(key)):
                continue
            if value is None or (isinstance(value, (Mapping, list)) and not value):
                notes.append(
                    f"its {shown(str(key))} is empty; the weights under {part}, not averaged, are "
                    "read"
                )
            elif any(isinstance(item, Tensor) for _, items in contents(value) for item in items):
                raise ExportError(
                    f"{where}: {shown(str(key))} is a {type(value).__name__} without {PROBE}, "
                    "expected a state dict. Save the averaged weights as a state dict."
                )
        level = level[next(key for key in level if str(key) == part)]
    return notes


def _refuse_other_families(names: Iterable[str], where: str) -> None:
    """Refuse a network that is known by its tensors' names and is not a DiT.

    Raises:
        ExportError: If it is one of `FAMILIES`.
    """
    for name in names:
        for mark, family in FAMILIES.items():
            # Also behind the prefix of a wrapper.
            if name.startswith(mark) or f".{mark}" in name:
                raise ExportError(
                    f"{where}: has {shown(name)}, as {family}; expected a DiT, a SiT or a REPA "
                    "model. Export one of those."
                )
