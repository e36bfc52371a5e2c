"""The recipe's settings as options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import QUICK, fails, run, succeeds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"steps": 50, "inherit_step": 25, "start_step": 50, "gamma": 0.1, "window": [40, 25]}),
        (("--preset", "ncfm"), {"gamma": 0.02}),
        (("--preset", "matched"), {"start_step": 25, "window": [25, 10]}),
        (
            ("--steps", "20"),
            {"steps": 20, "inherit_step": 10, "start_step": 20, "window": [16, 10], "gamma": 0.1},
        ),
        (
            ("--steps", "20", "--window", "8:2"),
            {"inherit_step": 10, "start_step": 20, "window": [8, 2]},
        ),
        (
            ("--preset", "matched", "--steps", "20"),
            {"inherit_step": 10, "start_step": 10, "window": [10, 4]},
        ),
        (("--no-inheritance",), {"inherit_step": None}),
        (("--no-guidance",), {"gamma": 0.0}),
        (("--window", "full"), {"window": [50, 0]}),
        (("--start-step", "matched", "--window", "25:10"), {"start_step": 25, "inherit_step": 25}),
        (
            ("--start-step", "matched", "--inherit-step", "30"),
            {"start_step": 30, "inherit_step": 30, "window": [40, 25]},
        ),
        # A preset that starts at the level that it inherits keeps doing so.
        (("--preset", "matched", "--inherit-step", "40"), {"start_step": 40, "inherit_step": 40}),
        (("--preset", "matched", "--start-step", "30"), {"start_step": 30, "inherit_step": 30}),
        (
            ("--preset", "level", "--inherit-snr", "0.13"),
            {"start_step": 33, "inherit_step": 33, "window": [40, 16]},
        ),
        (
            ("--preset", "level", "--inherit-step", "30", "--start-step", "35"),
            {"start_step": 35, "inherit_step": 30},
        ),
        (("--preset", "paper", "--inherit-step", "40"), {"start_step": 50, "inherit_step": 40}),
        (
            ("--cfg-scale", "1.5", "--cfg-channels", "4", "--sigma", "marginal"),
            {"cfg_scale": 1.5, "cfg_channels": 4, "sigma": "marginal"},
        ),
    ],
)
def test_every_setting_reaches_the_manifest(
    few: Path, tmp_path: Path, options: tuple[str, ...], expected: dict[str, Any]
) -> None:
    shutil.rmtree(few / "3")
    succeeds("recover", few, tmp_path / "out", *options)
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert {name: recipe[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--steps", "20", "--start-step", "30"),
            "start_step is 30; expected a whole number from 1",
        ),
        (("--cfg-scale", "1e308"), "cfg_scale is 1e+308; expected a number from 1 to 1000"),
        (("--gamma", "1e308"), "gamma is 1e+308; expected a number from 0 to 1000"),
        (("--steps", "1001"), "steps is 1001, but the model was trained with 1000 timesteps"),
        (("--start-step", "matched"), "semantic guidance would never act"),
        (("--no-inheritance", "--start-step", "40"), "inheritance is off"),
        (("--window", "soon"), "--window is 'soon'; expected HIGH:LOW"),
        (("--window", "²:1"), "expected HIGH:LOW"),
        (("--window", "1" * 5000 + ":1"), "expected HIGH:LOW"),
        (("--gamma", "-1"), "gamma is -1.0"),
        (
            ("--no-inheritance", "--inherit-step", "30"),
            "--no-inheritance and --inherit-step 30 contradict each other",
        ),
        (
            ("--no-guidance", "--gamma", "0.2"),
            "--no-guidance and --gamma 0.2 contradict each other",
        ),
        (("--no-inheritance", "--start-step", "matched"), "no level is inherited that"),
        (("--inherit-step", "0", "--inherit-snr", "0.3"), "--inherit-snr contradicts"),
        (("--window-snr", "0.32:0.325"), "both levels are nearest to step 25 of 50"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_wrong_usage(
    few: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in fails(run("recover", few, tmp_path / "out", *options), code=2)
    assert not (tmp_path / "out").exists()


def test_scaled_settings_are_printed(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", "--steps", "10", "--start-step", "10")
    printed = "--steps 10: --inherit-step 5, --window 8:5, as paper has them among 50"
    assert f"diver-trt: {printed}" in result.stderr
    assert "as paper has them" not in run("recover", few, tmp_path / "b", *QUICK).stderr


def test_a_preset_that_follows_says_so(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", "--preset", "matched", "--inherit-step", "40")
    assert "--start-step 40: matched starts at the level that it inherits" in result.stderr
