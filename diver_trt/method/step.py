"""One DIVER step, from the network's prediction to the next latent.

`guided_step` uses nothing but arithmetic and the `exp` it is given, so the exporter traces it with
torch tensors into the denoiser graph and the tests run the very same lines on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Columns of a row of the step table.

    A scale per channel, a, b, four weights of semantic guidance, two log-variances.

    Attributes:
        channels: Latent channels `c`.
        learned_variance: Whether the network predicts, per value, where between the two
            log-variances its variance lies.
        guided_channels: How many channels, from the first, classifier-free guidance acts on where a
            recipe does not set it.
    """

    channels: int
    learned_variance: bool
    guided_channels: int

    @property
    def a(self) -> int:
        """Column of a_k."""
        return self.channels

    @property
    def b(self) -> int:
        """Column of b_k."""
        return self.channels + 1

    @property
    def guidance(self) -> slice:
        """Columns of semantic guidance: weights of latent, prediction, anchor and noise."""
        return slice(self.channels + 2, self.channels + 6)

    @property
    def log_var_low(self) -> int:
        """Column of the smaller log-variance."""
        return self.channels + 6

    @property
    def log_var_high(self) -> int:
        """Column of the larger log-variance."""
        return self.channels + 7

    @property
    def width(self) -> int:
        """Number of columns `C`."""
        return self.channels + 8


def guided_step(
    latent: Any,
    anchor: Any,
    noise: Any,
    by_class: Any,
    by_null: Any,
    variance: Any,
    row: Any,
    layout: StepLayout,
    exp: Callable[[Any], Any],
) -> Any:
    """Return z_{k-1} from z_k: classifier-free guidance, a step, semantic guidance.

    Sources: DIVER (semantic guidance and fusion); DDIM, Eq. 12, for the step of a DDPM chain.

    Args:
        latent: z_k, [n, c, h, w].
        anchor: z_0 of the distilled image, [n, c, h, w].
        noise: n, the sample's own noise, [n, c, h, w].
        by_class: Prediction given the class, noise for DDPM, [n, c, h, w].
        by_null: Prediction given the null class, [n, c, h, w].
        variance: The network's variance output in [-1, 1], [n, c, h, w]; read only if
            `layout.learned_variance`.
        row: Row k - 1 of the step table, [C].
        layout: The columns of `row`.
        exp: Elementwise exponential for these arrays: `np.exp`, `torch.exp`.
    """
    # Guided prediction (classifier-free guidance, arXiv 2207.12598, Eq. 6, with w - 1 for its w).
    # Written as a difference: a scale of 1 gives the class's prediction, up to rounding.
    scale = row[: layout.channels].reshape(1, layout.channels, 1, 1)
    guided = by_null + scale * (by_class - by_null)
    # DDIM update (arXiv 2010.02502, Eq. 12, sigma = 0), or that of any other process: only the
    # coefficients differ.
    following = row[layout.a] * latent + row[layout.b] * guided
    # Standard deviation of the step (Improved DDPM, arXiv 2102.09672, Eq. 15). The two bounds are
    # equal where the recipe fixes it.
    log_variance = row[layout.log_var_low]
    if layout.learned_variance:
        fraction = (variance + 1) / 2
        log_variance = log_variance + fraction * (row[layout.log_var_high] - log_variance)
    # Semantic guidance (DIVER). `diver_trt.method.guidance` has the weights of each kind; outside
    # the fusion window they are 0, since a branch would make two graphs of one step.
    of_latent, of_prediction, of_anchor, of_noise = row[layout.guidance]
    direction = of_latent * latent + of_prediction * guided + of_anchor * anchor + of_noise * noise
    return following - exp(log_variance / 2) * direction
