"""The straight path of flow matching, sampled with Euler steps (SiT, REPA).

Level `k` of `K` is `z_k = (1 - s) z_0 + s n` with `s = k / K` the share of noise, and the network
predicts the velocity of that path (Flow matching, arXiv 2210.02747; SiT, arXiv 2401.08740, Eq. 6
with the linear interpolant). Everything here is float64; the schedule rounds the finished tables to
float32 once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import RecipeError
from diver_trt.recipe import Sigma

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A straight path; `diver_trt.method.process.Process` documents the methods.

    Attributes:
        kind: Its name in a bundle.
        time_rises_to: The end of the path where the network's time is 1: `"data"` (SiT) or
            `"noise"` (REPA). The velocity is the derivative along that time: data - noise, or
            noise - data.
    """

    kind: Literal["flow"] = "flow"
    time_rises_to: Literal["data", "noise"]

    def __str__(self) -> str:
        return f"a straight path, time 1 at the {self.time_rises_to}"

    def times(self, steps: int) -> NDArray[np.float32]:
        """Return the time at the start of each step, in [0, 1]."""
        _, noise = self.levels(steps)
        # [K + 1] levels => [K] steps: a step starts at the noisier of its two levels
        share = noise[1:]
        return (share if self.time_rises_to == "noise" else 1 - share).astype(np.float32)

    def levels(self, steps: int) -> tuple[Float64, Float64]:
        """Return 1 - k / K and k / K."""
        noise = np.arange(steps + 1) / steps
        return 1 - noise, noise

    def coefficients(self, steps: int) -> tuple[Float64, Float64]:
        """Return a = 1 and b, the step in the network's time: Euler's method."""
        return np.ones(steps), np.full(steps, self._to_data / steps)

    def clean_estimate(self, steps: int) -> tuple[Float64, Float64]:
        """Return the factors of one Euler step from level k to the data."""
        _, noise = self.levels(steps)
        return np.ones(steps), self._to_data * noise[1:]

    def log_variance_bounds(
        self,
        steps: int,
        sigma: Sigma | None,
        learned: bool,  # noqa: ARG002
    ) -> tuple[Float64, Float64]:
        """Return the logarithm of (k / K)^2, the only variance that a flow defines.

        Raises:
            RecipeError: If `sigma` is `"learned"` or `"posterior"`, which belong to a DDPM chain.
        """
        if sigma not in (None, "marginal"):
            raise RecipeError(
                f"sigma is {sigma!r}, which only a DDPM chain has; the model follows {self}. Use "
                "marginal, its default."
            )
        _, noise = self.levels(steps)
        # Without level 0, which is free of noise, has an infinite ratio and is not a step.
        fixed = 2 * np.log(noise[1:])
        return fixed, fixed

    @property
    def _to_data(self) -> int:
        """Sign of a step of the network's time towards the data."""
        return 1 if self.time_rises_to == "data" else -1
