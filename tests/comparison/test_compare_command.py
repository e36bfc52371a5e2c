"""`diver-trt compare`: exit codes, verdicts, causes, JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import numpy_helper

from diver_trt.bundle import Bundle
from diver_trt.comparison import torch_engine
from diver_trt.errors import DeviceMemoryError, MissingExtraError
from diver_trt.runtime.backends import onnx as onnx_engine
from diver_trt.runtime.backends import openvino as openvino_engine
from diver_trt.runtime.backends.onnx import OnnxSession
from tests.cli.command import fails
from tests.comparison.command import QUICK, compare, compare_onnx, run_without
from tests.comparison.conftest import Planted
from tests.comparison.faults import exchange_predictions, scale_block_4, scale_initializer
from tests.conftest import DIGITS_MODEL, DISTILLED

pytestmark = pytest.mark.slow


def test_a_correct_bundle_passes_and_its_distance_is_printed(digits: Bundle) -> None:
    result = compare_onnx(digits.path)
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
    assert facts["reference"] == "onnx fp32"
    assert {engine["name"] for engine in facts["engines"]} == {
        "openvino fp32",
        "onnx fp16",
        "openvino fp16",
    }
    assert {"rtx fp32", "rtx fp16", "trt fp32"} <= {
        absent["name"] for absent in facts["not_compared"]
    }
    assert all(absent["reason"] for absent in facts["not_compared"])
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            {"denoiser": scale_block_4(1.01)},
            "block 4, MLP is the first to diverge from the reference",
        ),
        ({"denoiser": exchange_predictions}, "-> steps 6 to 1: every block holds"),
        (
            {"encoder": scale_initializer("scale", 1.3)},
            "-> the encoder is a relative 3.0e-01 away from the reference on the same input",
        ),
    ],
    ids=["a weight of block 4", "guidance rows", "scaling factor"],
)
def test_a_planted_fault_fails_and_is_named(
    digits: Bundle, planted: Planted, edits: dict[str, Any], message: str
) -> None:
    result = compare_onnx(planted(digits, **edits).path)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert message in result.stdout
    assert result.stdout.splitlines()[-1].startswith("failed: onnx fp32 leaves torch fp32")


def test_a_class_without_an_image_is_compared_too(digits: Bundle, planted: Planted) -> None:
    def scale_a_row(graph: Any) -> None:
        (table,) = (
            tensor for tensor in graph.initializer if tensor.name == "label_tables.0.weight"
        )
        rows = numpy_helper.to_array(table).copy()
        rows[7] *= 1.5
        table.CopyFrom(numpy_helper.from_array(rows, table.name))

    result = compare_onnx(planted(digits, conditioner=scale_a_row).path)
    assert result.exit_code == 1
    assert [line for line in result.stdout.splitlines() if "FAIL" in line or "->" in line] == [
        line
        for line in result.stdout.splitlines()
        if "every class alone" in line or "wrong for 1 class " in line
    ]
    assert "worst for class 7" in result.stdout


def test_a_requested_engine_that_is_missing_is_a_failure(digits: Bundle) -> None:
    result = compare_onnx(digits.path, "--engine", "onnx-cuda")
    assert result.exit_code == 1
    assert "not compared: onnx-cuda fp32: " in result.stderr
    assert result.stdout.splitlines()[0] == "onnx fp32: passed"
    assert (
        result.stdout.splitlines()[-1]
        == "failed: onnx fp32 stays with torch fp32; onnx-cuda fp32 could not be compared"
    )


def test_an_engine_that_fails_while_running_is_listed(
    digits: Bundle, digits_fp16: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_denoiser = OnnxSession.open_denoiser

    def refuses_fp16(session: OnnxSession, table: Any, steps: int) -> Any:
        if session.bundle.precision == "fp16":
            raise DeviceMemoryError("there is not enough memory")
        return open_denoiser(session, table, steps)

    monkeypatch.setattr(OnnxSession, "open_denoiser", refuses_fp16)
    result = compare_onnx(digits.path, digits_fp16.path)
    assert result.exit_code == 1
    assert (
        "not compared: onnx fp16: failed while running: there is not enough memory" in result.stderr
    )
    assert "onnx fp32: passed" in result.stdout


def test_images_of_a_folder_and_of_random_pixels(digits: Bundle, digits_fp16: Bundle) -> None:
    """Without a model, two bundles are enough."""
    for options, origin in (
        (("--images", DISTILLED), "2 distilled images of ipc10"),
        (("--random",), "2 images of random pixels"),
    ):
        result = compare(
            digits.path, digits_fp16.path, "--engine", "onnx", "--json", *options, *QUICK
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["inputs"]["origin"] == origin


def test_fewer_images_than_requested_are_noted(digits: Bundle, digits_fp16: Bundle) -> None:
    result = compare(digits.path, digits_fp16.path, "--engine", "onnx", *QUICK, "--samples", 12)
    assert "only 10 images found; --samples asked for 12" in result.stderr


def test_two_bundles_are_compared_without_torch(
    digits: Bundle, edited: Callable[..., Path]
) -> None:
    other = edited(lambda manifest: None)
    arguments = ("compare", digits.path, other, "--engine", "onnx", *QUICK)
    found = run_without({"torch", "diffusers", "matplotlib"}, *arguments)
    assert "passed: onnx fp32 (edited) stays with onnx fp32 (digits)" in found.stdout


def test_a_bundle_that_no_engine_runs_is_a_failure(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch in half precision, which was not requested by name, does not make up for it."""
    # What a CPU makes of half precision is slow and not at issue here.
    for precision in ("fp16", "bf16"):
        monkeypatch.setitem(torch_engine._DTYPES, precision, torch.float32)

    def refuses(*_: object) -> Any:
        raise MissingExtraError("onnxruntime", "cpu", "running a bundle")

    monkeypatch.setattr(onnx_engine, "import_onnxruntime", refuses)
    monkeypatch.setattr(openvino_engine, "import_openvino", refuses)
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
    result = compare_onnx(digits.path, changed, "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert [engine["verdict"] for engine in facts["engines"]] == ["passed"]
    (absent,) = facts["not_compared"]
    assert absent["asked"]
    assert "the file has changed since the export" in absent["reason"]


def test_other_timestep_frequencies_are_noted(digits: Bundle, edited: Callable[..., Path]) -> None:
    other = edited(lambda manifest: manifest.update(timestep_frequencies="dit"))
    result = compare_onnx(other)
    assert (
        "was exported with the timestep frequencies of dit, which the reference follows; those of "
        "dit-digits seem to be diffusers" in result.stderr
    )
    assert result.exit_code == 1  # the graph itself has diffusers' frequencies


def test_nothing_to_compare_is_reported_as_json_too(digits: Bundle) -> None:
    result = compare(digits.path, "--model", DIGITS_MODEL, "--engine", "rtx", "--json")
    assert "nothing to compare: expected the model and one engine that works here" in fails(result)
    facts = json.loads(result.stdout)
    assert not facts["passed"]
    assert [absent["name"] for absent in facts["not_compared"]] == ["rtx fp32"]


def test_the_help_ends_with_a_line_to_paste() -> None:
    result = compare("--help")
    assert result.exit_code == 0
    assert "diver-trt compare " in [line for line in result.stdout.splitlines() if line.strip()][-1]
