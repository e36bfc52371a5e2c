"""The command line as a user meets it: subprocess-free where possible, one line per failure, the right exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from diver_trt.bundle import NETWORKS, Bundle
from diver_trt.cli import app
from diver_trt.cli.console import Progress
from diver_trt.errors import ExportError
from diver_trt.files import file_sha256
from diver_trt.runtime.backends.tensorrt.plans import read_plan
from tests.conftest import DISTILLED, ROOT
from tests.stand_in import write_stand_in_plan

pytestmark = pytest.mark.slow

QUICK = ("--steps", "6", "--inherit-step", "3", "--start-step", "6", "--window", "5:3")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(result: Result, code: int = 1) -> str:
    """Return the one line that a failed command says."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two classes with two and one distilled digits."""
    for name in ("3/0.png", "3/1.png", "8/0.png"):
        (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DISTILLED / name, tmp_path / "few" / name)
    return tmp_path / "few"


def test_recover_writes_images_a_manifest_and_a_contact_sheet(
    few: Path, tmp_path: Path, digits: Bundle
) -> None:
    out = tmp_path / "out"
    result = run("recover", few, out, *QUICK, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert "recovered 3 images" in result.stdout
    assert str(out / "contact_sheet.png") in result.stdout
    assert sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    ) == [
        "00003/00000.png",
        "00003/00001.png",
        "00008/00000.png",
        "contact_sheet.png",
        "manifest.json",
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["recipe"]["steps"] == 6
    assert manifest["bundle"]["sha256"] == digits.sha256
    assert manifest["tool"]["name"] == "diver-trt"
    assert [(c["index"], c["label"]) for c in manifest["classes"]] == [(3, 3), (8, 8)]
    first = manifest["samples"][0]
    assert first["file"] == "00003/00000.png"
    assert first["source"] == "3/0.png"
    assert first["source_sha256"] == file_sha256(few / "3" / "0.png")
    assert first["sha256"] == file_sha256(out / "00003" / "00000.png")


def test_the_same_bytes_for_every_batch(tmp_path: Path) -> None:
    written = {}
    for batch in ("1", "4", "8", "auto"):
        assert (
            run("recover", DISTILLED.parent / "ipc1", tmp_path / batch, "--batch", batch).exit_code
            == 0
        )
        written[batch] = {
            path.name: path.read_bytes() for path in sorted((tmp_path / batch).glob("*/*.png"))
        }
    assert written["1"] == written["4"] == written["8"] == written["auto"]


def test_a_recovered_set_goes_in_again_with_the_same_classes(few: Path, tmp_path: Path) -> None:
    assert run("recover", few, tmp_path / "once", *QUICK).exit_code == 0
    assert run("recover", tmp_path / "once", tmp_path / "twice", *QUICK).exit_code == 0
    classes = [
        json.loads((tmp_path / name / "manifest.json").read_text())["classes"]
        for name in ("once", "twice")
    ]
    assert classes[0] == classes[1]


def test_recover_answers_in_json(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", *QUICK, "--json")
    assert json.loads(result.stdout) | {"seconds": 0} == {
        "output": str(tmp_path / "out"),
        "images": 3,
        "skipped": [],
        "engine": "onnx",
        "batch": 3,
        "seconds": 0,
        "contact_sheet": str(tmp_path / "out" / "contact_sheet.png"),
    }


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
    assert run("recover", few, tmp_path / "out", *options).exit_code == 0
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
        (("--no-inheritance", "--start-step", "matched"), "start_step is None"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_wrong_usage(
    few: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in fails(run("recover", few, tmp_path / "out", *options), code=2)
    assert not (tmp_path / "out").exists()


def test_what_is_scaled_is_printed(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", "--steps", "10", "--start-step", "10")
    said = "--steps 10: --inherit-step 5, --window 8:5, as paper has them among 50"
    assert f"diver-trt: {said}" in result.stderr
    assert "as paper has them" not in run("recover", few, tmp_path / "b", *QUICK).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "digits", "--classes", "nope"),
        ("inspect", "digits", "--contact-sheet", "sheet.jpg"),
        ("convert", "a.pt", "b.npz", "--format", "x"),
        ("compare", "engines/digits", "--engine", "nope"),
        ("compare", "engines/digits", "engines/digits"),
        ("build", "engines/digits", "--batch", "some"),
        ("build", "engines/digits", "--workspace", "some"),
        ("export", "model", "bundle", "--precision", "int8"),
        ("merge", "one"),
    ],
)
def test_wrong_usage_of_every_command_exits_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines"]


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "fast"),
        ("--engine", "nope"),
        ("--memory-budget", "x"),
        ("--format", "x"),
        ("--collage", "33"),
        ("--collage", "0"),
        ("--normalisation", "x"),
        ("--classes", "nope"),
        ("--layout", "x"),
        ("--size", "x"),
        ("--size", "5000"),
        ("--on-error", "x"),
        ("--sigma", "x"),
        ("--shard", "x"),
        ("--shard", "3/2"),
        ("--cfg-channels", "9"),
        ("--seed", str(2**63)),
        ("--shard", "1/" + "1" * 5000),
        ("--batch", "0"),
        ("--batch", "many"),
        ("--seed", "x"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_exits_2(few: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = run("recover", few, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_bad_image_is_found_before_any_work(few: Path, tmp_path: Path) -> None:
    path = few / "8" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "8/0.png: not an image, or a damaged one" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )
    assert not (tmp_path / "out").exists()


def test_a_class_the_model_lacks_is_refused(few: Path, tmp_path: Path) -> None:
    (few / "8").rename(few / "12")
    assert "class 12 is out of range; the model has classes 0 to 9" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no class folders" in fails(run("recover", tmp_path / "empty", tmp_path / "out"))


def test_an_output_that_holds_something_else_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert "already holds something" in fails(run("recover", few, tmp_path / "out", *QUICK))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_output_inside_the_input_is_refused(few: Path) -> None:
    assert "overlaps the input" in fails(run("recover", few, few / "out", *QUICK))


def test_an_output_below_a_file_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be" in fails(run("recover", few, tmp_path / "file" / "out", *QUICK))


def test_an_output_that_may_not_be_made_is_refused(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # the tests may run as root, whom no mode bits stop
    assert "cannot be made (Permission denied)" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )


def test_what_the_system_refuses_ends_in_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "File name too long" in fails(
        run("recover", few, tmp_path / "out", "--classes", "x" * 300)
    )

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("diver_trt.bundle.Bundle.open", denied)
    assert "somewhere: Permission denied" in fails(run("inspect", few))


def test_a_write_that_fails_ends_in_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "00003/00000.png: cannot be written (No space left on device)" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        "journal.jsonl"
    ]


def test_a_changed_bundle_is_refused(few: Path, tmp_path: Path, digits: Bundle) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits.path, copy)
    data = bytearray((copy / "decoder.onnx").read_bytes())
    data[-1000] ^= 255
    (copy / "decoder.onnx").write_bytes(data)
    assert "the file has changed since the export" in fails(
        run("recover", few, tmp_path / "out", "--bundle", copy, *QUICK)
    )
    assert not (tmp_path / "out").exists()
    assert "the file has changed since the export" in fails(run("inspect", copy))


def test_a_newer_bundle_is_refused(few: Path, tmp_path: Path, edited: Callable[..., Path]) -> None:
    folder = edited(lambda manifest: manifest.update(schema=9))
    assert "schema 9, but this diver-trt reads schema 2; update diver-trt" in fails(
        run("recover", few, tmp_path / "out", "--bundle", folder)
    )


def test_a_missing_extra_is_its_install_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "run `pip install 'diver-trt[cpu]'`" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )
    assert not (tmp_path / "out").exists()
    for name in [name for name in sys.modules if name.startswith("diver_trt.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert (
        "exporting needs torch, which is not installed; run `pip install 'diver-trt[export]'`"
        in fails(run("export", "model", tmp_path / "b"))
    )


def test_export_then_recover(random_pipeline: Path, few: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    asked = ("--precision", "fp16", "--timestep-frequencies", "dit", "--json")
    result = run("export", random_pipeline, bundle, *asked)
    answer = json.loads(result.stdout)
    assert answer["timestep_frequencies"] == "dit"
    assert set(answer["relative_l2"]) == {"encoder", "conditioner", "denoiser", "decoder"}
    assert all(0 < error < 1e-2 for error in answer["relative_l2"].values())
    shutil.rmtree(few / "8")
    assert run("recover", few, tmp_path / "out", "--bundle", bundle, *QUICK).exit_code == 0
    image = np.asarray(Image.open(tmp_path / "out" / "00003" / "00000.png"))
    assert image.shape == (16, 16, 3)


def test_an_export_prints_the_timestep_frequencies_it_assumes(
    random_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise ExportError("as planned")

    monkeypatch.setattr("diver_trt.export.exporter.export_bundle", stops)
    result = run("export", random_pipeline, tmp_path / "bundle")
    assert fails(result) == "diver-trt: error: as planned"
    note = "timestep frequencies of diffusers (taken to be trained with diffusers' class)"
    assert note in result.stderr


def test_export_of_no_model_is_refused(tmp_path: Path) -> None:
    assert "has no model_index.json" in fails(run("export", tmp_path, tmp_path / "bundle"))
    assert run("export", tmp_path, tmp_path / "bundle", "--precision", "int8").exit_code == 2


def test_inspect_knows_a_bundle_a_set_and_a_recovered_set(
    few: Path, tmp_path: Path, digits: Bundle
) -> None:
    bundle = json.loads(run("inspect", digits.path, "--json").stdout)
    assert bundle["kind"] == "bundle"
    assert bundle["networks"]["denoiser"]["parameters"] == digits.networks["denoiser"].parameters
    assert json.loads(run("inspect", few, "--json").stdout)["labels"] == {"3": 3, "8": 8}
    assert run("recover", few, tmp_path / "out", *QUICK).exit_code == 0
    recovered = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert (recovered["kind"], recovered["images"], recovered["classes"]) == (
        "recovered dataset",
        3,
        2,
    )
    plain = run("inspect", tmp_path / "out")
    assert (plain.exit_code, "recovered on" in plain.stdout) == (0, True)
    Image.new("RGB", (32, 32)).save(tmp_path / "out" / "00008" / "00000.png")
    assert "00008/00000.png: is not the file that was written" in fails(
        run("inspect", tmp_path / "out")
    )
    assert "no such file or folder" in fails(run("inspect", tmp_path / "missing"))


@pytest.fixture
def compiled(edited: Callable[..., Path]) -> Path:
    """The digits bundle with engines that only the stand-in could run, for two batches."""
    folder = edited(lambda manifest: None)
    for batch in (2, 8):
        write_stand_in_plan(Bundle.open(folder), batch)
    return folder


def test_inspect_prints_what_a_manifest_says_on_its_line(few: Path, tmp_path: Path) -> None:
    run("recover", few, tmp_path / "out", *QUICK)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["source"] = {"name\x1b[1m": "a\nmodel  another", "format": ["\x1b[2J"], "images": 3}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    result = run("inspect", tmp_path / "out")
    assert result.exit_code == 0
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert r"a\nmodel  another" in result.stdout


def test_inspect_plans_memory_under_a_budget(compiled: Path) -> None:
    facts = json.loads(run("inspect", compiled, "--memory-budget", "2GB", "--json").stdout)
    assert facts["chosen"]["batch"] == 8
    assert facts["chosen"]["residency"] == "resident"
    targets = facts["engines"]
    assert set(targets) == {"rtx-1.7.1.116-sm86-b2", "rtx-1.7.1.116-sm86-b8"}
    phased = targets["rtx-1.7.1.116-sm86-b8"]["phased"]
    assert phased["peak_bytes"] == max(
        phased[name]["total_bytes"] for name in ("encoder", "conditioner", "denoiser", "decoder")
    )
    shown = run("inspect", compiled, "--memory-budget", "2GB").stdout
    assert "rtx-1.7.1.116-sm86-b8, phased: peak" in shown
    assert "within 2GB: rtx-1.7.1.116-sm86-b8, batch 8, networks resident" in shown
    assert "the smallest that would do is 5 MB (batch 2, phased)" in fails(
        run("inspect", compiled, "--memory-budget", "1MB")
    )
    assert "expected a size such as 512MB" in fails(
        run("inspect", compiled, "--memory-budget", "much"), code=2
    )


def test_inspect_reads_engines_and_finds_changed_ones(compiled: Path) -> None:
    folder = compiled / "plans" / "rtx-1.7.1.116-sm86-b2"
    for path in (folder, folder / "denoiser.engine"):
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert (facts["kind"], facts["version"]) == ("engines", "1.7.1.116")
        assert facts["networks"]["denoiser"]["batches"] == "2"
    (folder / "denoiser.engine").write_text("other")
    assert "is not the engine that was built" in fails(run("inspect", folder))


def damage(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "missing (No such file or directory); build the engines again"),
        (damage, "is not the engine that was built (its SHA-256 differs from its sidecar's)"),
    ],
)
def test_inspect_of_a_bundle_finds_engines_that_are_missing_or_changed(
    compiled: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    assert json.loads(run("inspect", compiled, "--json").stdout)["damaged_engines"] == []
    spoil(compiled / "plans" / "rtx-1.7.1.116-sm86-b2" / "denoiser.engine")
    shown = run("inspect", compiled)
    assert f"rtx-1.7.1.116-sm86-b2/denoiser.engine: {problem}" in fails(shown)
    assert "rtx-1.7.1.116-sm86-b8, phased: peak" in shown.stdout
    as_json = run("inspect", compiled, "--json")
    assert as_json.exit_code == 1
    (found,) = json.loads(as_json.stdout)["damaged_engines"]
    assert problem in found


def test_a_memory_table_adds_up_and_nothing_is_printed_as_python(compiled: Path) -> None:
    shown = run("inspect", compiled).stdout
    rows = re.findall(r"^  \w+ +([\d,.]+) MB  =  (.*)$", shown, re.MULTILINE)
    assert len(rows) == 2 * 2 * 4
    for total, parts in rows:
        figures = re.findall(r"(weights|persistent|scratch|inputs and outputs) ([\d,.]+) MB", parts)
        assert [name for name, _ in figures] == _PARTS
        assert sum(Decimal(figure) for _, figure in figures) == Decimal(total)
    for peak in re.findall(r"peak ([\d.]+) MB", shown):
        assert any(total == peak for total, _ in rows)


_PARTS = ["weights", "persistent", "scratch", "inputs and outputs"]


@pytest.mark.parametrize("kind", ["bundle", "distilled", "recovered", "engines"])
def test_inspect_prints_words_and_not_pythons_values(
    compiled: Path, few: Path, tmp_path: Path, kind: str
) -> None:
    manifest = json.loads((compiled / "bundle.json").read_text())
    manifest["model"]["licence"] = None
    (compiled / "bundle.json").write_text(json.dumps(manifest))
    if kind == "recovered":
        options = ("--steps", 6, "--start-step", 6, "--window", "5:3", "--no-inheritance")
        run("recover", few, tmp_path / "out", *options)
    paths = {
        "bundle": compiled,
        "distilled": few,
        "recovered": tmp_path / "out",
        "engines": compiled / "plans" / "rtx-1.7.1.116-sm86-b2",
    }
    result = run("inspect", paths[kind])
    assert result.exit_code == 0, result.output
    assert not re.search(r"None|\{\}|\[\]|: *$", result.stdout)
    if kind == "bundle":
        assert "licence               not stated\n" in result.stdout
    if kind == "recovered":
        assert re.search(r"^  inherit step +none$", result.stdout, re.MULTILINE)


def test_an_output_inside_the_bundle_is_refused(few: Path, edited: Callable[..., Path]) -> None:
    folder = edited(lambda manifest: None)
    for output in (folder, folder / "out", folder / "plans" / "deeper"):
        assert "edited" in fails(run("recover", few, output, "--bundle", folder, *QUICK))
    assert "overlaps the bundle" in fails(
        run("recover", few, folder / "out", "--bundle", folder, *QUICK)
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["bundle.json", *(f"{name}.onnx" for name in NETWORKS)]
    )


def test_a_text_of_the_bundle_does_not_widen_the_contact_sheet(
    few: Path, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    def long(manifest: dict[str, Any]) -> None:
        manifest["model"]["id"] = "x" * 1000
        manifest["class_names"] = ["y" * 1000] * 10

    result = run("recover", few, tmp_path / "out", "--bundle", edited(long), *QUICK)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width <= 2032


def test_a_budget_needs_engines(few: Path, tmp_path: Path, digits: Bundle) -> None:
    assert "has no engines to plan for" in fails(
        run("inspect", digits.path, "--memory-budget", "2GB")
    )
    assert "engine onnx does not report its memory, so a memory budget cannot be enforced" in fails(
        run("recover", few, tmp_path / "out", *QUICK, "--memory-budget", "2GB")
    )
    assert not (tmp_path / "out").exists()


def test_build_says_what_it_would_do_and_does_it(
    edited: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pytest.importorskip("tensorrt_rtx")
    folder = edited(lambda manifest: None)
    would = json.loads(
        run("build", folder, "--sm", "86", "--batch", "2", "--dry-run", "--json").stdout
    )
    assert not (folder / "plans").exists()
    assert (
        would["networks"]["denoiser"]["weights_bytes"]
        == 4 * Bundle.open(folder).networks["denoiser"].parameters
    )
    result = run("build", folder, "--sm", "86", "--batch", "2")
    assert result.exit_code == 0, result.output
    assert f"wrote {would['would_write']}" in result.stdout
    assert sorted(path.name for path in Path(would["would_write"]).iterdir()) == sorted(
        f"{name}.{kind}"
        for name in ("encoder", "conditioner", "denoiser", "decoder")
        for kind in ("engine", "json")
    )
    assert read_plan(Path(would["would_write"])).distrusted() is None
    (tmp_path / "state" / "diver-trt" / "engines").unlink()
    assert read_plan(Path(would["would_write"])).distrusted() is not None


@pytest.mark.parametrize("capability", ["86", "8.6", "sm86", "sm_86", "SM86"])
def test_a_compute_capability_is_read_as_people_write_it(
    edited: Callable[..., Path], capability: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = edited(lambda manifest: None)
    would = json.loads(
        run("build", folder, "--sm", capability, "--sm", "12.0", "--dry-run", "--json").stdout
    )
    assert would["targets"] == ["sm86", "sm120"]


def test_build_refuses_what_it_cannot_do(edited: Callable[..., Path]) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = edited(lambda manifest: None)
    for capability in ("90", "9.0", "sm90"):
        assert "--sm 90: TensorRT-RTX" in fails(run("build", folder, "--sm", capability))
    for capability in ("8,6", "ampere", "8.66", "8", "", "-86", "٨٦"):
        assert run("build", folder, f"--sm={capability}").exit_code == 2
    for capability in ("75", "7.5"):
        for options in ((), ("--dry-run",), ("--sm", "8.6")):
            told = fails(run("build", folder, "--sm", capability, *options))
            assert (
                "is an fp32 bundle, and TensorRT-RTX has no float32 matrix products for sm75"
                in told
            )
            assert "diver-trt export MODEL BUNDLE --precision fp16" in told
            assert "GEMM" not in told
    for option, expected in (
        ("--batch", "one size such as 8"),
        ("--workspace", "a size such as 512MB"),
    ):
        assert f"expected {expected}" in fails(run("build", folder, option, "some"), code=2)
    assert run("build", folder, "--backend", "openvino").exit_code == 2
    assert not (folder / "plans").exists()


def test_ctrl_c_exits_130(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diver_trt.runtime.recoverer import Recoverer

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recoverer, "encode", interrupted)
    result = run("recover", few, tmp_path / "out", *QUICK)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


@pytest.mark.parametrize(
    "command", [(), ("recover",), ("export",), ("build",), ("inspect",), ("doctor",)]
)
def test_every_help_ends_with_a_line_to_paste(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "diver-trt " in [line for line in result.stdout.splitlines() if line.strip()][-1]


def test_help_answers_about_as_soon_as_that_of_an_empty_program() -> None:
    """Processor time, in turns and the best of ten, so that a busy machine does not fail it; importing numpy alone would."""
    empty = (
        "-c",
        "import typer; app = typer.Typer(); app.command()(lambda: None); app.callback()(lambda: None); app(['--help'])",
    )
    best = {empty: float("inf"), ("-m", "diver_trt", "--help"): float("inf")}
    for _ in range(10):
        for arguments in best:
            with subprocess.Popen(
                [sys.executable, *arguments], stdout=subprocess.DEVNULL
            ) as process:
                _, process.returncode, used = os.wait4(process.pid, 0)
            assert process.returncode == 0
            best[arguments] = min(best[arguments], used.ru_utime + used.ru_stime)
    theirs, ours = best.values()
    assert ours < 1.6 * theirs


def test_a_checkout_runs_without_being_installed() -> None:
    found = subprocess.run(
        [sys.executable, "cli.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith("diver-trt ")


@pytest.fixture
def dm(tmp_path: Path) -> Path:
    """The distilled digits as DM would save them, some values beyond the range of pixels."""
    import torch

    images = np.stack(
        [
            np.asarray(Image.open(DISTILLED / str(index) / "0.png").convert("RGB"))
            for index in range(10)
        ]
    )
    values = (torch.from_numpy(images.transpose(0, 3, 1, 2) / 255.0) - 0.1307) / 0.3081
    values[:, :, :4, :4] = -2
    torch.save(
        {"data": [[values.float(), torch.arange(10)]]}, tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"
    )
    return tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"


def test_what_tensors_were_taken_for_is_said_before_work_begins(dm: Path, tmp_path: Path) -> None:
    result = run("recover", dm, tmp_path / "out", *QUICK)
    assert result.exit_code == 0, result.output
    found, hint, clipped, *_ = result.stderr.splitlines()
    assert (
        "DC, DSA, DM or CAFE tensors, 10 classes x 1, 32 px, mnist-normalised, the model's own classes"
        in found
    )
    assert "if that is wrong: --format, --classes, --normalisation, --collage" in hint
    assert "1.6% of the values lie outside the range of pixels" in clipped
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert (source["format"], source["normalisation"], source["collage"]) == ("dc", "mnist", 1)
    assert source["clipped"] == pytest.approx(16 / 1024)


def test_inspect_prints_the_facts_of_tensors(dm: Path) -> None:
    result = run("inspect", dm)
    assert result.exit_code == 0, result.output
    assert re.search(r"^clipped +0\.015625$", result.stdout, re.MULTILINE)
    assert re.search(r"^normalisation +mnist$", result.stdout, re.MULTILINE)


def test_progress_counts_each_call_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 11))
    monkeypatch.setattr("diver_trt.cli.console.time.monotonic", lambda: next(clock))
    count = Progress("exporting", 3)
    for _ in range(3):
        count()
    assert re.findall(r"exporting: (\d of \d)", capsys.readouterr().err) == [
        "1 of 3",
        "2 of 3",
        "3 of 3",
    ]


def test_inspect_shows_what_would_be_fed_to_the_model(dm: Path, tmp_path: Path) -> None:
    result = run("inspect", dm, "--contact-sheet", tmp_path / "fed.png", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["format"], facts["images"], facts["image_size"], facts["notes"]) == (
        "dc",
        10,
        [32, 32],
        [],
    )
    sheet = np.asarray(Image.open(tmp_path / "fed.png"))
    digit = (
        np.asarray(Image.open(DISTILLED / "0" / "0.png").convert("RGB"))
        .repeat(2, axis=0)
        .repeat(2, axis=1)
    )
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (48, 48))
    assert (windows == digit[8:56, 8:56, 0]).all(axis=(2, 3)).any()
    result = run(
        "recover",
        dm,
        tmp_path / "out",
        "--collage",
        "2",
        "--no-inheritance",
        *QUICK[:2],
        *QUICK[4:],
    )
    assert "cut from 2 x 2 collages" in result.stderr


def test_a_contact_sheet_replaces_nothing_but_a_picture(dm: Path, tmp_path: Path) -> None:
    tensors, text, image = (
        dm.read_bytes(),
        tmp_path / "thesis.png",
        tmp_path / "set" / "0" / "0.png",
    )
    text.write_text("a thesis")
    shutil.copytree(DISTILLED, tmp_path / "set")
    kept = image.read_bytes()
    for source, sheet, message in (
        (dm.parent, dm, "is written as PNG; expected a name that ends in .png"),
        (dm, text, "is there already, and no PNG; choose another name"),
        (
            tmp_path / "set",
            image,
            "lies in a folder within the dataset, as its images do; choose another place",
        ),
        (tmp_path / "set", image.with_name("new.png"), "lies in a folder within the dataset"),
    ):
        assert f"--contact-sheet {sheet}: {message}" in fails(
            run("inspect", source, "--contact-sheet", sheet), code=2 if sheet == dm else 1
        )
    assert (dm.read_bytes(), text.read_text(), image.read_bytes()) == (tensors, "a thesis", kept)
    assert not image.with_name("new.png").exists()
    for _ in range(2):
        assert (
            run("inspect", tmp_path / "set", "--contact-sheet", tmp_path / "fed.png").exit_code == 0
        )


def test_the_file_that_a_folder_stands_for_is_named(dm: Path) -> None:
    assert f"{dm.parent} ({dm.name}): DC, DSA" in run("inspect", dm.parent).stderr
    assert f"{dm}: DC, DSA" in run("inspect", dm).stderr


def test_notes_are_said(dm: Path) -> None:
    assert "note: values lie in" in run("inspect", dm, "--normalisation", "none").stderr


def test_help_texts_have_no_brackets_that_rich_takes_for_styles() -> None:
    """`[default: 8]` in a help text is markup to rich, and nothing of it is printed."""
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        for parameter in sub.params:
            text = getattr(parameter, "help", None) or ""
            assert not re.search(r"\[[a-z#/@]", text), (name, parameter.name, text)
