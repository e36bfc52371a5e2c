"""The SiT (arXiv 2401.08740) as a base model: a DiT that predicts the velocity of a straight path.

It comes as a checkpoint file in the layout of willisma/SiT, which is DiT's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diver_trt.method.flow import Flow
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.dit import Dit, load_as
from diver_trt.models.training_args import Training

SIT_VAE = "stabilityai/sd-vae-ft-ema"
"""What the sample.py of SiT and the generate.py of REPA take."""


@dataclass(frozen=True, kw_only=True)
class Sit(Dit):
    """A loaded SiT: the networks are a DiT's, and its `forward_with_cfg` guides as DiT's does."""

    base: ClassVar[str] = "sit"
    training: ClassVar[Training] = Training(
        title="SiT", family="SiT", names=("sit",), process=Flow(time_rises_to="data")
    )
    default_vae: ClassVar[str] = SIT_VAE


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> Sit:
    """Load a SiT from a file in SiT's layout; see `BaseModule.load_model`.

    A revision and prompts are refused: the source is a file, and its classes are numbers. The base
    `"sit"` states what the file holds, where nothing in it does.
    """
    return load_as(Sit, source, options)
