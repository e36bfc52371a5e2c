"""`diver-trt compare` as a user meets it: exit codes, one line per check, JSON, reports, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.comparison import torch_engine
from diver_trt.errors import DeviceMemoryError, MissingExtraError
from diver_trt.models.denoiser import Denoiser
from diver_trt.runtime.backends import onnx as onnx_engine
from diver_trt.runtime.backends.onnx import OnnxSession
from tests.comparison.faults import (
    exchange_predictions,
    plant,
    scale_initializer,
    scale_weight_beside,
)
from tests.conftest import DIGITS_MODEL, DISTILLED

pytestmark = pytest.mark.slow

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
    assert any(
        line.startswith("  ok   every step alone: relative L2 ") and "worst in step" in line
        for line in lines
    )
    assert lines[-1] == "passed: onnx fp32 stays with torch fp32"


def test_two_precisions_side_by_side_without_a_model(
    digits: Bundle, digits_fp16: Bundle, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    result = compare(digits.path, digits_fp16.path, "--report", report, "--json", *QUICK)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["reference"], [engine["name"] for engine in facts["engines"]]) == (
        "onnx fp32",
        ["onnx fp16"],
    )
    assert {"rtx fp32", "rtx fp16", "trt fp32"} <= {
        absent["name"] for absent in facts["not_compared"]
    }
    assert all(absent["reason"] for absent in facts["not_compared"])
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", 1.01)},
            "block 4, MLP is the first to leave the reference",
        ),
        (
            {"denoiser": exchange_predictions},
            "-> steps 6 to 1: every block holds",
        ),
        (
            {"encoder": scale_initializer("scale", 1.3)},
            "-> the encoder is a relative 3.0e-01 away from the reference on the same input",
        ),
    ],
    ids=["a weight of block 4", "guidance rows", "scaling factor"],
)
def test_a_planted_fault_fails_and_is_named(
    digits: Bundle, tmp_path: Path, edits: dict[str, Any], message: str
) -> None:
    wrong = plant(digits, tmp_path / "planted", edits)
    result = compare(wrong.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert message in result.stdout
    assert result.stdout.splitlines()[-1].startswith("failed: onnx fp32 leaves torch fp32")


def test_a_class_that_no_image_is_of_is_looked_at_too(digits: Bundle, tmp_path: Path) -> None:
    def scale_a_row(graph: Any) -> None:
        (table,) = (
            tensor for tensor in graph.initializer if tensor.name == "label_tables.0.weight"
        )
        rows = numpy_helper.to_array(table).copy()
        rows[7] *= 1.5
        table.CopyFrom(numpy_helper.from_array(rows, table.name))

    wrong = plant(digits, tmp_path / "planted", {"conditioner": scale_a_row})
    result = compare(wrong.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if "FAIL" in line or "->" in line] == [
        line
        for line in result.stdout.splitlines()
        if "every class alone" in line or "wrong for 1 classes" in line
    ]
    assert "worst for class 7" in result.stdout


def test_an_engine_whose_window_is_off_by_one_fails_and_its_steps_are_named(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_denoiser, gamma = OnnxSession.open_denoiser, digits.layout.gamma

    def off_by_one(session: OnnxSession, table: Any, steps: int) -> Any:
        shifted = table.copy()
        shifted[:, gamma] = np.roll(table[:, gamma], 1)
        return open_denoiser(session, shifted, steps)

    monkeypatch.setattr(OnnxSession, "open_denoiser", off_by_one)
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert result.exit_code == 1
    assert "-> steps 6, 4: every block holds" in result.stdout


def test_an_engine_that_was_asked_for_and_is_missing_fails(digits: Bundle) -> None:
    result = compare(
        digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", "--engine", "onnx-cuda", *QUICK
    )
    assert result.exit_code == 1
    assert "not compared: onnx-cuda fp32: " in result.stderr
    assert result.stdout.splitlines()[0] == "onnx fp32: passed"
    assert (
        result.stdout.splitlines()[-1]
        == "failed: onnx fp32 stays with torch fp32; onnx-cuda fp32 could not be compared"
    )


def test_an_engine_that_fails_on_the_way_is_listed(
    digits: Bundle, digits_fp16: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_denoiser = OnnxSession.open_denoiser

    def refuses_fp16(session: OnnxSession, table: Any, steps: int) -> Any:
        if session.bundle.precision == "fp16":
            raise DeviceMemoryError("there is not enough memory")
        return open_denoiser(session, table, steps)

    monkeypatch.setattr(OnnxSession, "open_denoiser", refuses_fp16)
    result = compare(
        digits.path, digits_fp16.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK
    )
    assert result.exit_code == 1
    assert (
        "not compared: onnx fp16: failed while running: there is not enough memory" in result.stderr
    )
    assert "onnx fp32: passed" in result.stdout


def test_images_of_a_folder_and_of_random_pixels(digits: Bundle, digits_fp16: Bundle) -> None:
    """Without a model: two bundles are enough."""
    for options, origin in (
        (("--images", DISTILLED), "2 distilled images of ipc10"),
        (("--random",), "2 images of random pixels"),
    ):
        result = compare(
            digits.path, digits_fp16.path, "--engine", "onnx", "--json", *options, *QUICK
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["inputs"]["origin"] == origin


def test_what_contradicts_itself_is_wrong_usage(digits: Bundle) -> None:
    assert "contradict each other" in refused(
        compare(digits.path, "--random", "--images", DISTILLED), code=2
    )
    assert "--classes describes --images" in refused(
        compare(digits.path, "--classes", "model"), code=2
    )
    assert compare(digits.path, "--samples", 0).exit_code == 2
    assert compare(digits.path, "--window", "soon").exit_code == 2
    assert compare().exit_code == 2


def test_what_cannot_be_compared_is_refused_with_the_way_out(
    digits: Bundle, tmp_path: Path, random_bundle: Bundle
) -> None:
    assert "expected two engines that work here, or one and --model" in refused(
        compare(digits.path, "--engine", "onnx")
    )
    assert "Compare bundles of one model" in refused(compare(digits.path, random_bundle.path))
    assert "not a bundle" in refused(compare(tmp_path))
    assert "has no model_index.json" in refused(compare(digits.path, "--model", tmp_path))
    assert "is a folder; expected the name of an HTML file" in refused(
        compare(digits.path, "--report", tmp_path)
    )
    assert "no such folder; make it first" in refused(
        compare(digits.path, "--report", tmp_path / "missing" / "report.html")
    )


@pytest.mark.parametrize("package", ["skimage", "matplotlib", "jinja2", "onnx"])
def test_a_missing_extra_is_found_before_any_work(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(
        compare(digits.path, "--model", DIGITS_MODEL, "--report", tmp_path / "report.html", *QUICK)
    )
    assert "run `pip install 'diver-trt[compare]'`" in message
    assert "compared with it" not in message


def test_comparing_with_a_model_needs_torch(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("diver_trt.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "comparing with the model needs torch" in refused(
        compare(digits.path, "--model", DIGITS_MODEL, *QUICK)
    )


def test_two_bundles_are_compared_without_torch(
    digits: Bundle, edited: Callable[..., Path]
) -> None:
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
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "passed: onnx fp32 (edited) stays with onnx fp32 (digits)" in found.stdout


def test_a_bundle_that_nothing_runs_is_no_success(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though torch in half precision, which was not requested by name, stays with torch."""
    # What a CPU makes of half precision is slow and not at issue here.
    for precision in ("fp16", "bf16"):
        monkeypatch.setitem(torch_engine._DTYPES, precision, torch.float32)

    def refuses() -> Any:
        raise MissingExtraError("onnxruntime", "cpu", "running a bundle")

    monkeypatch.setattr(onnx_engine, "import_onnxruntime", refuses)
    result = compare(digits.path, "--model", DIGITS_MODEL, *QUICK)
    assert result.exit_code == 1
    assert f"not compared: {digits.path}: no engine here can run it" in result.stderr
    assert (
        result.stdout.splitlines()[-1]
        == f"failed: torch fp16 stays with torch fp32; {digits.path} could not be compared"
    )


def test_a_bundle_that_has_changed_does_not_cost_the_others(digits: Bundle, tmp_path: Path) -> None:
    changed = shutil.copytree(digits.path, tmp_path / "changed")
    data = bytearray((changed / "decoder.onnx").read_bytes())
    data[-1] ^= 1
    (changed / "decoder.onnx").write_bytes(data)
    result = compare(
        digits.path, changed, "--model", DIGITS_MODEL, "--engine", "onnx", "--json", *QUICK
    )
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert [engine["verdict"] for engine in facts["engines"]] == ["passed"]
    (absent,) = facts["not_compared"]
    assert absent["asked"]
    assert "the file has changed since the export" in absent["reason"]


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
    assert message in refused(compare(other, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK))
    if "null_label" not in change:
        assert ". Compare bundles of one model" in refused(
            compare(digits.path, other, "--engine", "onnx", *QUICK)
        )


def test_the_exporters_rewriting_is_held_against_the_models_own_code(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows exchanged in the module that is both exported and compared with: nothing else could see it."""
    forward = Denoiser.forward

    def exchanged(
        self: Denoiser, latent: Any, anchor: Any, condition: Any, coefficients: Any
    ) -> Any:
        return forward(self, latent, anchor, condition.flip(0), coefficients)

    monkeypatch.setattr(Denoiser, "forward", exchanged)
    message = refused(compare(digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK))
    assert re.search(
        r"the exporter's denoiser is a relative \S+ away from dit-digits in diffusers", message
    )


def test_other_timestep_frequencies_are_noted(digits: Bundle, edited: Callable[..., Path]) -> None:
    other = edited(lambda manifest: manifest.update(timestep_frequencies="dit"))
    result = compare(other, "--model", DIGITS_MODEL, "--engine", "onnx", *QUICK)
    assert (
        "was exported with the timestep frequencies of dit, which the reference follows; those of dit-digits seem to be diffusers"
        in result.stderr
    )
    assert result.exit_code == 1  # only the manifest says so: the graph has those of diffusers


def test_the_verdict_comes_before_a_report_that_cannot_be_written(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diver_trt.files.os.fsync", full)
    report = tmp_path / "report.html"
    result = compare(
        digits.path, "--model", DIGITS_MODEL, "--engine", "onnx", "--report", report, *QUICK
    )
    assert "report.html: cannot be written (No space left on device)" in refused(result)
    assert result.stdout.splitlines()[-1] == "passed: onnx fp32 stays with torch fp32"
    assert not list(tmp_path.iterdir())


def link_to_ours(path: Path) -> None:
    (path.parent / "real").write_text("<title>diver-trt compare: passed</title>")
    path.symlink_to("real")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("notes"),
        lambda path: path.write_text(""),
        lambda path: path.write_text("<title>another page</title>"),
        lambda path: path.symlink_to("missing"),
        lambda path: path.symlink_to("/dev/null"),
        os.mkfifo,
        link_to_ours,
    ],
)
def test_a_report_replaces_nothing_but_a_report(
    digits: Bundle, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "report.html")
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert "already exists and is not a report of diver-trt compare" in refused(
        compare(digits.path, "--report", tmp_path / "report.html")
    )
    after = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert {n: (s.st_ino, s.st_size) for n, s in after.items()} == {
        n: (s.st_ino, s.st_size) for n, s in before.items()
    }


def test_a_bundles_own_file_is_not_overwritten(digits: Bundle, edited: Callable[..., Path]) -> None:
    folder = edited(lambda manifest: None)
    before = (folder / "bundle.json").read_bytes()
    refused(compare(folder, digits.path, "--report", folder / "bundle.json"))
    assert (folder / "bundle.json").read_bytes() == before


def test_a_bundle_and_its_copy_do_not_differ_at_all(digits: Bundle, tmp_path: Path) -> None:
    """There is nothing to draw on a logarithmic axis."""
    copy = shutil.copytree(digits.path, tmp_path / "copy")
    result = compare(
        digits.path, copy, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert result.exit_code == 0, result.output
    first = (tmp_path / "report.html").stat().st_ino
    again = compare(
        digits.path, copy, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert again.exit_code == 0, again.output  # an earlier report is replaced, and not written into
    assert (tmp_path / "report.html").stat().st_ino != first
    assert "every value is 0 or not finite" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_report_shows_an_engine_that_writes_no_numbers(digits: Bundle, tmp_path: Path) -> None:
    broken = plant(
        digits,
        tmp_path / "broken",
        {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", float("nan"))},
    )
    result = compare(
        digits.path, broken.path, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2].startswith(
        "failed: onnx fp32 (broken) leaves onnx fp32 (digits)"
    )
    assert "not finite" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_nothing_can_be_compared_with_is_json_too(digits: Bundle) -> None:
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "rtx", "--json")
    assert "nothing to compare: expected the model and one engine that works here" in refused(
        result
    )
    facts = json.loads(result.stdout)
    assert not facts["passed"]
    assert [absent["name"] for absent in facts["not_compared"]] == ["rtx fp32"]


def test_the_same_bundle_by_another_path_is_given_twice(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(digits.path)
    assert "is given twice" in refused(compare(digits.path, tmp_path / "link"), code=2)


def test_fewer_images_than_requested_are_noted(digits: Bundle, digits_fp16: Bundle) -> None:
    result = compare(digits.path, digits_fp16.path, "--engine", "onnx", *QUICK, "--samples", 12)
    assert "there are only 10 images; --samples asked for 12" in result.stderr


def test_the_help_ends_with_a_line_to_paste() -> None:
    result = compare("--help")
    assert result.exit_code == 0
    assert "diver-trt compare " in [line for line in result.stdout.splitlines() if line.strip()][-1]
