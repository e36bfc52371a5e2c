"""The registry of base models, which `export --base` and `compare --model` look names up in.

A base model is one module that implements `BaseModule`, and one entry of `BASES`. This file imports
no base model, so that `diver-trt --help` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from diver_trt.bundle import TimestepFrequencies
    from diver_trt.models.base import BaseModel
    from diver_trt.models.prompts import Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What a user states about a model; None leaves it to the model's own files.

    Attributes:
        revision: Branch, tag or commit on the hub.
        vae: Folder or hub name of another VAE.
        timestep_frequencies: The sinusoids the weights were trained with; None decides by where the
            weights come from.
        base: The base's own name where the user states it.
        prompts: The classes of a text-conditional model and their prompts; None is its default.
    """

    revision: str | None = None
    vae: str | None = None
    timestep_frequencies: TimestepFrequencies | None = None
    base: str | None = None
    prompts: Prompts | None = None


NO_OPTIONS = ModelOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One kind of base model that `--base` can name.

    Attributes:
        name: The name that `--base` takes and that a bundle records.
        title: What it is, for people.
        module: Dotted name of the module that implements `BaseModule`.
    """

    name: str
    title: str
    module: str

    def load(self) -> BaseModule:
        """Import the module, and torch and diffusers with it.

        Raises:
            MissingExtraError: If one of them is not installed, or cannot be imported.
        """
        from diver_trt.packages import importing

        with importing("export", f"base model {self.name}"):
            return cast("BaseModule", import_module(self.module))


class BaseModule(Protocol):
    """What the module of a base model provides."""

    def load_model(self, source: str, options: ModelOptions = NO_OPTIONS) -> BaseModel:
        """Load a model, float32 and in eval mode.

        Args:
            source: A folder, a name on the hub, or a file.
            options: What the user states about it.

        Raises:
            ExportError: If the source cannot be read, is another kind of model, or does not have
                what an option asks for.
        """


DEFAULT_BASE = "dit"
"""The base that a model is taken to be where `--base` does not name one."""

BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base(
            name="dit",
            title="a DiT that predicts the noise",
            module="diver_trt.models.dit",
        ),
        Base(
            name="sit",
            title="a SiT that predicts data - noise",
            module="diver_trt.models.sit",
        ),
        Base(
            name="repa",
            title="a SiT of REPA, which predicts noise - data",
            module="diver_trt.models.repa",
        ),
        Base(
            name="sd",
            title="a Stable Diffusion with one text encoder",
            module="diver_trt.models.stable_diffusion",
        ),
    )
}
