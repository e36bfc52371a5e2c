"""Where sampling starts."""

from __future__ import annotations

import numpy as np

from diver_trt.method.inheritance import start_latent
from diver_trt.method.schedule import NoiseSchedule
from diver_trt.recipe import Recipe

ABAR = NoiseSchedule(kind="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000).respaced(
    50
)


def test_the_start_has_the_inherited_noise_level() -> None:
    anchor, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    start = start_latent(anchor, noise, ABAR, Recipe())
    assert start.dtype == np.float32
    np.testing.assert_allclose(
        start, np.sqrt(ABAR[25]) * anchor + np.sqrt(1 - ABAR[25]) * noise, atol=1e-6
    )


def test_the_paper_starts_sampling_above_that_level() -> None:
    assert ABAR[Recipe().start_step] < ABAR[25]


def test_without_inheritance_the_start_is_the_noise() -> None:
    anchor, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        start_latent(anchor, noise, ABAR, Recipe(inherit_step=None)), noise
    )
