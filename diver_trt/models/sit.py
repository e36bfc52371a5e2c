"""The SiT (arXiv 2401.08740) as a base model: a DiT that predicts the velocity of a straight path.

It comes as a checkpoint file in the layout of willisma/SiT, which is DiT's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diver_trt.errors import ExportError, shown
from diver_trt.method.flow import Flow
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.dit import (
    Dit,
    DitT,
    is_checkpoint,
    load_checkpoint,
    refuse_revision,
    silence_loaders,
)
from diver_trt.models.prompts import refuse_prompts
from diver_trt.models.training_args import VELOCITY, Training

SIT = Training(
    title="SiT",
    family="SiT",
    names=("sit",),
    predicts="the velocity of a straight path",
    predictions=VELOCITY,
    is_flow=True,
)
SIT_VAE = "stabilityai/sd-vae-ft-ema"
"""What the sample.py of SiT and the generate.py of REPA take."""


@dataclass(frozen=True, kw_only=True)
class Sit(Dit):
    """A loaded SiT: the networks are a DiT's, and its `forward_with_cfg` guides as DiT's does."""

    base: ClassVar[str] = "sit"


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> Sit:
    """Load a SiT.

    Args:
        source: A file in SiT's layout.
        options: What is stated about it, without a revision or prompts: it is a file, and its
            classes are numbers. The base `"sit"` states that it holds a SiT, where nothing in the
            file does.

    Raises:
        ExportError: If the source is not such a file, cannot be read, or was trained otherwise; if
            a tensor is missing, unexpected, of another shape or not finite.
    """
    return load_flow(Sit, SIT, Flow(time_rises_to="data"), source, options)


def load_flow(
    kind: type[DitT],
    training: Training,
    process: Flow,
    source: str,
    options: ModelOptions,
) -> DitT:
    """Load a flow with the networks of a DiT; such models are published as files only.

    The arguments are those of `load_model` and of `diver_trt.models.dit.load_checkpoint`.

    Raises:
        ExportError: See `load_model`.
    """
    silence_loaders()
    refuse_prompts(options.prompts, source)
    refuse_revision(source, options.revision)
    if not is_checkpoint(source):
        raise ExportError(
            f"{shown(source)}: is not a file; expected the .pt file of a {training.title}. "
            "Download it and give its path."
        )
    return load_checkpoint(
        kind,
        Path(source),
        training,
        process,
        vae=options.vae or SIT_VAE,
        frequencies=options.timestep_frequencies,
        stated=options.base is not None,
    )
