"""REPA's SiT (arXiv 2410.06940) as a base model: time and velocity run from the data to the noise.

It comes as a checkpoint file of sihyun-yu/REPA: SiT's layout, and projectors that only its training
used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diver_trt.method.flow import Flow
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.dit import Dit, load_as
from diver_trt.models.sit import SIT_VAE
from diver_trt.models.training_args import Training


@dataclass(frozen=True, kw_only=True)
class Repa(Dit):
    """A loaded SiT of REPA; its own sampler guides all channels."""

    base: ClassVar[str] = "repa"
    training: ClassVar[Training] = Training(
        title="REPA model",
        family="SiT",
        names=("sit", "repa"),
        process=Flow(time_rises_to="noise"),
        has_projectors=True,
    )
    default_vae: ClassVar[str] = SIT_VAE
    # Its samplers guide the whole velocity:
    # https://github.com/sihyun-yu/REPA/blob/main/samplers.py
    guided_channels: ClassVar[int | None] = None


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> Repa:
    """Load a SiT that REPA trained from a file in REPA's layout; see `BaseModule.load_model`.

    A revision and prompts are refused: the source is a file, and its classes are numbers. The base
    `"repa"` states what the file holds, where nothing in it does.
    """
    return load_as(Repa, source, options)
