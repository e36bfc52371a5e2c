"""Semantic inheritance: where the reverse process starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diver_trt.recipe import Recipe


def start_latent(
    anchor: NDArray[np.float32],
    noise: NDArray[np.float32],
    abar: NDArray[np.float64],
    recipe: Recipe,
) -> NDArray[np.float32]:
    """Return the latent that sampling starts from, [n, c, h, w] float32.

    It is z_{t_f} = sqrt(abar_{t_f}) z_0 + sqrt(1 - abar_{t_f}) n (DIVER, semantic inheritance; DDPM, Eq. 4). Sampling starts with
    it at step `t_r`, which the paper deliberately puts above t_f. With inheritance off it is the noise itself.

    Args:
        anchor: z_0, the scaled latents of the distilled images, [n, c, h, w] float32.
        noise: n ~ N(0, I), [n, c, h, w] float32.
        abar: The respaced chain, [K + 1] float64 with abar[0] = 1.
        recipe: Gives t_f.
    """
    if recipe.inherit_step is None:
        return noise
    level = abar[recipe.inherit_step]
    lifted: NDArray[np.float32] = (
        np.float32(np.sqrt(level)) * anchor + np.float32(np.sqrt(1 - level)) * noise
    )
    return lifted
