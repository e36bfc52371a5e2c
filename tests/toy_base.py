"""A toy base model and a toy process, each as small as possible: one class and a loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diver_trt.errors import RecipeError
from diver_trt.models import NO_OPTIONS, ModelOptions
from diver_trt.models.base import BaseModel, Modules
from diver_trt.recipe import Sigma

CHANNELS, SIDE, WIDTH, CLASSES = 2, 8, 6, 10

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Straight:
    """The straight path z_t = (1 - t) z_0 + t n, velocity n - z_0, in Euler steps of `1 / K`."""

    kind: Literal["straight"] = "straight"
    end: float = 1.0

    def times(self, steps: int) -> NDArray[np.float32]:
        return (self.end * np.arange(1, steps + 1) / steps).astype(np.float32)

    def levels(self, steps: int) -> tuple[Float64, Float64]:
        time = self.end * np.arange(steps + 1) / steps
        return 1 - time, time

    def coefficients(self, steps: int) -> tuple[Float64, Float64]:
        return np.ones(steps), np.full(steps, -self.end / steps)

    def clean_estimate(self, steps: int) -> tuple[Float64, Float64]:
        return np.ones(steps), -self.levels(steps)[1][1:]

    def log_variance_bounds(
        self, steps: int, sigma: Sigma | None, learned: bool
    ) -> tuple[Float64, Float64]:
        if sigma not in (None, "marginal"):
            raise RecipeError(f"sigma is {sigma!r}; a straight path has none but 'marginal'.")
        fixed = 2 * np.log(self.levels(steps)[1][1:])
        return fixed, fixed


class Conditioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, time: Tensor, label: Tensor) -> Tensor:
        condition: Tensor = self.table(label) * torch.cos(time)[:, None]
        return condition


class Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        tokens = self.lift(latent.flatten(2).transpose(1, 2))
        velocity = self.project(self.norm(tokens) * condition[:, None])
        prediction: Tensor = velocity.transpose(1, 2).reshape(-1, CHANNELS, SIDE, SIDE)
        return prediction


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, CHANNELS, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        latent: Tensor = self.mix(image)
        return latent


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ConvTranspose2d(CHANNELS, 3, 2, stride=2)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.mix(latent)
        return image.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Toy(BaseModel):
    base: ClassVar[str] = "toy"
    guided_channels: ClassVar[int] = CHANNELS

    own: Modules

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return self.own.encoder, self.own.conditioner, self.own.predictor, self.own.decoder

    def modules(self, dtype: torch.dtype) -> Modules:
        assert dtype == torch.float32
        return self.own

    def probe_points(self, predictor: nn.Module) -> Mapping[str, nn.Module]:
        assert isinstance(predictor, Predictor)
        return {"lifted": predictor.norm}

    def original_encode(self, image: Tensor) -> Tensor:
        mix: Any = self.own.encoder.mix
        return F.conv2d(image, mix.weight, mix.bias, stride=2)

    def original_predict(self, latent: Tensor, time: Tensor, label: Tensor) -> Tensor:
        predictor: Any = self.own.predictor
        condition = self.own.conditioner(time, label)[:, :, None, None]
        lifted = torch.einsum("wc,nchv->nwhv", predictor.lift.weight, latent)
        lifted = lifted + predictor.lift.bias[:, None, None]
        mean, variance = lifted.mean(1, keepdim=True), lifted.var(1, keepdim=True, correction=0)
        normed = (lifted - mean) / torch.sqrt(variance + 1e-5) * condition
        velocity = torch.einsum("cw,nwhv->nchv", predictor.project.weight, normed)
        prediction: Tensor = velocity + predictor.project.bias[:, None, None]
        return prediction

    def original_decode(self, latent: Tensor) -> Tensor:
        mix: Any = self.own.decoder.mix
        return F.conv_transpose2d(latent, mix.weight, mix.bias, stride=2).clamp(-1, 1)


def load_model(source: str, options: ModelOptions = NO_OPTIONS) -> Toy:
    torch.manual_seed(5)
    own = Modules(Encoder(), Conditioner(), Predictor(), Decoder())
    model = Toy(
        model_id=source,
        image_size=2 * SIDE,
        latent_shape=(CHANNELS, SIDE, SIDE),
        scaling_factor=1.0,
        num_classes=CLASSES,
        process=Straight(),
        learned_variance=False,
        own=own,
    )
    for part in model.parts:
        part.eval().requires_grad_(False)
    return model
