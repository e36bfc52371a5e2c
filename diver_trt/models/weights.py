"""Reading the tensors of a model, and holding them against what its configuration asks for.

Nothing is left to a loader that fills a gap: every tensor is there, has the expected shape, holds
floating-point numbers that are all finite, and is used.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diver_trt.counted import few
from diver_trt.errors import ExportError, shown
from diver_trt.models.model_files import ModelFiles, one_line

WEIGHTS = "diffusion_pytorch_model"
STEMS: Mapping[str, str] = {"safetensors": WEIGHTS, "bin": WEIGHTS}
"""The beginning of a weight file's name by its ending, as diffusers writes it."""
VARIANTS = ("fp16", "bf16")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

WRAPPERS = (
    *("module", "_orig_mod", "model", "ema", "ema_model", "net", "dit", "_forward_module"),
    *("diffusion_model", "transformer", "network", "denoiser", "backbone", "shadow"),
    "online_model",
)
"""Prefixes that DistributedDataParallel, torch.compile, Lightning and trainers add to names."""

# "Unsupported global: GLOBAL a.b was …", "Trying to load unsupported GLOBAL a.b whose …"
_FOREIGN = re.compile(r"unsupported (?:global|class)[^\s:]*:? (?:GLOBAL )?([\w.]+)", re.IGNORECASE)


def read_torch_file(path: Path) -> Any:
    """Return what a file of `torch.save` or safetensors holds, on the CPU.

    Raises:
        ExportError: If the file is missing, damaged, or would run code.
    """
    if not path.is_file():
        raise ExportError(f"{shown(str(path))}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # A file of torch before 1.6 is not an archive, and cannot be mapped into memory.
        mapped = zipfile.is_zipfile(path)
        # DiT's trainer stores its settings as a Namespace, which holds data alone:
        # https://github.com/facebookresearch/DiT/blob/main/train.py
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as cause:  # UnpicklingError, RuntimeError, EOFError, SafetensorError and more
        raise ExportError(
            f"{shown(str(path))}: cannot be loaded safely as tensors "
            f"({_reading_failure(path, cause)})"
        ) from cause


def _reading_failure(path: Path, cause: Exception) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "it is a pointer of Git LFS, not the weights; run `git lfs pull`"
    message = one_line(cause, 10_000)
    if foreign := _FOREIGN.search(message):
        return f"it refers to {foreign[1]}, which is not data; save the state dict alone"
    if message.startswith("Weights only load failed"):
        # The rest of the message advises weights_only=False, which runs what a file holds.
        return "it is not a file of torch.save, or a damaged one"
    return one_line(message)


def stored_weights(
    files: ModelFiles, stems: Mapping[str, str] = STEMS, without: str = ""
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a pipeline's component by name, and notes on where they come from.

    The files are looked for in this order: safetensors before `.bin`, then the variants of lower
    precision. Where one file and shards are both there, the library decides that the component is
    of: diffusers reads the shards, transformers the one file.

    Args:
        files: The component's folder.
        stems: See `STEMS`, which are diffusers'; others are transformers'.
        without: Tensors whose names end in this are left out, if it is not empty.

    Raises:
        ExportError: If the folder has no weights, a file is damaged, or a tensor is not finite.
    """
    # Precision first: a .bin file of float32 is read before safetensors of float16.
    for variant in ("", *VARIANTS):
        dotted = f".{variant}" if variant else ""
        for kind, stem in stems.items():
            single, index = f"{stem}{dotted}.{kind}", f"{stem}.{kind}.index{dotted}.json"
            names, notes = _chosen(files, single, index, shards_first=stems is STEMS)
            if not names:
                continue
            if variant:
                notes.append(
                    f"{files.where()}: only the {variant} weights are there; they are read"
                )
            paths = {
                name: files.need(name, "the index of shards lists it; download it")
                for name in names
            }
            return _read_all(files, paths, without), notes
    expected = " or ".join(f"{stem}.{kind}" for kind, stem in stems.items())
    raise ExportError(
        f"{files.where()}: has no {expected}, nor their {' or '.join(VARIANTS)} variants. Save the "
        "component with save_pretrained."
    )


def _chosen(
    files: ModelFiles, single: str, index: str, *, shards_first: bool
) -> tuple[list[str], list[str]]:
    """Return the names of the files to read, none if there are none, and notes."""
    alone = [single] if files.has(single) else []
    if not files.has(index):
        return alone, []
    shards = _shards(files, index)
    if not alone:
        return shards, []
    # save_pretrained deletes earlier shards, and leaves their index and an earlier single file.
    if not all(map(files.has, shards)):
        return alone, []
    read, library = ("shards are", "diffusers") if shards_first else ("file is", "transformers")
    note = (
        f"{files.where()}: has {single} and shards, which may differ; the {read} read, as in "
        f"{library}"
    )
    return shards if shards_first else alone, [note]


def _shards(files: ModelFiles, index: str) -> list[str]:
    """Return the names of the shards that an index lists."""
    listed = files.read_json(index, "expected an index of shards")
    try:
        names = sorted(set(listed["weight_map"].values()))
        # A name with a folder in it could lead out of the model's own.
        if not all(Path(name).name == name for name in names):
            raise ValueError("a shard's name is not a plain file name")
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ExportError(
            f"{files.where(index)}: is not an index of shards ({one_line(cause)})"
        ) from cause
    return names


def _read_all(files: ModelFiles, paths: Mapping[str, Path], without: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, path in paths.items():
        found = read_torch_file(path)
        if not isinstance(found, Mapping):
            raise ExportError(
                f"{files.where(name)}: holds a {type(found).__name__}, expected tensors"
            )
        if without:
            found = {key: value for key, value in found.items() if not str(key).endswith(without)}
        # File by file, so that a message names the shard.
        check_tensors(found, files.where(name))
        if twice := sorted(state.keys() & found.keys()):
            raise ExportError(f"{files.where(name)}: {few(twice)} is in another shard already")
        state.update(found)
    return state


def check_tensors(state: Mapping[Any, Any], where: str) -> None:
    """Refuse values that are not finite floating-point tensors.

    Raises:
        ExportError: If a value is not a dense tensor of one of `DTYPES`, claims more values than
            are stored, or is NaN or infinite in float32.
    """
    for name, tensor in state.items():
        called = f"{where}: {shown(str(name))}"
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ExportError(f"{called} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
            raise ExportError(
                f"{called} is {kind.removeprefix('torch.')}, expected float32, float16, bfloat16 "
                "or float64. Give the weights that are not quantised."
            )
        # A stride of 0 lets a small file claim a tensor of any size.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ExportError(
                f"{called} has {tensor.numel():,} values, but fewer are stored. Save a copy of it."
            )
        # In float32, as the model will hold it: a float64 beyond its range becomes infinite.
        values = tensor.float()
        if not bool(torch.isfinite(values).all()):
            kind = "NaN" if bool(torch.isnan(values).any()) else "infinite"
            raise ExportError(
                f"{called} holds values that are {kind}. The weights themselves are damaged; give "
                "a checkpoint from before training diverged."
            )


def network_weights(files: ModelFiles, known: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return diffusers' `stored_weights`, `unwrapped`, and notes on both.

    Raises:
        ExportError: See `stored_weights`.
    """
    state, notes = stored_weights(files)
    state, prefix = unwrapped(state, known)
    if prefix:
        notes.append(f"{files.where()}: the prefix {prefix!r} is taken off the names")
    return state, notes


def unwrapped(state: Mapping[str, Tensor], known: str) -> tuple[dict[str, Tensor], str]:
    """Take the prefix of a wrapper (`module.`, `_orig_mod.`, …) off every name.

    Args:
        state: Tensors by name.
        known: A tensor that the network has, by its own name.

    Returns:
        The tensors, and the prefix that was taken off, "" if none was.
    """
    wrapped = re.compile(rf"((?:(?:{'|'.join(WRAPPERS)})\.)+){re.escape(known)}")
    if known in state:
        return dict(state), ""
    prefixes = [match[1] for name in state if (match := wrapped.fullmatch(name))]
    # A trainer's averaged weights give the better images, and are what it samples with.
    averaged = [prefix for prefix in prefixes if "ema" in prefix] or prefixes
    if len(averaged) != 1:
        return dict(state), ""
    prefix = averaged[0]
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(prefix) or not name.startswith(tuple(prefixes))
    }
    stripped = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    # Fewer names mean that a tensor is there with and without the prefix: neither copy is chosen.
    return (stripped, prefix) if len(stripped) == len(kept) else (dict(state), "")


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], where: str, source: str
) -> None:
    """Hold the tensors of a file against those of a network, in both directions.

    Args:
        expected: Shapes by name.
        state: Tensors by name.
        where: The file, as the message names it.
        source: What the expected shapes come from, such as `config.json`.

    Raises:
        ExportError: If a tensor is missing, unexpected, or of another shape.
    """
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    others = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    found = [
        f"{len(names)} {kind} ({few(names)})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", others),
        )
        if names
    ]
    if found:
        raise ExportError(
            f"{where}: the tensors are not those of {source}: {', '.join(found)}. "
            "Give the weights of such a model, whole."
        )


def load_weights(module: nn.Module, state: dict[str, Tensor], where: str, source: str) -> None:
    """Copy tensors into a module, after `compare_shapes`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    compare_shapes(shapes, state, where, source)
    # Copies into the module's float32 parameters, in whatever type they are stored.
    module.load_state_dict(state)
