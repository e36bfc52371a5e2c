"""The noise schedule a model was trained with, and the table of numbers that each of its DDIM steps reads.

Everything here is float64; the runtime rounds the finished table to float32 once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import RecipeError
from diver_trt.method.step import StepLayout
from diver_trt.recipe import Recipe, Sigma

Float64 = NDArray[np.float64]

BetaSchedule = Literal["linear", "scaled_linear", "listed"]
BETA_SCHEDULES: tuple[BetaSchedule, ...] = get_args(BetaSchedule)

MIN_ABAR = 1e-12
"""Smallest abar of a step: below it the coefficients leave the range in which float32 is exact enough."""
MIN_BETA = 1e-12
"""Smallest noise that a step may add: below it the logarithm of its variance has no digits left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """The betas of the training chain.

    Attributes:
        kind: `"linear"` (DDPM, DiT), `"scaled_linear"` (linear in sqrt(beta): latent diffusion) or
            `"listed"` (any other: cosine, zero terminal SNR, trained betas).
        beta_start: First beta, in (0, 1).
        beta_end: Last beta, in (0, 1); 1 where a listed chain ends in pure noise.
        train_timesteps: Length of the chain.
        betas: Every beta of a listed chain, else None.
    """

    kind: BetaSchedule
    beta_start: float
    beta_end: float
    train_timesteps: int
    betas: tuple[float, ...] | None = None

    @classmethod
    def listed(cls, betas: Sequence[float]) -> NoiseSchedule:
        """Return the chain with these betas, two or more."""
        return cls(
            kind="listed",
            beta_start=betas[0],
            beta_end=betas[-1],
            train_timesteps=len(betas),
            betas=tuple(betas),
        )

    def __str__(self) -> str:
        return f"{self.kind} betas from {self.beta_start:g} to {self.beta_end:g} over {self.train_timesteps} timesteps"

    def alphas_cumprod(self) -> Float64:
        """Return abar_t for t = 0 .. train_timesteps - 1, [T] float64 (DDPM, Eq. 4)."""
        if self.betas is not None:
            betas = np.array(self.betas, dtype=np.float64)
        elif self.kind == "linear":
            betas = np.linspace(
                self.beta_start, self.beta_end, self.train_timesteps, dtype=np.float64
            )
        else:
            roots = np.linspace(
                self.beta_start**0.5, self.beta_end**0.5, self.train_timesteps, dtype=np.float64
            )
            betas = roots * roots
        return np.cumprod(1.0 - betas, dtype=np.float64)

    def timesteps(self, steps: int) -> NDArray[np.int64]:
        """Return the training timestep tau_k of each DDIM step, [K] int64 ascending: 0, 20, ..., 980 for 50 of 1000.

        This is DiT's `ddim50` and diffusers' "leading" spacing.

        Raises:
            RecipeError: There are fewer training timesteps than steps.
        """
        if steps > self.train_timesteps:
            raise RecipeError(
                f"steps is {steps}, but the model was trained with {self.train_timesteps} timesteps; use at most that many."
            )
        return np.arange(steps, dtype=np.int64) * (self.train_timesteps // steps)

    def respaced(self, steps: int) -> Float64:
        """Return abar of the respaced chain, [K + 1] float64: entry k is abar at tau_k, and entry 0 is 1.

        Raises:
            RecipeError: If there are fewer training timesteps than steps, or if a step would add no
                noise or start without any signal.
        """
        timesteps = self.timesteps(steps)
        abar = np.concatenate([[1.0], self.alphas_cumprod()[timesteps]])
        if abar[-1] < MIN_ABAR:
            raise RecipeError(
                f"at timestep {timesteps[-1]} the model's chain ({self}) keeps no signal; use fewer steps "
                f"than {steps}, or another model."
            )
        if not np.all(abar[1:] < abar[:-1] * (1 - MIN_BETA)):
            raise RecipeError(
                f"the model's chain ({self}) has steps that add no noise; use fewer steps than {steps}, "
                "or another model."
            )
        return abar


def step_table(schedule: NoiseSchedule, recipe: Recipe, layout: StepLayout) -> Float64:
    """Return all that differs between the steps of a recovery, [K, C] float64; row k - 1 is step k.

    Args:
        schedule: The model's noise schedule.
        recipe: The method's settings.
        layout: The model's latent channels and whether it predicts its variance; gives the columns their meaning.

    Raises:
        RecipeError: The recipe asks for more steps or guided channels than the model has.
    """
    channels = layout.channels
    if recipe.cfg_channels > channels:
        raise RecipeError(
            f"cfg_channels is {recipe.cfg_channels}, but the model's latents have {channels} channels; use 1 to {channels}."
        )
    abar = schedule.respaced(recipe.steps)
    a, b = ddim_coefficients(abar)
    sigma: Sigma = (
        "posterior" if recipe.sigma == "learned" and not layout.learned_variance else recipe.sigma
    )
    k = np.arange(1, recipe.steps + 1)
    high, low = recipe.window
    table = np.empty((recipe.steps, layout.width))
    table[:, :channels] = np.where(np.arange(channels) < recipe.cfg_channels, recipe.cfg_scale, 1.0)
    table[:, layout.a] = a
    table[:, layout.b] = b
    table[:, layout.gamma] = np.where((high >= k) & (k > low), recipe.gamma, 0.0)
    table[:, layout.log_var_low], table[:, layout.log_var_high] = log_variance_bounds(abar, sigma)
    return table


def ddim_coefficients(abar: Float64) -> tuple[Float64, Float64]:
    """Return a_k and b_k of the deterministic step z_{k-1} = a_k z_k + b_k eps (DDIM, arXiv 2010.02502, Eq. 12 with sigma = 0).

    Args:
        abar: The respaced chain, [K + 1] float64 with abar[0] = 1.

    Returns:
        Two arrays, [K] float64.
    """
    now, before = abar[1:], abar[:-1]
    a = np.sqrt(before / now)
    return a, np.sqrt(1 - before) - a * np.sqrt(1 - now)


def log_variance_bounds(abar: Float64, sigma: Sigma) -> tuple[Float64, Float64]:
    """Return the two log-variances between which a step's variance is interpolated, each [K] float64.

    For `"learned"` they are those of Improved DDPM (arXiv 2102.09672, Eq. 15), log betatilde_k and log beta_k of the respaced
    chain, with betatilde_1 = 0 replaced by betatilde_2. The other choices fix the variance, so both bounds are equal.
    """
    now, before = abar[1:], abar[:-1]
    if sigma == "marginal":
        fixed = np.log(1 - now)
        return fixed, fixed
    beta = 1 - now / before
    posterior = beta * (1 - before) / (1 - now)
    posterior[0] = posterior[1]
    low = np.log(posterior)
    return low, (np.log(beta) if sigma == "learned" else low)
