"""DDPM's Markov chain over discrete timesteps, sampled with DDIM.

Everything here is float64; the schedule rounds the finished tables to float32 once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import RecipeError
from diver_trt.recipe import Sigma
from diver_trt.structs import OMITTED, Check, Invalid, whole

Float64 = NDArray[np.float64]

MAX_TIMESTEPS = 100_000
"""Largest `train_timesteps` of a bundle; no known model comes near it."""
MIN_SIGNAL = 1e-15
"""Smallest abar of a bundle's last timestep.

It is far below that of any model (cosine schedules reach 2e-9), and a step's coefficients still fit
float32.
"""
MIN_ABAR = 1e-12
"""Smallest abar of a step; below it float32 coefficients are not exact enough."""
MIN_BETA = 1e-12
"""Smallest noise that a step may add; below it the logarithm of its variance has no digits left."""


def _are_betas(betas: tuple[float, ...]) -> bool:
    return (
        # Only the last may be 1, which leaves no signal: zero terminal SNR, arXiv 2305.08891.
        2 <= len(betas) <= MAX_TIMESTEPS
        and all(0 < beta <= 1 for beta in betas)
        and 1 not in betas[:-1]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddpm:
    """The betas of the training chain; `diver_trt.method.process.Process` documents the methods.

    Attributes:
        kind: Its name in a bundle.
        beta_schedule: `"linear"` (DDPM, DiT), `"scaled_linear"` (linear in sqrt(beta): latent
            diffusion) or `"listed"` (any other: cosine, zero terminal SNR, trained betas).
        beta_start: First beta, in (0, 1).
        beta_end: Last beta, in (0, 1); 1 where a listed chain ends in pure noise.
        train_timesteps: Length of the chain.
        betas: Every beta of a listed chain, else None.
        steps_offset: Added to every timestep of a step, as in diffusers: 1 for Stable Diffusion.
        set_alpha_to_one: Whether the last step ends at abar = 1; else at that of timestep 0, as in
            Stable Diffusion's sampler.
    """

    kind: Literal["ddpm"] = "ddpm"
    beta_schedule: Literal["linear", "scaled_linear", "listed"]
    beta_start: float
    beta_end: float
    train_timesteps: Annotated[int, whole(2, MAX_TIMESTEPS)]
    betas: (
        Annotated[
            tuple[float, ...],
            Check(
                _are_betas,
                f"2 to {MAX_TIMESTEPS:,} numbers above 0 and below 1, of which the last may be 1",
            ),
        ]
        | None
    ) = field(default=None, metadata=OMITTED)
    steps_offset: Annotated[int, whole(0, MAX_TIMESTEPS)] = field(default=0, metadata=OMITTED)
    set_alpha_to_one: bool = field(default=True, metadata=OMITTED)

    @classmethod
    def listed(cls, betas: Sequence[float]) -> Ddpm:
        """Return the chain with these betas, two or more."""
        return cls(
            beta_schedule="listed",
            beta_start=betas[0],
            beta_end=betas[-1],
            train_timesteps=len(betas),
            betas=tuple(betas),
        )

    def __str__(self) -> str:
        text = (
            f"{self.beta_schedule} betas from {self.beta_start:g} to {self.beta_end:g} over "
            f"{self.train_timesteps} timesteps"
        )
        text += f", steps shifted by {self.steps_offset}" if self.steps_offset else ""
        return text if self.set_alpha_to_one else f"{text}, ending at the alpha of timestep 0"

    def times(self, steps: int) -> NDArray[np.float32]:
        """Return the training timestep tau_k of each step: 0, 20, ..., 980 for 50 of 1000.

        This is DiT's `ddim50` and diffusers' "leading" spacing, to which `steps_offset` is added.
        Whole numbers up to `MAX_TIMESTEPS` are exact in float32.
        """
        return self._timesteps(steps).astype(np.float32)

    def levels(self, steps: int) -> tuple[Float64, Float64]:
        """Return sqrt(abar_k) and sqrt(1 - abar_k) (DDPM, arXiv 2006.11239, Eq. 4)."""
        abar = self.respaced(steps)
        return np.sqrt(abar), np.sqrt(1 - abar)

    def coefficients(self, steps: int) -> tuple[Float64, Float64]:
        """Return a_k and b_k of predicted noise (DDIM, arXiv 2010.02502, Eq. 12, sigma = 0)."""
        abar = self.respaced(steps)
        sigma = np.sqrt(1 - abar)
        # The root of the quotient, since the quotient of two roots would round once more.
        a = np.sqrt(abar[:-1] / abar[1:])
        # The noise of level k - 1, less that in a_k z_k: Eq. 12 with x_0 written out by Eq. 9.
        return a, sigma[:-1] - a * sigma[1:]

    def clean_estimate(self, steps: int) -> tuple[Float64, Float64]:
        """Return 1 / alpha_k and -sigma_k / alpha_k (DDIM, arXiv 2010.02502, Eq. 9)."""
        alpha, sigma = self.levels(steps)
        return 1 / alpha[1:], -sigma[1:] / alpha[1:]

    def log_variance_bounds(
        self, steps: int, sigma: Sigma | None, learned: bool
    ) -> tuple[Float64, Float64]:
        """Return the log-variances between which a step's variance is interpolated.

        For `"learned"`, the default, they are those of Improved DDPM (arXiv 2102.09672, Eq. 15),
        log betatilde_k and log beta_k of the respaced chain, with betatilde_1 = 0 replaced by
        betatilde_2 where the chain ends at abar = 1. The other choices fix the variance. A model
        without a learned variance uses `"posterior"` for it.
        """
        abar = self.respaced(steps)
        now, before = abar[1:], abar[:-1]
        if sigma == "marginal":
            fixed = np.log(1 - now)
            return fixed, fixed
        # Of the respaced chain, not of the trained one, as in DiT's SpacedDiffusion:
        # https://github.com/facebookresearch/DiT/blob/main/diffusion/respace.py
        beta = 1 - now / before
        posterior = beta * (1 - before) / (1 - now)
        if self.set_alpha_to_one:
            # The last step ends without noise: the logarithm of its variance, 0, is undefined.
            # DiT clips it in the same way (posterior_log_variance_clipped):
            # https://github.com/facebookresearch/DiT/blob/main/diffusion/gaussian_diffusion.py
            posterior[0] = posterior[1]
        low = np.log(posterior)
        return low, (np.log(beta) if sigma in (None, "learned") and learned else low)

    def alphas_cumprod(self) -> Float64:
        """Return abar_t for t = 0 .. train_timesteps - 1, [T] float64 (DDPM, Eq. 4)."""
        if self.betas is not None:
            betas = np.array(self.betas, dtype=np.float64)
        elif self.beta_schedule == "linear":
            betas = np.linspace(
                self.beta_start, self.beta_end, self.train_timesteps, dtype=np.float64
            )
        else:
            roots = np.linspace(
                self.beta_start**0.5, self.beta_end**0.5, self.train_timesteps, dtype=np.float64
            )
            betas = roots * roots
        return np.cumprod(1.0 - betas, dtype=np.float64)

    def respaced(self, steps: int) -> Float64:
        """Return abar of the respaced chain, [K + 1] float64: where it ends, then abar at tau_k.

        It ends at 1, or at abar of timestep 0 if not `set_alpha_to_one`.

        Raises:
            RecipeError: If there are fewer training timesteps than steps, or if a step would add no
                noise or start without any signal.
        """
        timesteps = self._timesteps(steps)
        trained = self.alphas_cumprod()
        end = 1.0 if self.set_alpha_to_one else trained[0]
        # [T] => [K + 1]: where the last step ends, then the level of each step
        abar = np.concatenate([[end], trained[timesteps]])
        if abar[-1] < MIN_ABAR:
            raise RecipeError(
                f"at timestep {timesteps[-1]} the model's chain ({self}) keeps no signal; use "
                f"fewer steps than {steps}, or another model."
            )
        if not np.all(abar[1:] < abar[:-1] * (1 - MIN_BETA)):
            raise RecipeError(
                f"the model's chain ({self}) has steps that add no noise; use fewer steps than "
                f"{steps}, or another model."
            )
        return abar

    def _timesteps(self, steps: int) -> NDArray[np.int64]:
        if steps > self.train_timesteps:
            raise RecipeError(
                f"steps is {steps}, but the model was trained with {self.train_timesteps} "
                "timesteps; use at most that many."
            )
        # The stride is rounded down, as in diffusers: 30 steps of 1,000 begin at 957, not at 999.
        timesteps = np.arange(steps, dtype=np.int64) * (self.train_timesteps // steps)
        timesteps += self.steps_offset
        if timesteps[-1] >= self.train_timesteps:
            raise RecipeError(
                f"the first of {steps} steps would be at timestep {timesteps[-1]}, but the model "
                f"was trained with {self.train_timesteps}, and its steps are shifted by "
                f"{self.steps_offset}; use fewer steps."
            )
        return timesteps

    def check(self) -> None:
        """Compare the parameters with each other, when they have been read.

        Raises:
            Invalid: If they contradict each other, or if the share of the image does not fall with
                every timestep, or falls below `MIN_SIGNAL`.
        """
        if not self.set_alpha_to_one and self.steps_offset == 0:
            raise Invalid(
                "found false with a steps_offset of 0, expected 1 or more: the last step would "
                "change nothing",
                "set_alpha_to_one",
            )
        if (self.beta_schedule == "listed") != (self.betas is not None):
            raise Invalid("expected a list for schedule listed, and only for it", "betas")
        if self.betas is not None:
            # Such a chain may end in pure noise; `levels` checks the steps that a recipe uses.
            plain = replace(self, steps_offset=0, set_alpha_to_one=True)
            if plain != Ddpm.listed(self.betas):
                raise Invalid(
                    f"found {self.train_timesteps} timesteps from {self.beta_start:g} to "
                    f"{self.beta_end:g}, expected those of the betas listed",
                    "train_timesteps",
                )
            return
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise Invalid(
                f"betas run from {self.beta_start} to {self.beta_end}, expected 0 < beta_start <= "
                "beta_end < 1",
                "beta_start",
            )
        # Computed, since the ends do not show it: a very small beta vanishes in `1 - beta`, and the
        # product of many large ones underflows.
        abar = self.alphas_cumprod()
        falls = np.diff(abar, prepend=1.0) < 0
        if not falls.all() or abar[-1] < MIN_SIGNAL:
            raise Invalid(
                f"{self} leave {abar[0]:g} of the image after the first and {abar[-1]:g} after "
                "the last, expected a share that falls with every timestep and does not end below "
                f"{MIN_SIGNAL:g}",
                "beta_start",
            )
