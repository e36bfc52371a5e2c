"""The recipe's defaults are the paper's, and contradictions are refused with a remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diver_trt.errors import RecipeError
from diver_trt.recipe import PRESETS, Recipe


def test_the_default_is_the_papers() -> None:
    assert Recipe() == PRESETS["paper"]
    assert Recipe().to_json() == {
        "steps": 50,
        "inherit_step": 25,
        "start_step": 50,
        "cfg_scale": 4.0,
        "cfg_channels": None,
        "gamma": 0.1,
        "window": (40, 25),
        "sigma": None,
        "cfg_window": None,
        "guide": "latent",
    }


def test_ncfm_sets_want_a_weaker_guidance() -> None:
    assert PRESETS["ncfm"] == Recipe(gamma=0.02)


def test_matched_runs_half_the_steps() -> None:
    assert PRESETS["matched"].start_step == PRESETS["matched"].inherit_step == 25


def test_level_starts_and_pulls_at_the_noise_level_of_each_step() -> None:
    level = PRESETS["level"]
    assert level.start_step == level.inherit_step == 40
    assert (level.guide, list(level.guided_steps)) == ("noised", list(range(40, 16, -1)))


def test_another_place_to_pull_to_is_refused() -> None:
    with pytest.raises(RecipeError, match="guide is 'noise'; expected one of latent, noised, x0"):
        Recipe(guide="noise")  # type: ignore[arg-type]


def test_json_round_trip() -> None:
    recipe = Recipe(gamma=0.02, window=(30, 10), inherit_step=None)
    assert Recipe.from_json({**recipe.to_json(), "window": [30, 10]}) == recipe


def test_numbers_of_numpy_are_numbers() -> None:
    recipe = Recipe(
        steps=np.int64(20),
        inherit_step=np.int32(10),
        start_step=np.uint8(20),
        window=(np.int64(16), 10),
        gamma=np.float64(0.1),
    )
    assert recipe == Recipe(steps=20, inherit_step=10, start_step=20, window=(16, 10))
    assert json.loads(json.dumps(recipe.to_json()))["window"] == [16, 10]
    with pytest.raises(RecipeError, match=r"steps is a number of 16,610 bits; expected a whole"):
        Recipe(steps=-(10**5000))


def test_equal_recipes_are_written_alike() -> None:
    integers, floats = Recipe(cfg_scale=4, gamma=0), Recipe(cfg_scale=4.0, gamma=0.0)
    assert json.dumps(integers.to_json()) == json.dumps(floats.to_json())


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(RecipeError, match="unknown settings strength"):
        Recipe.from_json({"strength": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "steps is 1; expected a whole number, 2 or more"),
        (
            {"steps": 20},
            r"start_step is 50; expected a whole number from 1 to 20.*scaled_to\(20\): "
            "--inherit-step 10 --start-step 20 --window 16:10",
        ),
        ({"inherit_step": 51}, "inherit_step is 51; expected a whole number from 1 to 50"),
        ({"inherit_step": 0}, "inherit_step is 0"),
        ({"inherit_step": 2.5}, "inherit_step is 2.5"),
        ({"cfg_scale": 0.5}, "cfg_scale is 0.5; expected a number from 1 to 1000"),
        ({"cfg_scale": 1e308}, "cfg_scale is 1e[+]308; expected a number from 1 to 1000"),
        ({"gamma": 1e308}, "gamma is 1e[+]308; expected a number from 0 to 1000"),
        ({"gamma": float("inf")}, "gamma is inf"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"cfg_channels": 0}, "cfg_channels is 0"),
        ({"gamma": -0.1}, "gamma is -0.1; expected a number from 0 to 1000"),
        ({"gamma": True}, "gamma is True"),
        ({"sigma": "big"}, "sigma is 'big'; expected one of learned, posterior, marginal"),
        (
            {"window": (25, 40)},
            "window is 25:40; it runs downwards, so expected the larger step first, 40:25",
        ),
        ({"window": (30, 30)}, "window is 30:30, which holds no step; expected a last step below"),
        ({"window": (60, 25)}, "window's first step is 60; expected a whole number from 1 to 50.$"),
        ({"window": 40}, "window is 40; expected two steps"),
        (
            {"start_step": 25},
            "window is 40:25 but sampling starts at step 25.*Set the window to 25:10",
        ),
        (
            {"start_step": 25, "window": (25, 10), "cfg_window": (50, 25)},
            "cfg_window is 50:25 but sampling starts at step 25, .* Set its last step below 25",
        ),
        (
            {"inherit_step": None, "start_step": 40},
            "inheritance is off: the model expects pure noise at step 50 only",
        ),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**settings)


def test_without_guidance_the_window_does_not_matter() -> None:
    assert list(Recipe(start_step=25, gamma=0).guided_steps) == []
    assert Recipe(start_step=25, gamma=0, cfg_scale=1, cfg_window=(50, 30)).cfg_window == (50, 30)


@pytest.mark.parametrize(
    ("preset", "steps", "settings"),
    [
        ("paper", 50, {"inherit_step": 25, "start_step": 50, "window": (40, 25)}),
        ("paper", 20, {"inherit_step": 10, "start_step": 20, "window": (16, 10)}),
        ("paper", 250, {"inherit_step": 125, "start_step": 250, "window": (200, 125)}),
        ("paper", 3, {"inherit_step": 2, "start_step": 3, "window": (2, 1)}),
        ("matched", 20, {"inherit_step": 10, "start_step": 10, "window": (10, 4)}),
        ("ncfm", 10, {"gamma": 0.02, "inherit_step": 5, "start_step": 10, "window": (8, 5)}),
    ],
)
def test_a_preset_scales_to_other_steps(preset: str, steps: int, settings: dict[str, Any]) -> None:
    assert PRESETS[preset].scaled_to(steps) == replace(PRESETS[preset], steps=steps, **settings)


def test_every_preset_scales_to_every_number_of_steps() -> None:
    for preset in PRESETS.values():
        for steps in range(2, 1001):
            scaled = preset.scaled_to(steps)
            assert scaled.guided_steps
            assert preset.inherit_step is not None
            assert scaled.inherit_step is not None
            for ours, theirs in (
                (scaled.inherit_step, preset.inherit_step),
                (scaled.start_step, preset.start_step),
                (scaled.window[0], preset.window[0]),
            ):
                assert 2 * abs(ours * preset.steps - theirs * steps) <= preset.steps
            # Raises if it would never act.
            replace(preset, cfg_window=(50, preset.start_step - 1)).scaled_to(steps)


def test_without_inheritance_it_stays_off_when_scaled() -> None:
    assert Recipe(inherit_step=None).scaled_to(20).inherit_step is None
    with pytest.raises(RecipeError, match="steps is 1; expected a whole number, 2 or more"):
        Recipe().scaled_to(1)


def test_more_steps_than_the_papers_alone_are_doubted() -> None:
    """The settings that name a step would mean lower noise levels; with fewer they are refused."""
    doubt = Recipe(steps=100).doubt
    assert doubt is not None
    assert "steps is 100, but the settings that name a step are those for 50" in doubt
    assert "Recipe().scaled_to(100): --inherit-step 50 --start-step 100 --window 80:50" in doubt
    for recipe in (*PRESETS.values(), Recipe().scaled_to(100), Recipe(steps=100, start_step=100)):
        assert recipe.doubt is None


def test_settings_that_are_not_an_object_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"settings are \[1\]; expected an object"):
        Recipe.from_json([1])  # type: ignore[arg-type]
