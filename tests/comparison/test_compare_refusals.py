"""`diver-trt compare`: what it refuses, and the remedy that it names."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.models.denoiser import Denoiser
from tests.cli.command import fails
from tests.comparison.command import QUICK, compare, compare_onnx, refused
from tests.conftest import DISTILLED

pytestmark = pytest.mark.slow


def test_contradictory_options_are_wrong_usage(digits: Bundle) -> None:
    assert "contradict each other" in refused(
        compare(digits.path, "--random", "--images", DISTILLED), code=2
    )
    assert "--classes describes --images" in refused(
        compare(digits.path, "--classes", "model"), code=2
    )
    for option in ("--revision", "--vae"):
        assert f"{option} describes --model" in refused(compare(digits.path, option, "x"), code=2)
    assert compare(digits.path, "--samples", 0).exit_code == 2
    assert compare(digits.path, "--seed", 2**63).exit_code == 2
    assert compare(digits.path, "--window", "soon").exit_code == 2
    assert compare().exit_code == 2


def test_the_same_bundle_by_another_path_is_given_twice(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(digits.path)
    assert "is given twice" in fails(compare(digits.path, tmp_path / "link"), code=2)


def test_inputs_that_cannot_be_compared_are_refused_with_a_remedy(
    digits: Bundle, tmp_path: Path, random_bundle: Bundle
) -> None:
    assert "expected two engines that work here, or one and --model" in fails(
        compare(digits.path, "--engine", "onnx")
    )
    assert "Compare bundles of one model" in fails(compare(digits.path, random_bundle.path))
    assert "not a bundle" in fails(compare(tmp_path))
    assert "has no model_index.json" in fails(compare(digits.path, "--model", tmp_path))
    assert "is a folder; expected the name of an HTML file" in fails(
        compare(digits.path, "--report", tmp_path)
    )
    assert "no such folder; make it first" in fails(
        compare(digits.path, "--report", tmp_path / "missing" / "report.html")
    )


@pytest.mark.parametrize("package", ["skimage", "matplotlib", "jinja2", "onnx"])
def test_a_missing_extra_is_found_before_any_work(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = fails(compare_onnx(digits.path, "--report", tmp_path / "report.html"))
    assert "run `pip install 'diver-trt[compare]'`" in message
    assert "compared with it" not in message


def test_comparing_with_a_model_needs_torch(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("diver_trt.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "comparing with the model needs torch" in fails(compare_onnx(digits.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"null_label": 3},
            "null_label: found 3, expected 10: the null class comes right after the classes",
        ),
        (
            {
                "process": {
                    "kind": "ddpm",
                    "beta_schedule": "linear",
                    "beta_start": 0.0001,
                    "beta_end": 0.018,
                    "train_timesteps": 1000,
                }
            },
            "bundle.json has linear betas from 0.0001 to 0.018 over 1000 timesteps, dit-digits was "
            "trained with linear betas from 0.0001 to 0.02",
        ),
        (
            {"scaling_factor": 0.18215},
            "has the scaling factor 0.18215, the VAE of dit-digits has 0.5",
        ),
    ],
)
def test_a_manifest_that_contradicts_the_model_is_refused(
    digits: Bundle, edited: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    other = edited(lambda manifest: manifest.update(change))
    assert message in fails(compare_onnx(other))
    if "null_label" not in change:
        assert ". Compare bundles of one model" in fails(
            compare(digits.path, other, "--engine", "onnx", *QUICK)
        )


def test_the_reference_is_checked_against_the_models_own_code(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exchanged rows in the module that is both the exported one and the reference."""
    forward = Denoiser.forward

    def exchanged(
        self: Denoiser, latent: Any, anchor: Any, noise: Any, condition: Any, coefficients: Any
    ) -> Any:
        return forward(self, latent, anchor, noise, condition.flip(0), coefficients)

    monkeypatch.setattr(Denoiser, "forward", exchanged)
    message = fails(compare_onnx(digits.path))
    assert re.search(
        r"the exporter's denoiser is a relative \S+ away from dit-digits in diffusers", message
    )
