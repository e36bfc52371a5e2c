"""Where semantic guidance pulls a latent: one function for each kind, and their registry.

Every kind subtracts `gamma sigma_k d_k` from the next latent, and its direction `d_k` is a sum of
four tensors that each step has: the latent, the guided prediction, the anchor and the sample's own
noise. So one graph of a step serves every kind, and a kind is nothing but four weights per step. A
new kind is a function here, an entry of `GUIDES` and a name in `diver_trt.recipe.Guide`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diver_trt.method.process import Process
from diver_trt.recipe import Guide, Recipe

Float64 = NDArray[np.float64]


def towards_latent(_: Process, steps: int) -> Float64:
    """Return the weights of `d_k = z_k - z_0` (DIVER's text, semantic guidance), [4, K].

    It pulls the noisy latent towards the clean one, and so also takes away noise that the model
    expects at step k.
    """
    one = np.ones(steps)
    return np.stack([one, 0 * one, -one, 0 * one])


def towards_noised(process: Process, steps: int) -> Float64:
    """Return the weights of `d_k = z_k - (alpha_k z_0 + sigma_k n)`, [4, K].

    The anchor is lifted to the noise level of step k with the sample's own noise `n` (ours, after
    q(z_k | z_0); DDPM, arXiv 2006.11239, Eq. 4).
    """
    alpha, sigma = process.levels(steps)
    one = np.ones(steps)
    return np.stack([one, 0 * one, -alpha[1:], -sigma[1:]])


def towards_x0(process: Process, steps: int) -> Float64:
    """Return the weights of `d_k = x0_hat - z_0` (MGD3, arXiv 2505.18963; ManifoldGD), [4, K].

    `x0_hat` is the clean latent that the guided prediction implies (DDIM, arXiv 2010.02502, Eq. 9).
    """
    of_latent, of_prediction = process.clean_estimate(steps)
    one = np.ones(steps)
    return np.stack([of_latent, of_prediction, -one, 0 * one])


GUIDES: dict[Guide, Callable[[Process, int], Float64]] = {
    "latent": towards_latent,
    "noised": towards_noised,
    "x0": towards_x0,
}
"""Every kind by its name in a recipe."""


def steps_within(window: tuple[int, int], steps: int) -> NDArray[np.bool_]:
    """Return which steps `k` of `steps` satisfy `high >= k > low`, [K]."""
    high, low = window
    k = np.arange(1, steps + 1)
    return (high >= k) & (k > low)


def guidance_weights(process: Process, recipe: Recipe) -> Float64:
    """Return what multiplies latent, prediction, anchor and noise in each step, [K, 4] float64.

    Gamma is in the weights; outside the fusion window they are 0.

    Args:
        process: The process that the model was trained on.
        recipe: The method's settings.

    Raises:
        RecipeError: If the process has no such steps.
    """
    # Semantic guidance acts at steps t_h >= k > t_l (DIVER, semantic fusion).
    gamma = np.where(steps_within(recipe.window, recipe.steps), recipe.gamma, 0.0)
    # [4, K] => [K, 4], a row for each step
    weights: Float64 = (gamma * GUIDES[recipe.guide](process, recipe.steps)).T
    return weights
