"""A DIVER step around any base model's predictor, and the four networks of a bundle.

Every border is float32 (conditions have the bundle's precision), and so is everything that sums or
normalises: in an fp16 bundle the matrix products, convolutions and attention are float16, while the
residual stream, normalisation, scale and shift, gates and the whole DIVER step stay float32. With
`dtype=torch.float32` the casts vanish and the layers are the caller's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diver_trt.contract import NetworkName
from diver_trt.method.step import StepLayout, guided_step
from diver_trt.models.base import BaseModel


def build_networks(model: BaseModel, dtype: torch.dtype) -> dict[NetworkName, nn.Module]:
    """Return the four networks computing in `dtype`; float32 shares the model's weights."""
    modules = model.modules(dtype)
    return {
        "encoder": modules.encoder.eval(),
        "conditioner": modules.conditioner.eval(),
        "denoiser": Denoiser(modules.predictor, model.layout).eval(),
        "decoder": modules.decoder.eval(),
    }


class Denoiser(nn.Module):
    """One DIVER step.

    (latent, anchor, noise, condition [2, n, M], coefficients [C]) => next latent. All are float32
    but the condition. The predictor runs once on the latent under both conditions,
    class then null; guidance, the deterministic step and semantic guidance follow in float32
    (`diver_trt.method.step.guided_step`).
    """

    def __init__(self, predictor: nn.Module, layout: StepLayout) -> None:
        super().__init__()
        self.predictor, self.layout = predictor, layout

    def forward(
        self,
        latent: Tensor,
        anchor: Tensor,
        noise: Tensor,
        condition: Tensor,
        coefficients: Tensor,
    ) -> Tensor:
        channels = self.layout.channels
        # Class-conditional and unconditional prediction in one run: one pass over the weights,
        # which at small batches takes most of the time.
        # latent [n, c, h, w] twice, condition [2, n, M] => prediction [2 n, c or 2 c, h, w]
        prediction = self.predictor(torch.cat([latent, latent]), condition.flatten(0, 1))
        # => [2, n, c or 2 c, h, w]
        prediction = prediction.reshape(2, -1, *prediction.shape[1:])
        # Indexed, not unpacked: each half is then one Gather, and not a Slice and a Squeeze.
        by_class, by_null = prediction[0], prediction[1]
        variance = by_class[:, channels:]  # the class-conditional one, as DiT's sampler does
        next_latent: Tensor = guided_step(
            latent,
            anchor,
            noise,
            by_class[:, :channels],
            by_null[:, :channels],
            variance,
            coefficients,
            self.layout,
            torch.exp,
        )
        return next_latent
