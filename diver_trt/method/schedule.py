"""What a recovery's steps need besides the networks: times, coefficients, the start."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import RecipeError
from diver_trt.method.guidance import guidance_weights, steps_within
from diver_trt.method.process import Process
from diver_trt.method.step import StepLayout
from diver_trt.recipe import Recipe

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A model's process under a recipe.

    Attributes:
        process: The process that the model was trained on.
        recipe: The method's settings.
        layout: The columns of the step table for this model.
        table: One row of coefficients per step, [K, C] float32; row k - 1 is step k.
        times: The network's time of the steps that are run, [start_step] float32; entry k - 1 is
            step k.

    Raises:
        RecipeError: If the recipe does not fit the model: it has more steps or guided channels, or
            a variance that the process does not define.
    """

    process: Process
    recipe: Recipe
    layout: StepLayout
    table: Float32 = field(init=False, compare=False, repr=False)
    times: Float32 = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Rounded once, here: every engine gets the same float32 numbers.
        table = step_table(self.process, self.recipe, self.layout).astype(np.float32)
        # Only of the steps that run: the conditioner computes a condition for each of these times.
        times = self.process.times(self.recipe.steps)[: self.recipe.start_step]
        # object.__setattr__, because the dataclass is frozen.
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "times", times)

    def start(self, anchor: Float32, noise: Float32) -> Float32:
        """Return the latent that sampling starts from, [n, c, h, w] float32.

        It is z_{t_f} = alpha_{t_f} z_0 + sigma_{t_f} n (DIVER, semantic inheritance). Sampling
        starts with it at step `t_r`, which the paper deliberately puts above t_f. With inheritance
        off it is the noise itself.

        Args:
            anchor: z_0, the scaled latents of the distilled images, [n, c, h, w] float32.
            noise: n ~ N(0, I), [n, c, h, w] float32.
        """
        k = self.recipe.inherit_step
        if k is None:
            return noise
        alpha, sigma = self.process.levels(self.recipe.steps)
        # float32 factors: since numpy 2 a float64 scalar makes the product float64
        # (https://numpy.org/neps/nep-0050-scalar-promotion.html).
        lifted: Float32 = np.float32(alpha[k]) * anchor + np.float32(sigma[k]) * noise
        return lifted

    @property
    def inherited_ratio(self) -> float | None:
        """Signal-to-noise ratio alpha / sigma of the level that the distilled latent is lifted to.

        None with inheritance off.
        """
        k = self.recipe.inherit_step
        return None if k is None else float(noise_ratios(self.process, self.recipe.steps)[k - 1])


def noise_ratios(process: Process, steps: int) -> NDArray[np.float64]:
    """Return the signal-to-noise ratio alpha_k / sigma_k of each step's level, [K] float64.

    The same step is another level on another process: step 25 of 50 has a ratio of 0.32 with DiT's
    betas and of 1 on a straight path.

    Raises:
        RecipeError: If the process has no such steps.
    """
    alpha, sigma = process.levels(steps)
    ratios: NDArray[np.float64] = alpha[1:] / sigma[1:]
    return ratios


def nearest_step(process: Process, steps: int, ratio: float) -> int:
    """Return the step whose level has the nearest signal-to-noise ratio, compared by logarithm.

    Args:
        process: The process that the model was trained on.
        steps: Number of steps `K`.
        ratio: The ratio alpha / sigma, above 0.

    Raises:
        RecipeError: If the process has no such steps, or the ratio is not above 0.
    """
    if not 0 < ratio < np.inf:
        raise RecipeError(
            f"the signal-to-noise ratio is {ratio:g}; expected a number above 0, such as 0.32."
        )
    # A straight path ends in pure noise: that level has the ratio 0 and the logarithm -inf.
    with np.errstate(divide="ignore"):
        distances = np.abs(np.log(noise_ratios(process, steps)) - np.log(ratio))
    # Entry k - 1 is step k.
    return int(np.argmin(distances)) + 1


def step_table(process: Process, recipe: Recipe, layout: StepLayout) -> NDArray[np.float64]:
    """Return all coefficients that differ between steps, [K, C] float64; row k - 1 is step k.

    Args:
        process: The process that the model was trained on.
        recipe: The method's settings.
        layout: The model's latent channels and whether it predicts its variance; gives the columns
            their meaning.

    Raises:
        RecipeError: If the recipe asks for more steps or guided channels than the model has, or for
            a variance that the process does not define.
    """
    channels = layout.channels
    guided = layout.guided_channels if recipe.cfg_channels is None else recipe.cfg_channels
    if guided > channels:
        raise RecipeError(
            f"cfg_channels is {guided}, but the model's latents have {channels} channels; "
            f"use 1 to {channels}."
        )
    table = np.empty((recipe.steps, layout.width))
    # Guided prediction: a channel with scale 1 keeps the class-conditional prediction.
    acts = steps_within(recipe.cfg_window or (recipe.steps, 0), recipe.steps)[:, None] & (
        np.arange(channels) < guided
    )
    table[:, :channels] = np.where(acts, recipe.cfg_scale, 1.0)
    # DDPM update (DDIM, Eq. 12)
    table[:, layout.a], table[:, layout.b] = process.coefficients(recipe.steps)
    table[:, layout.guidance] = guidance_weights(process, recipe)
    # Scale of semantic guidance: sigma_k, as two log-variances
    table[:, layout.log_var_low], table[:, layout.log_var_high] = process.log_variance_bounds(
        recipe.steps, recipe.sigma, layout.learned_variance
    )
    return table
