"""REPA's SiT (arXiv 2410.06940) as a base model: time and velocity run from the data to the noise.

It comes as a checkpoint file of sihyun-yu/REPA: SiT's layout, and projectors that only its training
used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diver_trt.bundle import TimestepFrequencies
from diver_trt.method.flow import Flow
from diver_trt.models.dit import Dit
from diver_trt.models.prompts import Prompts, refuse_prompts
from diver_trt.models.sit import load_flow
from diver_trt.models.training_args import VELOCITY, Training

REPA = Training(
    title="REPA model",
    family="SiT",
    names=("sit", "repa"),
    predicts="the velocity of a straight path",
    predictions=VELOCITY,
    is_flow=True,
    has_projectors=True,
)


@dataclass(frozen=True, kw_only=True)
class Repa(Dit):
    """A loaded SiT of REPA; its own sampler guides all channels."""

    base: ClassVar[str] = "repa"
    guided_channels: ClassVar[int] = 4


def load_model(
    source: str,
    *,
    revision: str | None = None,
    vae: str | None = None,
    timestep_frequencies: TimestepFrequencies | None = None,
    base: str | None = None,
    prompts: Prompts | None = None,
) -> Repa:
    """Load a SiT that REPA trained.

    Args:
        source: A file in REPA's layout.
        revision: Must be None: files do not have revisions.
        vae: Directory or hub name of another VAE than `diver_trt.models.sit.SIT_VAE`.
        timestep_frequencies: The sinusoids the weights were trained with; None is DiT's.
        base: `"repa"` states that a file holds such a model, where nothing in the file does.
        prompts: Must be None: the classes of such a model are numbers.

    Raises:
        ExportError: If the source is not such a file, cannot be read, or was trained otherwise; if
            a tensor is missing, unexpected, of another shape or not finite.
    """
    refuse_prompts(prompts, source)
    return load_flow(
        Repa,
        REPA,
        Flow(time_rises_to="noise"),
        source,
        revision=revision,
        vae=vae,
        frequencies=timestep_frequencies,
        stated=base is not None,
    )
