"""Which base a pipeline or a checkpoint file states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diver_trt.models import DEFAULT_BASE
from diver_trt.models.dit import is_checkpoint
from diver_trt.models.model_files import ModelFiles
from diver_trt.models.pipeline import INDEX, STABLE_DIFFUSION
from diver_trt.models.training_args import has_repa_settings, states_velocity, training_args
from diver_trt.models.weights import read_torch_file


def recognised_base(source: str, revision: str | None = None) -> str:
    """Return the name of the base that a source is to be loaded as.

    A pipeline names its own class. Settings that state a velocity make a file a SiT, and tensors or
    settings of REPA's projectors a model of REPA. All else is taken for the default base, whose own
    checks decide.

    Args:
        source: A folder, a name on the hub, or a file.
        revision: Branch, tag or commit on the hub.

    Raises:
        ExportError: If the source cannot be read.
    """
    if not is_checkpoint(source):
        files = ModelFiles.at(source, revision)
        index = files.read_json(
            INDEX, "expected a diffusers pipeline directory, a hub name or a file"
        )
        return "sd" if index.get("_class_name") == STABLE_DIFFUSION else DEFAULT_BASE
    held = read_torch_file(Path(source))
    if not isinstance(held, Mapping):
        return DEFAULT_BASE
    args = training_args(held)
    # Tensors before settings: a file of REPA's weights alone has no settings.
    if any("projectors." in name for name in _names(held, depth=4)):
        return "repa"
    if not states_velocity(args):
        return DEFAULT_BASE
    return "repa" if has_repa_settings(args) else "sit"


def _names(held: Mapping[Any, Any], depth: int) -> Iterator[str]:
    for key, value in held.items():
        yield str(key)
        if isinstance(value, Mapping) and depth:  # a mapping may contain itself
            yield from _names(value, depth - 1)
