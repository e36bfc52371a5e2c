"""The step table, the times and the start of a recovery."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from diver_trt.errors import RecipeError
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.schedule import Schedule, step_table
from diver_trt.method.step import StepLayout
from diver_trt.recipe import Recipe

PROCESS = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
LAYOUT = StepLayout(channels=4, learned_variance=True, guided_channels=3)


def test_the_table_guides_three_channels_and_acts_in_the_window_only() -> None:
    table = step_table(PROCESS, Recipe(), LAYOUT)
    assert table.shape == (50, 12)
    assert table.dtype == np.float64
    assert (table[:, :3] == 4.0).all()
    assert (table[:, 3] == 1.0).all()
    guidance = table[:, LAYOUT.guidance]
    assert (np.flatnonzero(guidance.any(axis=1)) + 1).tolist() == list(range(26, 41))
    assert guidance[25:40].tolist() == [[0.1, 0, -0.1, 0]] * 15


def test_the_guided_steps_of_a_recipe_are_those_of_its_table() -> None:
    for recipe in (
        Recipe(),
        Recipe(window=(50, 0)),
        Recipe(start_step=25, window=(25, 10)),
        Recipe(gamma=0),
    ):
        table = step_table(PROCESS, recipe, LAYOUT)
        acting = (np.flatnonzero(table[:, LAYOUT.guidance].any(axis=1)) + 1).tolist()
        assert [k for k in acting if k <= recipe.start_step] == sorted(recipe.guided_steps)


def test_more_guided_channels_than_the_latent_has_are_refused() -> None:
    with pytest.raises(RecipeError, match="cfg_channels is 5, but the model's latents have 4"):
        Schedule(PROCESS, Recipe(cfg_channels=5), LAYOUT)


@pytest.mark.parametrize("own", [1, 2, 4])
def test_a_recipe_that_does_not_set_them_guides_the_models_own_channels(own: int) -> None:
    layout = StepLayout(channels=4, learned_variance=True, guided_channels=own)
    table = step_table(PROCESS, Recipe(cfg_scale=2.5), layout)
    assert table[:, :4].tolist() == [[2.5] * own + [1.0] * (4 - own)] * 50
    stated = step_table(PROCESS, Recipe(cfg_scale=2.5, cfg_channels=3), layout)
    assert stated[0, :4].tolist() == [2.5, 2.5, 2.5, 1.0]


def test_a_schedule_holds_the_rounded_table_and_the_times_of_the_steps_that_are_run() -> None:
    recipe = Recipe(start_step=25, window=(25, 10))
    schedule = Schedule(PROCESS, recipe, LAYOUT)
    assert schedule.table.dtype == schedule.times.dtype == np.float32
    np.testing.assert_array_equal(
        schedule.table, step_table(PROCESS, recipe, LAYOUT).astype(np.float32)
    )
    assert schedule.times.tolist() == list(range(0, 500, 20))


def test_equal_schedules_compare_equal_and_none_can_be_changed() -> None:
    schedule = Schedule(PROCESS, Recipe(), LAYOUT)
    assert schedule == Schedule(PROCESS, Recipe(), LAYOUT)
    assert schedule != Schedule(PROCESS, Recipe(gamma=0.2), LAYOUT)
    with pytest.raises(FrozenInstanceError):
        schedule.recipe = Recipe()  # type: ignore[misc]


def test_the_start_has_the_inherited_noise_level() -> None:
    anchor, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    start = Schedule(PROCESS, Recipe(), LAYOUT).start(anchor, noise)
    abar = PROCESS.respaced(50)[25]
    assert start.dtype == np.float32
    np.testing.assert_allclose(start, np.sqrt(abar) * anchor + np.sqrt(1 - abar) * noise, atol=1e-6)


def test_without_inheritance_the_start_is_the_noise() -> None:
    anchor, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    schedule = Schedule(PROCESS, Recipe(inherit_step=None), LAYOUT)
    np.testing.assert_array_equal(schedule.start(anchor, noise), noise)
