"""What the exporter and `compare` know of a base model: its facts, its networks, its own code."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diver_trt.bundle import TimestepFrequencies
from diver_trt.method.process import Process
from diver_trt.method.step import StepLayout


@dataclass(frozen=True, slots=True)
class Modules:
    """The networks of a base model. Borders are float32, but for the condition.

    Attributes:
        encoder: image [n, 3, H, W] in [-1, 1] => latent [n, c, h, w], scaled as the predictor reads
            it.
        conditioner: (time [m] float32, label [m] int64) => condition [m, M] in the modules' dtype:
            all that time and class give the predictor. It does not depend on the image, so a
            recovery computes it once per class and step.
        predictor: (latent [n, c, h, w], condition [n, M]) => prediction [n, c, h, w], or [n, 2 c,
            h, w] with a learned variance after it.
        decoder: latent [n, c, h, w] => image [n, 3, H, W] in [-1, 1].
    """

    encoder: nn.Module
    conditioner: nn.Module
    predictor: nn.Module
    decoder: nn.Module


@dataclass(frozen=True, kw_only=True)
class BaseModel(ABC):
    """A loaded base model, float32 and in eval mode.

    A base model is a subclass with its networks as further fields. An abstract class and not a
    protocol, because all of them share these facts.

    Attributes:
        base: Name of the base model in `diver_trt.models.BASES`.
        model_id: Name on the hub, or the local name.
        revision: Revision on the hub, if one was asked for.
        licence: Licence on the model card, if it states one.
        image_size: Side of the images in pixels.
        latent_shape: `(c, h, w)`.
        scaling_factor: The factor that `Modules.encoder` multiplies the VAE's latents by.
        num_classes: Number of classes; labels run from 0, and the null class comes after the last.
        class_names: Name per class, if the model has them.
        prompts: The prompt of each class, then the null class's, of a text-conditional model.
        process: The process that it was trained on.
        learned_variance: Whether it predicts its variance.
        guided_channels: How many latent channels, from the first, its own sampler guides; None is
            all of them.
        timestep_frequencies: `"dit"`, 10000^(-i/128), or `"diffusers"`, 10000^(-i/127); None if the
            model has no such choice.
        frequencies_reason: Why those, in words.
        notes: What was assumed, taken off or set aside, a sentence each.
    """

    base: ClassVar[str]
    guided_channels: ClassVar[int | None]

    model_id: str
    revision: str | None = None
    licence: str | None = None
    image_size: int
    latent_shape: tuple[int, int, int]
    scaling_factor: float
    num_classes: int
    class_names: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    process: Process
    learned_variance: bool
    timestep_frequencies: TimestepFrequencies | None = None
    frequencies_reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def layout(self) -> StepLayout:
        """Columns of the step table for this model."""
        channels = self.latent_shape[0]
        # A VAE may have fewer channels than the sampler guides of its own.
        guided = channels if self.guided_channels is None else min(self.guided_channels, channels)
        return StepLayout(channels, self.learned_variance, guided)

    @property
    @abstractmethod
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules that hold all weights: what identifies a model."""

    @abstractmethod
    def modules(self, dtype: torch.dtype) -> Modules:
        """Return the networks computing in `dtype`, float32 or float16.

        float32 networks share the model's weights.
        """

    @abstractmethod
    def probe_points(self, predictor: nn.Module) -> Mapping[str, nn.Module]:
        """Return the layers of `Modules.predictor` whose inputs are compared, by place.

        They are all its layer normalisations, one or more, in the order in which they run: the same
        places are found in a bundle's graph by its LayerNormalization nodes.
        """

    @abstractmethod
    def original_encode(self, image: Tensor) -> Tensor:
        """Return what the model's own code makes of an image, as `Modules.encoder`."""

    @abstractmethod
    def original_predict(self, latent: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return what the model's own code predicts, as `Modules.predictor`.

        Args:
            latent: [n, c, h, w] float32.
            time: [n] float32.
            label: [n] int64.
        """

    @abstractmethod
    def original_decode(self, latent: Tensor) -> Tensor:
        """Return what the model's own code makes of a latent, as `Modules.decoder`."""


def weights_sha256(model: BaseModel) -> str:
    """Return a hash of all weights of a model, in hex; it identifies a model without its name."""
    digest = hashlib.sha256()
    # By name, since the order of a module's parameters may change with diffusers' version.
    for part in model.parts:
        for name, parameter in sorted(part.named_parameters()):
            # With the shape, since the same bytes in another shape are another weight.
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(parameter.numpy().data)  # the bytes of float32, without a copy
    return digest.hexdigest()
