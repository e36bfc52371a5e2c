"""The limits on an engine's figures, each with its reason.

The same limits hold on every machine and for every model. bfloat16 has none: it is shown, not
judged, since no bundle is made in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit on one figure.

    Attributes:
        value: The limit itself; a figure equal to it passes.
        reason: Why the limit has this value, in words.
        at_least: Whether the limit is a lower bound; else it is an upper bound.
    """

    value: float
    reason: str
    at_least: bool = False

    def holds(self, figure: float) -> bool:
        """Return whether a figure is within the limit; NaN never is."""
        return figure >= self.value if self.at_least else figure <= self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """The limits of one precision.

    Attributes:
        networks: Relative L2 of the encoder's, the conditioner's and the decoder's output, each
            alone.
        step: Relative L2 of the next latent, of every teacher-forced step.
        change: `StepDifference.change`, as the median over the steps: a latent hides the error of a
            small step, its change does not.
        place: Relative L2 of the residual stream and of the prediction, at every place of the
            bundle's graph.
        images: Limits on the final images, by figure: `"max_levels"`, `"mean_psnr_db"`,
            `"min_psnr_db"`.
    """

    networks: Mapping[str, Limit]
    step: Limit
    change: Limit
    place: Limit
    images: dict[str, Limit]


_GROUP_NORMS = (
    "ONNX Runtime's group normalisation sums up to 262,144 values in float32 and is 4e-5 from "
    "float64 on flat 256-pixel images, torch 7e-7"
)
_ROUNDING = (
    "float16 has 11 bits, 5e-4 a rounding, and a value is rounded many times on its way; "
    "the exporter uses the same limit"
)
_EIGHT_BITS = (
    "a weight is rounded to 1/127 of its channel's largest, half a percent of a product, and an "
    "engine may round activations likewise: 5e-3 on the digits"
)
_SUMMATION = (
    "float32 sums in another order differ by some 1e-6; a wrong weight, axis or coefficient is far "
    "above 1e-5"
)
_IMAGES = {
    "mean_psnr_db": Limit(
        40, "a root mean square of 2.5 levels in 255, which is invisible", at_least=True
    ),
    "min_psnr_db": Limit(
        30,
        "below it, an image has visibly changed; one bad image must not hide in a good average",
        at_least=True,
    ),
}
"""Limits on the final images of a bundle that rounds."""

TOLERANCES: dict[str, Tolerances] = {
    "fp32": Tolerances(
        networks={
            "encoder": Limit(1e-4, _GROUP_NORMS),
            "conditioner": Limit(1e-5, _SUMMATION),
            "decoder": Limit(1e-4, _GROUP_NORMS),
        },
        step=Limit(1e-5, _SUMMATION),
        change=Limit(
            1e-4,
            "float32 sums in another order, amplified by guidance and by division by a small "
            "change: 4e-6 on the digits",
        ),
        place=Limit(1e-5, _SUMMATION),
        images={
            "max_levels": Limit(
                1,
                "a value on the border between two 8-bit levels may be rounded either way",
            )
        },
    ),
    "fp16": Tolerances(
        networks=dict.fromkeys(("encoder", "conditioner", "decoder"), Limit(1e-2, _ROUNDING)),
        step=Limit(
            5e-3,
            "the latent stays float32, but guidance multiplies the rounding of its two "
            "predictions by up to 2 w - 1, which is 7",
        ),
        change=Limit(
            1.5e-2,
            "torch's own float16 has an error of 4e-3 on the digits; most weights of the denoiser "
            "that are wrong by 5 % exceed the limit",
        ),
        place=Limit(
            5e-3,
            "the stream is float32 and rounding adds little at each place: up to 1.3e-3 on the "
            "digits",
        ),
        images=_IMAGES,
    ),
    "int8": Tolerances(
        networks=dict.fromkeys(("encoder", "conditioner", "decoder"), Limit(2e-2, _EIGHT_BITS)),
        step=Limit(
            2e-2,
            "the latent stays float32; guidance multiplies the rounding of its two predictions by "
            "up to 2 w - 1, seven times: 5e-3 on the digits",
        ),
        change=Limit(
            2e-1,
            "a small step divides the rounding by the little that it changes: 8e-2 on the digits",
        ),
        place=Limit(
            5e-2,
            "each product adds half a percent, and the stream sums them up: 3e-2 on the digits, "
            "at the final layer",
        ),
        images=_IMAGES,
    ),
}


# Eight bits round a weight fifty times as coarsely as float16 does.
TOLERANCES["int8-fp16"] = TOLERANCES["int8"]


def tolerances_for(*precisions: str) -> Tolerances | None:
    """Return the limits of the coarsest of some precisions, or None if it is bfloat16."""
    # From the finest to the coarsest
    coarsest = max(precisions, key=("fp32", "fp16", "int8", "int8-fp16", "bf16").index)
    return TOLERANCES.get(coarsest)
