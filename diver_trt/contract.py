"""What the four networks of a bundle read and write: the only contract between export and runtime.

Axis `n` counts images, `m` conditions; both are dynamic.

    network       inputs                                        outputs
    encoder       image [n,3,H,W] f32 in [-1,1]                 latent [n,c,h,w] f32 (mean)
    conditioner   time [m] f32, label [m] i64                   condition [m,M]
    denoiser      latent, anchor, noise [n,c,h,w] f32,          next_latent [n,c,h,w] f32 (one step)
                  condition [2,n,M] (class, then null),
                  coefficients [C] f32 (one row of the step table)
    decoder       latent [n,c,h,w] f32              image [n,3,H,W] f32 in [-1,1]
"""

from __future__ import annotations

from typing import Literal, get_args

from diver_trt.method.step import StepLayout
from diver_trt.tensors import TensorSpec

NetworkName = Literal["encoder", "conditioner", "denoiser", "decoder"]
NETWORKS: tuple[NetworkName, ...] = get_args(NetworkName)

Precision = Literal["fp32", "fp16", "int8", "int8-fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HALF_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8-fp16")
"""Those that compute in float16, and have float16 conditions."""
EIGHT_BIT_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-fp16")
"""Those whose weights are int8."""


def run_size(network: NetworkName, batch: int) -> int:
    """Return the size of a network's dynamic axis in one run with `batch` images per batch."""
    # The VAE takes one image at a time: its activations would otherwise be the largest allocation
    # on the device, and it runs twice per image where the denoiser runs fifty times. The
    # conditioner takes the paper's fifty steps of one class.
    return {"encoder": 1, "conditioner": 50, "denoiser": batch, "decoder": 1}[network]


def contract(
    image_size: int,
    latent_shape: tuple[int, int, int],
    layout: StepLayout,
    condition_width: int,
    precision: Precision,
) -> dict[NetworkName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """Return the inputs and outputs that each network of a bundle must have."""
    image = TensorSpec("image", "float32", ("n", 3, image_size, image_size))
    latent, anchor, noise, next_latent = (
        TensorSpec(name, "float32", ("n", *latent_shape))
        for name in ("latent", "anchor", "noise", "next_latent")
    )
    # Conditions alone: latents stay float32, since guidance multiplies rounding errors
    # (docs/precision.md).
    condition_dtype = "float16" if precision in HALF_PRECISIONS else "float32"
    time, label = TensorSpec("time", "float32", ("m",)), TensorSpec("label", "int64", ("m",))
    condition = TensorSpec("condition", condition_dtype, ("m", condition_width))
    pair = TensorSpec("condition", condition_dtype, (2, "n", condition_width))
    coefficients = TensorSpec("coefficients", "float32", (layout.width,))
    return {
        "encoder": ((image,), (latent,)),
        "conditioner": ((time, label), (condition,)),
        "denoiser": ((latent, anchor, noise, pair, coefficients), (next_latent,)),
        "decoder": ((latent,), (image,)),
    }
