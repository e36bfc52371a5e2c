"""The step table against closed forms, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from diver_trt.errors import RecipeError
from diver_trt.method.schedule import (
    NoiseSchedule,
    ddim_coefficients,
    log_variance_bounds,
    step_table,
)
from diver_trt.method.step import StepLayout
from diver_trt.recipe import Recipe

SCHEDULE = NoiseSchedule(kind="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
LAYOUT = StepLayout(channels=4, learned_variance=True)


def test_fifty_steps_are_dits_ddim50() -> None:
    assert SCHEDULE.timesteps(50).tolist() == list(range(0, 1000, 20))


def test_the_respaced_chain_starts_at_one_and_falls() -> None:
    abar = SCHEDULE.respaced(50)
    assert abar.shape == (51,)
    assert abar[0] == 1
    assert (np.diff(abar) < 0).all()
    np.testing.assert_allclose(abar[1], 1 - 1e-4, rtol=1e-15)


def test_scaled_linear_is_linear_in_the_square_root() -> None:
    schedule = NoiseSchedule(
        kind="scaled_linear", beta_start=0.00085, beta_end=0.012, train_timesteps=3
    )
    betas = np.array([0.00085, ((0.00085**0.5 + 0.012**0.5) / 2) ** 2, 0.012])
    np.testing.assert_allclose(schedule.alphas_cumprod(), np.cumprod(1 - betas), rtol=1e-14)


def test_ddim_with_the_true_noise_returns_z0_and_every_level_between() -> None:
    generator = np.random.default_rng(0)
    z0, noise = generator.standard_normal((2, 4, 8, 8))
    abar = SCHEDULE.respaced(50)
    a, b = ddim_coefficients(abar)
    latent = np.sqrt(abar[50]) * z0 + np.sqrt(1 - abar[50]) * noise
    for k in range(50, 0, -1):
        latent = a[k - 1] * latent + b[k - 1] * noise
        np.testing.assert_allclose(
            latent, np.sqrt(abar[k - 1]) * z0 + np.sqrt(1 - abar[k - 1]) * noise, atol=1e-11
        )
    np.testing.assert_allclose(latent, z0, atol=1e-11)


def test_learned_variance_lies_between_the_posterior_and_the_prior() -> None:
    abar = SCHEDULE.respaced(50)
    low, high = log_variance_bounds(abar, "learned")
    k = 30
    beta = 1 - abar[k] / abar[k - 1]
    np.testing.assert_allclose(np.exp(high[k - 1]), beta, rtol=1e-12)
    np.testing.assert_allclose(
        np.exp(low[k - 1]), beta * (1 - abar[k - 1]) / (1 - abar[k]), rtol=1e-12
    )
    assert (low[1:] <= high[1:]).all()


def test_the_first_posterior_variance_is_clipped_to_the_second() -> None:
    low, _ = log_variance_bounds(SCHEDULE.respaced(50), "posterior")
    assert low[0] == low[1]
    assert np.isfinite(low).all()


def test_marginal_sigma_is_the_noise_level() -> None:
    abar = SCHEDULE.respaced(50)
    low, high = log_variance_bounds(abar, "marginal")
    np.testing.assert_allclose(np.exp(low / 2), np.sqrt(1 - abar[1:]), rtol=1e-14)
    assert (low == high).all()


def test_the_table_guides_three_channels_and_acts_in_the_window_only() -> None:
    table = step_table(SCHEDULE, Recipe(), LAYOUT)
    assert table.shape == (50, 9)
    assert table.dtype == np.float64
    assert (table[:, :3] == 4.0).all()
    assert (table[:, 3] == 1.0).all()
    acting = np.flatnonzero(table[:, LAYOUT.gamma]) + 1
    assert acting.tolist() == list(range(26, 41))
    assert (table[25:40, LAYOUT.gamma] == 0.1).all()


def test_the_guided_steps_of_a_recipe_are_those_of_its_table() -> None:
    for recipe in (
        Recipe(),
        Recipe(window=(50, 0)),
        Recipe(start_step=25, window=(25, 10)),
        Recipe(gamma=0),
    ):
        table = step_table(SCHEDULE, recipe, LAYOUT)
        acting = (np.flatnonzero(table[:, LAYOUT.gamma]) + 1).tolist()
        assert [k for k in acting if k <= recipe.start_step] == sorted(recipe.guided_steps)


def test_a_model_without_variance_takes_the_posterior() -> None:
    without = StepLayout(channels=4, learned_variance=False)
    learned = step_table(SCHEDULE, Recipe(sigma="learned"), without)
    posterior = step_table(SCHEDULE, Recipe(sigma="posterior"), without)
    np.testing.assert_array_equal(learned, posterior)


def test_more_steps_than_the_model_was_trained_with_are_refused() -> None:
    with pytest.raises(RecipeError, match="steps is 2000, but the model was trained with 1000"):
        SCHEDULE.timesteps(2000)


def test_more_guided_channels_than_the_latent_has_are_refused() -> None:
    with pytest.raises(RecipeError, match="cfg_channels is 5, but the model's latents have 4"):
        step_table(SCHEDULE, Recipe(cfg_channels=5), LAYOUT)
