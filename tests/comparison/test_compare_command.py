"""`diver-trt compare` as a user meets it: exit codes, one line per check, JSON, reports, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.errors import DeviceMemoryError
from diver_trt.runtime.onnx_engine import OnnxSession
from tests.comparison.faults import exchange_predictions, plant, scale_initializer, scale_weight_beside
from tests.conftest import DIGITS_MODEL, DISTILLED

QUICK = ("--samples", 2, "--steps", 6, "--inherit-step", 3, "--start-step", 6, "--window", "5:3")


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *(str(argument) for argument in arguments)])


def refused(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_a_right_bundle_passes_and_says_how_far_it_is(digits: Bundle) -> None:
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "onnx fp32: passed"
    assert any(line.startswith("  ok   every step alone: relative L2 ") and "worst in step" in line for line in lines)
    assert lines[-1] == "passed: onnx fp32 stays with torch fp32"


def test_two_precisions_side_by_side_without_a_model(digits: Bundle, digits_fp16: Bundle, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    result = compare(digits.path, digits_fp16.path, "--report", report, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["reference"], [engine["name"] for engine in facts["engines"]]) == ("onnx fp32", ["onnx fp16"])
    assert {"rtx fp32", "rtx fp16", "trt fp32"} <= {absent["name"] for absent in facts["not_compared"]}
    assert all(absent["reason"] for absent in facts["not_compared"])
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1.01)}, "block 4, MLP is the first to leave the reference"),
        ({"denoiser": exchange_predictions}, "guidance takes the class's row for the null class's and the other way round"),
        ({"encoder": scale_initializer("scale", 1.3)}, "all latents are 1.3 times as large, so look at the scaling factor"),
    ],
    ids=["a weight of block 4", "guidance rows", "scaling factor"],
)
def test_a_planted_fault_fails_and_is_named(digits: Bundle, tmp_path: Path, edits: dict[str, Any], message: str) -> None:
    wrong = plant(digits, tmp_path / "planted", edits)
    result = compare(wrong.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert message in result.stdout
    assert result.stdout.splitlines()[-1].startswith("failed: onnx fp32 leaves torch fp32")


def test_an_engine_whose_window_is_off_by_one_fails_and_is_named(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    open_denoiser, gamma = OnnxSession.open_denoiser, digits.layout.gamma

    def off_by_one(session: OnnxSession, table: Any, steps: int) -> Any:
        shifted = table.copy()
        shifted[:, gamma] = np.roll(table[:, gamma], 1)
        return open_denoiser(session, shifted, steps)

    monkeypatch.setattr(OnnxSession, "open_denoiser", off_by_one)
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", "--samples", 2)
    assert result.exit_code == 1
    assert "-> semantic guidance acts in the window 41:26 instead of 40:25" in result.stdout


def test_an_engine_that_was_asked_for_and_is_missing_fails(digits: Bundle) -> None:
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", "--engine", "onnx-cuda", *QUICK)
    assert result.exit_code == 1
    assert "not compared: onnx-cuda fp32: " in result.stderr
    assert result.stdout.splitlines()[0] == "onnx fp32: passed"
    assert result.stdout.splitlines()[-1] == "failed: onnx fp32 stays with torch fp32; onnx-cuda fp32 could not be compared"


def test_an_engine_that_fails_on_the_way_is_listed(digits: Bundle, digits_fp16: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    open_denoiser = OnnxSession.open_denoiser

    def refuses_fp16(session: OnnxSession, table: Any, steps: int) -> Any:
        if session.bundle.precision == "fp16":
            raise DeviceMemoryError("there is no room for the denoiser")
        return open_denoiser(session, table, steps)

    monkeypatch.setattr(OnnxSession, "open_denoiser", refuses_fp16)
    result = compare(digits.path, digits_fp16.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 1
    assert "not compared: onnx fp16: failed on the way: there is no room for the denoiser" in result.stderr
    assert "onnx fp32: passed" in result.stdout


def test_images_of_a_folder_and_of_random_pixels(digits: Bundle, digits_fp16: Bundle) -> None:
    """Without a model: two bundles are enough."""
    for options, origin in ((("--images", DISTILLED), "2 distilled images of ipc10"), (("--random",), "2 images of random pixels")):
        result = compare(digits.path, digits_fp16.path, "--engine", "onnx", "--json", *options, *QUICK)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["inputs"]["origin"] == origin


def test_what_contradicts_itself_is_wrong_usage(digits: Bundle) -> None:
    assert "contradict each other" in refused(compare(digits.path, "--random", "--images", DISTILLED), code=2)
    assert compare(digits.path, "--samples", 0).exit_code == 2
    assert compare(digits.path, "--window", "soon").exit_code == 2
    assert compare().exit_code == 2


def test_what_cannot_be_compared_is_refused_with_the_way_out(digits: Bundle, tmp_path: Path, random_bundle: Bundle) -> None:
    assert "it takes two engines that work here, or one and --model" in refused(compare(digits.path, "--engine", "onnx"))
    assert "compare bundles of one model" in refused(compare(digits.path, random_bundle.path))
    assert "not a bundle" in refused(compare(tmp_path))
    assert "has no model_index.json" in refused(compare(digits.path, "--model", tmp_path))
    assert "is a folder; expected the name of an HTML file" in refused(compare(digits.path, "--report", tmp_path))
    assert "no such folder; make it first" in refused(compare(digits.path, "--report", tmp_path / "missing" / "report.html"))


@pytest.mark.parametrize("package", ["skimage", "matplotlib", "jinja2"])
def test_a_missing_extra_is_found_before_any_work(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(compare(digits.path, "--model", DIGITS_MODEL, "--report", tmp_path / "report.html", *QUICK))
    assert "run `pip install 'diver-trt[compare]'`" in message
    assert "held against it" not in message


def test_comparing_with_a_model_needs_torch(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("diver_trt.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "comparing with the model needs torch" in refused(compare(digits.path, "--model", DIGITS_MODEL, *QUICK))


def test_two_bundles_are_compared_without_torch(digits: Bundle, edited: Callable[..., Path]) -> None:
    other = edited(lambda manifest: None)
    code = f"""
import sys
sys.argv = ["diver-trt", "compare", {str(digits.path)!r}, {str(other)!r}, "--engine", "onnx", *{[str(option) for option in QUICK]!r}]
from diver_trt.cli import main
try:
    main()
finally:
    assert not {{"torch", "diffusers", "matplotlib"}} & {{name.split(".")[0] for name in sys.modules}}
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "passed: onnx fp32 (edited) stays with onnx fp32 (digits)" in found.stdout


def test_the_help_ends_with_a_line_to_paste() -> None:
    result = compare("--help")
    assert result.exit_code == 0
    assert "diver-trt compare " in [line for line in result.stdout.splitlines() if line.strip()][-1]
