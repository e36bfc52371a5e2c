"""The straight path against closed forms, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from diver_trt.errors import RecipeError
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.flow import Flow
from diver_trt.method.guidance import GUIDES
from diver_trt.method.process import Process
from diver_trt.method.schedule import Schedule, nearest_step, noise_ratios
from diver_trt.method.step import StepLayout
from diver_trt.recipe import Recipe, Sigma

SIT, REPA = Flow(time_rises_to="data"), Flow(time_rises_to="noise")
DIT = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
LAYOUT = StepLayout(channels=4, learned_variance=False, guided_channels=3)


def test_sit_is_given_the_share_of_data_and_repa_that_of_noise() -> None:
    np.testing.assert_allclose(SIT.times(4), [0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(REPA.times(4), [0.25, 0.5, 0.75, 1])
    assert SIT.times(4).dtype == np.float32


@pytest.mark.parametrize("flow", [SIT, REPA], ids=["sit", "repa"])
def test_the_true_velocity_leads_through_every_level_to_the_data(flow: Flow) -> None:
    generator = np.random.default_rng(0)
    data, noise = generator.standard_normal((2, 4, 8, 8))
    velocity = data - noise if flow is SIT else noise - data
    alpha, sigma = flow.levels(50)
    assert (alpha[0], sigma[0], alpha[50], sigma[50]) == (1, 0, 0, 1)
    a, b = flow.coefficients(50)
    first, second = flow.clean_estimate(50)
    latent = noise
    for k in range(50, 0, -1):
        np.testing.assert_allclose(first[k - 1] * latent + second[k - 1] * velocity, data)
        latent = a[k - 1] * latent + b[k - 1] * velocity
        np.testing.assert_allclose(latent, alpha[k - 1] * data + sigma[k - 1] * noise, atol=1e-13)


def test_the_scale_of_guidance_is_the_share_of_noise_and_no_other() -> None:
    own: tuple[Sigma | None, ...] = (None, "marginal")
    for chosen in own:
        low, high = SIT.log_variance_bounds(50, chosen, learned=False)
        np.testing.assert_allclose(np.exp(low / 2), np.arange(1, 51) / 50)
        assert low is high
    of_a_chain: tuple[Sigma, ...] = ("learned", "posterior")
    for chosen in of_a_chain:
        with pytest.raises(RecipeError, match=f"sigma is '{chosen}', which only a DDPM chain has"):
            Schedule(SIT, Recipe(sigma=chosen), LAYOUT)


@pytest.mark.parametrize("kind", GUIDES)
def test_every_kind_of_guidance_is_defined(kind: str) -> None:
    recipe = Recipe(guide=kind)  # type: ignore[arg-type]
    assert np.isfinite(Schedule(REPA, recipe, LAYOUT).table).all()


@pytest.mark.parametrize(
    ("process", "ratio"), [(DIT, 0.3237), (SIT, 1.0), (REPA, 1.0)], ids=["dit", "sit", "repa"]
)
def test_step_25_of_50_is_another_level_on_every_process(process: Process, ratio: float) -> None:
    assert noise_ratios(process, 50)[24] == pytest.approx(ratio, abs=1e-3)
    assert Schedule(process, Recipe(), LAYOUT).inherited_ratio == pytest.approx(ratio, abs=1e-3)
    assert nearest_step(process, 50, ratio) == 25


def test_a_level_of_dit_is_found_on_a_straight_path() -> None:
    # 1 - s over s is 0.3237 at s = 0.755: step 38 of 50.
    assert nearest_step(SIT, 50, 0.3237) == 38
    assert nearest_step(SIT, 50, 1e-9) == 49  # the level of step 50 has no signal at all
    assert nearest_step(SIT, 50, 1e9) == 1
    for ratio in (0, -1, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="expected a number above 0"):
            nearest_step(SIT, 50, ratio)


def test_a_guidance_interval_leaves_the_other_steps_unguided() -> None:
    table = Schedule(REPA, Recipe(cfg_scale=1.8, cfg_window=(35, 5)), LAYOUT).table
    guided = np.flatnonzero(table[:, 0] != 1) + 1
    assert guided.tolist() == list(range(6, 36))
    np.testing.assert_array_equal(table[5:35, :3], np.float32(1.8))
    np.testing.assert_array_equal(table[:, 3], 1)
