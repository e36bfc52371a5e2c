"""`diver-trt bench` as a user meets it: one small run, its JSON and page, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import Result

from diver_trt.bench.facts import SCHEMA
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.counted import counted
from tests.cli.command import fails, run
from tests.comparison.command import refused, run_without
from tests.conftest import DIGITS_MODEL

QUICK = (
    *("--steps", 2, "--inherit-step", 1, "--start-step", 2, "--window", "2:1"),
    *("--seconds", 0, "--samples", 3),
)
SUBJECTS = (*NETWORKS, "recovery")

# The documented schema: a type, or a dictionary of its fields; None stands for null.
NUMBER = (int, float)
ROW: dict[str, Any] = {
    "subject": str,
    "batch": int,
    "contestant": str,
    "images": int,
    "latency_ms": {
        **dict.fromkeys(("p50", "p90", "p99"), NUMBER),
        **dict.fromkeys(("runs", "rounds", "warm_up_runs"), int),
    },
    "images_per_second": NUMBER,
    "limit": {
        **dict.fromkeys(("latency_ms", "compute_ms", "memory_ms", "reached"), NUMBER),
        "bound": str,
    },
    "work": dict.fromkeys(("flops", "least_bytes", "operator_bytes"), int),
    "speed_ratio": {"against": str, **dict.fromkeys(("median", "low", "high"), NUMBER)},
    "python_ms_per_step": NUMBER,
    "peak_host_bytes": int,
    "peak_device_bytes": int,
    "phases_ms": dict,
    "largest_difference": int,
}
NULLABLE = {
    "limit",
    "work",
    "speed_ratio",
    "python_ms_per_step",
    "peak_host_bytes",
    "peak_device_bytes",
    "phases_ms",
    "largest_difference",
}
PAGE: dict[str, Any] = {
    "schema": int,
    "date": str,
    "machine": {
        "system": str,
        "gpu": (str, type(None)),
        "cores": int,
        "threads": dict,
        "load_average": (*NUMBER, type(None)),
        "busy": bool,
    },
    "versions": dict,
    "bundle": dict.fromkeys(("name", "model", "precision", "sha256"), str),
    "recipe": dict,
    "measuring": {
        "seconds": NUMBER,
        "least_rounds": int,
        "warm_up_runs": int,
        "batches": list,
        "contestants": list,
    },
    "ceilings": list,
    "notes": list,
    "not_measured": list,
    "rows": list,
}


def check_schema(value: Any, schema: Any, where: str) -> None:
    if not isinstance(schema, dict):
        assert isinstance(value, schema), f"{where}: {value!r}"
        return
    assert isinstance(value, dict), where
    assert value.keys() == schema.keys(), where
    for key, expected in schema.items():
        if value[key] is not None or key not in NULLABLE:
            check_schema(value[key], expected, f"{where}.{key}")


def bench(*arguments: object) -> Result:
    return run("bench", *arguments)


@pytest.fixture(scope="module")
def alone(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of the engine alone, in a process that must not load torch or onnx."""
    path = tmp_path_factory.mktemp("bench") / "alone.json"
    arguments = ("bench", "--batch", "2,1", "--engine", "onnx", "--json", path, *QUICK)
    found = run_without({"torch", "diffusers", "onnx", "matplotlib", "jinja2"}, *arguments)
    facts = json.loads(path.read_text())
    return {"facts": facts, "stdout": found.stdout, "stderr": found.stderr}


@pytest.fixture(scope="module")
def against_torch(
    digits: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, str]:
    """A run against diffusers' modules: the facts, the page, and what the terminal shows."""
    folder = tmp_path_factory.mktemp("bench")
    options = ("--json", folder / "bench.json", "--report", folder / "bench.html")
    torch = ("--against", "torch", "--model", DIGITS_MODEL)
    result = bench(digits.path, "--batch", 2, "--engine", "onnx", *torch, *options, *QUICK)
    assert result.exit_code == 0, result.output
    facts = json.loads((folder / "bench.json").read_text())
    return facts, (folder / "bench.html").read_text(), result.stdout


def test_the_json_has_its_documented_fields(
    alone: dict[str, Any], against_torch: tuple[dict[str, Any], str, str]
) -> None:
    for facts in (alone["facts"], against_torch[0]):
        assert facts["schema"] == SCHEMA
        check_schema(facts, PAGE, "facts")
        for row in facts["rows"]:
            check_schema(row, ROW, f"{row['subject']}, {row['contestant']}")


def test_every_network_and_the_recovery_are_measured_at_every_batch(alone: dict[str, Any]) -> None:
    rows = alone["facts"]["rows"]
    assert [(row["subject"], row["batch"]) for row in rows] == [
        (subject, batch) for batch in (1, 2) for subject in SUBJECTS
    ]
    assert {row["contestant"] for row in rows} == {"onnx"}
    assert alone["facts"]["not_measured"] == []


def test_figures_are_positive_and_agree_with_each_other(alone: dict[str, Any]) -> None:
    for row in alone["facts"]["rows"]:
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["runs"] >= latency["rounds"] >= 3
        assert latency["warm_up_runs"] >= 1
        assert row["images"] == (3 if row["subject"] == "recovery" else row["batch"])
        speed = 1000 * row["images"] / latency["p50"]
        assert row["images_per_second"] == pytest.approx(speed, rel=1e-4)
        limit = row["limit"]
        assert limit["reached"] == pytest.approx(limit["latency_ms"] / latency["p50"], rel=1e-4)
        slower = max(limit["compute_ms"], limit["memory_ms"])
        assert 0 < slower <= limit["latency_ms"] * (1 + 1e-5)
        larger = limit["compute_ms"] >= limit["memory_ms"]
        assert limit["bound"] == ("compute" if larger else "memory")
        assert row["peak_device_bytes"] is None
        assert row["peak_host_bytes"] > 20e6
        assert row["speed_ratio"] is None


def test_phases_of_a_recovery_are_its_whole_time(alone: dict[str, Any]) -> None:
    for row in alone["facts"]["rows"]:
        if row["subject"] != "recovery":
            assert row["phases_ms"] is None
            continue
        phases = row["phases_ms"]
        assert phases.keys() == {*NETWORKS, "opening", "reading", "other"}
        assert all(taken > 0 for taken in phases.values())
        after_start_up = sum(phases.values()) - phases["opening"]
        assert row["latency_ms"]["p50"] == pytest.approx(after_start_up, rel=1e-4)


def test_a_batch_of_two_is_twice_the_work(alone: dict[str, Any]) -> None:
    rows = {(row["subject"], row["batch"]): row for row in alone["facts"]["rows"]}
    for name in NETWORKS:
        assert rows[name, 2]["work"]["flops"] == 2 * rows[name, 1]["work"]["flops"]


def test_python_takes_part_of_a_step_and_of_nothing_else(alone: dict[str, Any]) -> None:
    for row in alone["facts"]["rows"]:
        if row["subject"] == "denoiser":
            assert 0 < row["python_ms_per_step"] < row["latency_ms"]["p99"]
        else:
            assert row["python_ms_per_step"] is None


def test_the_terminal_shows_a_table_and_says_where_it_was_measured(alone: dict[str, Any]) -> None:
    lines = alone["stdout"].splitlines()
    machine = alone["facts"]["machine"]
    assert lines[0] == "dit-digits fp32, 2 steps"
    assert counted(machine["cores"], "core") in lines[1]
    assert "load average before: " in lines[1]
    assert any(f"onnxruntime {alone['facts']['versions']['onnxruntime']}" in line for line in lines)
    assert any(re.fullmatch(r"limit: NumPy's float32 product .* GFLOP/s, .*", x) for x in lines)
    assert any(
        re.match(r"denoiser +2 +onnx .* \d+%, (compute|memory) +- .* MB$", line) for line in lines
    )
    step = r"onnx, batch 2: a step reaches \d+% of the limit, bound by \w+; \d+ µs of it are Python"
    assert any(re.match(step, line) for line in lines)
    assert any(re.match(r"onnx, batch 2, 3 images in .*: .*denoiser [\d.]+%", x) for x in lines)
    assert ("the machine was busy" in alone["stderr"]) == machine["busy"]


def test_torch_does_the_same_work_and_is_what_ratios_are_against(
    against_torch: tuple[dict[str, Any], str, str],
) -> None:
    facts, _, stdout = against_torch
    rows = {(row["subject"], row["contestant"]): row for row in facts["rows"]}
    names = ("torch eager", "onnx")
    expected = {(subject, name) for subject in SUBJECTS for name in names}
    assert rows.keys() == expected - {("conditioner", "torch eager")}
    for (subject, name), row in rows.items():
        if name == "torch eager":
            assert (row["speed_ratio"], row["limit"], row["work"]) == (None, None, None)
        elif subject != "conditioner":
            ratio = row["speed_ratio"]
            assert ratio["against"] == "torch eager"
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
            assert (
                row["latency_ms"]["rounds"]
                == (rows[subject, "torch eager"]["latency_ms"]["rounds"])
            )
    assert rows["recovery", "onnx"]["largest_difference"] <= 2  # the same weights and noise
    assert rows["recovery", "torch eager"]["phases_ms"].keys() == (
        {"reading", "encoder", "denoiser", "decoder", "writing", "other"}
    )
    assert re.search(r"recovery +2 +onnx .* [\d.]+x \([\d.]+ to [\d.]+\)", stdout)


def test_the_report_is_one_page_with_plots_and_the_facts(
    against_torch: tuple[dict[str, Any], str, str],
) -> None:
    facts, page, _ = against_torch
    assert page.startswith("<!doctype html>")
    assert "<title>diver-trt bench: dit-digits fp32</title>" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert [len(ElementTree.fromstring(picture).findall("polyline")) for picture in pictures] == [
        2 if subject == "conditioner" else 3  # the limit, the engine and torch
        for subject in SUBJECTS
    ]
    assert "http://" not in page
    assert "https://" not in page
    rows = page[page.index('<section id="rows">') :]
    assert re.search(r"</span>\d+%, (compute|memory)</td>", rows)  # short: all columns fit
    (carried,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page)
    assert json.loads(carried) == facts


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--batch", "0"), 2, "--batch is '0'; expected a whole number, 1 or more"),
        (("--batch", "1,,8"), 2, "--batch is ''; expected a whole number"),
        (("--batch", "5000"), 2, "--batch has 5000; expected at most 4,096"),
        (("--engine", "cpu"), 2, "unknown engine 'cpu'; expected rtx"),
        (("--seconds", "-1"), 2, "--seconds"),
        (("--seconds", "nan"), 2, "--seconds"),
        (("--seconds", "inf"), 2, "--seconds is inf; expected a finite number"),
        (("--samples", "0"), 2, "--samples"),
        (("--samples", "8"), 2, "--samples is 8, expected at least the largest --batch, 32"),
        (("--against", "jax"), 2, "--against is 'jax'; expected one of torch"),
        (("--against", "torch"), 2, "--against torch needs --model"),
        (("--model", "somewhere"), 2, "--model is for --against torch"),
        (("--vae", "somewhere"), 2, "--vae describes --model"),
        (("--revision", "main"), 2, "--revision describes --model"),
        (("--steps", "1"), 2, "steps is 1"),
        (("no-such-folder",), 1, "no-such-folder: not a bundle"),
        (("--json", "no-such-folder/bench.json"), 1, "no such folder; make it first"),
        (("--json", "-"), 2, "--json -: bench prints its results as text, and this option takes"),
        (("--report", "-"), 2, "Give one, such as bench.html"),
        (("--report", "."), 1, "is a folder; expected the name of an HTML file"),
        (("--engine", "rtx"), 1, "error: "),
    ],
)
def test_wrong_inputs_are_refused_in_a_line(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    if "rtx" in arguments:
        message = "rtx"
    shown = " ".join(refused(bench(*arguments), code).replace("│", " ").split())
    assert message in shown


def test_another_file_is_not_replaced_by_a_report(tmp_path: Path) -> None:
    other = tmp_path / "notes.html"
    other.write_text("<title>diver-trt compare: passed</title>")
    assert "is not a report of diver-trt bench" in fails(bench("--report", other))
    assert other.read_text() == "<title>diver-trt compare: passed</title>"


def test_json_replaces_nothing_but_json_of_its_own(alone: dict[str, Any], tmp_path: Path) -> None:
    for name, text in (("bundle.json", '{"schema": 4}'), ("page.html", "<p>"), ("empty", "")):
        (tmp_path / name).write_text(text)
        assert "already exists and is not a JSON file of diver-trt bench" in fails(
            bench("--json", tmp_path / name)
        )
        assert (tmp_path / name).read_text() == text
    earlier = tmp_path / "bench.json"
    earlier.write_text(json.dumps(alone["facts"] | {"date": "earlier"}))
    assert bench("--engine", "onnx", "--batch", 1, "--json", earlier, *QUICK).exit_code == 0
    assert json.loads(earlier.read_text())["date"] != "earlier"


def test_json_and_report_are_two_files(tmp_path: Path) -> None:
    same = ("--json", tmp_path / "x", "--report", tmp_path / "." / "y" / ".." / "x")
    (tmp_path / "y").mkdir()
    assert "--json and --report are both" in fails(bench(*same), 2)


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_measuring_against_torch_needs_it(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.startswith("diver_trt.bench.torch")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("diver_trt.models.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = fails(bench("--batch", 1, "--against", "torch", "--model", DIGITS_MODEL, *QUICK))
    assert f"measuring against torch needs {package}, which is not installed" in message
    assert "run `pip install 'diver-trt[compare]'`" in message


def test_a_report_needs_jinja(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    message = fails(bench("--report", tmp_path / "bench.html"))
    assert "writing a report needs jinja2, which is not installed" in message


def test_another_model_is_refused(digits: Bundle, random_pipeline: Path) -> None:
    message = fails(bench("--batch", 1, "--against", "torch", "--model", random_pipeline, *QUICK))
    assert "was exported from weights with SHA-256" in message
