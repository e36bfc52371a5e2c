"""`diver-trt inspect`: bundles, engines, datasets."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from tests.cli.command import QUICK, fails, run, succeeds
from tests.conftest import DISTILLED
from tests.edited_json import json_file

pytestmark = pytest.mark.slow


def test_inspect_recognises_a_bundle_a_dataset_and_a_recovered_dataset(
    few: Path, tmp_path: Path, digits: Bundle
) -> None:
    bundle = json.loads(run("inspect", digits.path, "--json").stdout)
    assert bundle["kind"] == "bundle"
    assert bundle["networks"]["denoiser"]["parameters"] == digits.networks["denoiser"].parameters
    assert json.loads(run("inspect", few, "--json").stdout)["labels"] == {"3": 3, "8": 8}
    succeeds("recover", few, tmp_path / "out", *QUICK)
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


def test_options_of_another_kind_are_refused(few: Path, tmp_path: Path, digits: Bundle) -> None:
    run("recover", few, tmp_path / "out", *QUICK)
    sheet = ("--contact-sheet", tmp_path / "sheet.png")
    for arguments in (
        (digits.path, *sheet),
        (tmp_path / "out", *sheet),
        (tmp_path / "out", "--collage", "3"),
        (few, "--memory-budget", "2GB"),
    ):
        assert "does not apply, since" in fails(run("inspect", *arguments), code=2)
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("name", "a\nmodel  another", r'source.name: found "a\nmodel  another", expected a text'),
        ("format", ["\x1b[2J"], r'source.format: found ["\u001b[2J"], expected a text'),
        ("images", "3", 'source.images: found "3", expected a whole number'),
    ],
)
def test_inspect_refuses_what_no_recovery_records_in_one_line(
    few: Path, tmp_path: Path, field: str, value: object, found: str
) -> None:
    run("recover", few, tmp_path / "out", *QUICK)
    with json_file(tmp_path / "out" / "manifest.json") as manifest:
        manifest["source"][field] = value
    line = fails(run("inspect", tmp_path / "out"))
    assert line.isprintable()
    assert found in line


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
    line = fails(run("inspect", compiled, "--memory-budget", "1MB"))
    assert "the smallest that would do is 5 MB (batch 2, phased)" in line
    assert f"`diver-trt build {compiled} --batch 1`" in line
    for size in ("much", "0", "1"):
        line = fails(run("inspect", compiled, "--memory-budget", size), code=2)
        assert f"--memory-budget is '{size}'; expected a size with its unit, such as" in line


def test_a_part_of_a_bundle_is_named_with_what_to_give_instead(compiled: Path) -> None:
    plans = compiled / "plans"
    line = fails(run("inspect", plans))
    assert f"{plans}: holds the engines of a bundle" in line
    assert f"or the bundle: {compiled}" in line
    for name in ("bundle.json", "denoiser.onnx"):
        line = fails(run("inspect", compiled / name))
        assert f"{name}: is a file of a bundle. Give the bundle: {compiled}" in line
    folder = plans / "rtx-1.7.1.116-sm86-b2"
    expected = run("inspect", folder).stdout
    assert expected.startswith("kind      engines\n")
    for name in ("denoiser.json", "denoiser.engine", "encoder.json"):
        assert run("inspect", folder / name).stdout == expected
    assert "hf://: is not a name on the hub" in fails(run("inspect", "hf://"), code=2)


def test_a_recovery_within_a_budget_needs_engines(
    few: Path, tmp_path: Path, digits: Bundle
) -> None:
    budget = ("recover", few, tmp_path / "out", *QUICK, "--memory-budget", "2GB")
    line = fails(run(*budget))
    assert "has no TensorRT engines, and other engines do not report their memory, so a" in line
    assert f"build engines with `diver-trt build {digits.path}`" in line
    line = fails(run(*budget, "--engine", "onnx"))
    assert "engine onnx does not report its memory, so a memory budget cannot be enforced" in line
    assert "--memory-budget is '1e9'" in fails(
        run("recover", few, tmp_path / "out", "--memory-budget", "1e9"), code=2
    )
    assert not (tmp_path / "out").exists()


def test_a_budget_is_checked_and_the_command_for_engines_can_be_pasted(
    tmp_path: Path, digits: Bundle
) -> None:
    folder = shutil.copytree(digits.path, tmp_path / "no engines")
    assert "--memory-budget is '-1'; expected a size" in fails(
        run("inspect", folder, "--memory-budget", "-1"), code=2
    )
    advice = f"has no engines to plan for; build them with `diver-trt build '{folder}'`"
    assert advice in fails(run("inspect", folder, "--memory-budget", "2GB"))


def test_inspect_reads_engines(compiled: Path) -> None:
    folder = compiled / "plans" / "rtx-1.7.1.116-sm86-b2"
    for path in (folder, folder / "denoiser.engine"):
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert (facts["kind"], facts["version"]) == ("engines", "1.7.1.116")
        assert facts["networks"]["denoiser"]["batches"] == "2"


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
    sidecar = compiled / "plans" / "rtx-1.7.1.116-sm86-b2" / "denoiser.json"
    assert problem in fails(run("inspect", sidecar))
    as_json = run("inspect", compiled, "--json")
    assert as_json.exit_code == 1
    (found,) = json.loads(as_json.stdout)["damaged_engines"]
    assert problem in found


def test_inspect_counts_a_damaged_sidecar_as_a_damaged_engine(compiled: Path) -> None:
    (compiled / "plans" / "rtx-1.7.1.116-sm86-b2" / "decoder.json").write_text("{")
    shown = run("inspect", compiled, "--json")
    (found,) = json.loads(shown.stdout)["damaged_engines"]
    assert "rtx-1.7.1.116-sm86-b2/decoder.json: not valid JSON" in found
    assert found in fails(shown)
    assert "no such file" in fails(run("inspect", compiled / "nope.engine"))


def test_inspect_finds_engines_of_another_export(compiled: Path) -> None:
    """As where somebody copies `plans` from one bundle to the next."""
    folder = compiled / "plans" / "rtx-1.7.1.116-sm86-b8"
    with json_file(folder / "denoiser.json") as sidecar:
        sidecar["onnx_sha256"] = "0" * 64
    shown = run("inspect", compiled, "--memory-budget", "2GB")
    assert "rtx-1.7.1.116-sm86-b8/denoiser.engine: was built from another export" in fails(shown)
    assert "within 2GB: rtx-1.7.1.116-sm86-b2" in shown.stdout


_PARTS = ["weights", "persistent", "activations", "inputs and outputs"]


def test_a_memory_table_adds_up_and_nothing_is_printed_as_python(compiled: Path) -> None:
    shown = run("inspect", compiled).stdout
    rows = re.findall(r"^  \w+ +([\d,.]+) MB  =  (.*)$", shown, re.MULTILINE)
    assert len(rows) == 2 * 2 * 4
    for total, parts in rows:
        figures = re.findall(
            r"(weights|persistent|activations|inputs and outputs) ([\d,.]+) MB", parts
        )
        assert [name for name, _ in figures] == _PARTS
        assert sum(Decimal(figure) for _, figure in figures) == Decimal(total)
    for peak in re.findall(r"peak ([\d.]+) MB", shown):
        assert any(total == peak for total, _ in rows)


@pytest.mark.parametrize("kind", ["bundle", "distilled", "recovered", "engines"])
def test_inspect_prints_words_and_not_pythons_values(
    compiled: Path, few: Path, tmp_path: Path, kind: str
) -> None:
    with json_file(compiled / "bundle.json") as manifest:
        manifest["model"]["licence"] = None
    if kind == "recovered":
        options = ("--steps", 6, "--start-step", 6, "--window", "5:3", "--no-inheritance")
        run("recover", few, tmp_path / "out", *options)
    paths = {
        "bundle": compiled,
        "distilled": few,
        "recovered": tmp_path / "out",
        "engines": compiled / "plans" / "rtx-1.7.1.116-sm86-b2",
    }
    result = succeeds("inspect", paths[kind])
    assert not re.search(r"None|\{\}|\[\]|: *$", result.stdout)
    if kind == "bundle":
        assert "licence               not stated\n" in result.stdout
    if kind == "recovered":
        assert re.search(r"^  inherit step +none$", result.stdout, re.MULTILINE)


def test_inspect_prints_the_facts_of_tensors(dm: Path) -> None:
    result = succeeds("inspect", dm)
    assert re.search(r"^clipped +0\.015625$", result.stdout, re.MULTILINE)
    assert re.search(r"^normalisation +mnist$", result.stdout, re.MULTILINE)


def test_inspect_draws_the_images_as_the_model_would_get_them(dm: Path, tmp_path: Path) -> None:
    result = succeeds("inspect", dm, "--contact-sheet", tmp_path / "fed.png", "--json")
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


def test_a_contact_sheet_replaces_nothing_but_a_contact_sheet(dm: Path, tmp_path: Path) -> None:
    tensors, text, image, photo, dangling = (
        dm.read_bytes(),
        tmp_path / "thesis.png",
        tmp_path / "set" / "0" / "0.png",
        tmp_path / "photo.png",
        tmp_path / "dangling.png",
    )
    text.write_text("a thesis")
    Image.new("RGB", (8, 8)).save(photo)
    dangling.symlink_to("nowhere.png")
    photographed = photo.read_bytes()
    shutil.copytree(DISTILLED, tmp_path / "set")
    kept = image.read_bytes()
    for source, sheet, message in (
        (dm.parent, dm, "is written as PNG; expected a name that ends in .png"),
        (dm, text, "already exists and is not a contact sheet of diver-trt inspect"),
        (dm, photo, "already exists and is not a contact sheet of diver-trt inspect"),
        (dm, dangling, "already exists and is not a contact sheet of diver-trt inspect"),
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
    assert (photo.read_bytes(), dangling.is_symlink()) == (photographed, True)
    assert not image.with_name("new.png").exists()
    for _ in range(2):
        succeeds("inspect", tmp_path / "set", "--contact-sheet", tmp_path / "fed.png")


def test_the_file_that_a_folder_stands_for_is_named(dm: Path) -> None:
    assert f"{dm.parent} ({dm.name}): DC, DSA" in run("inspect", dm.parent).stderr
    assert f"{dm}: DC, DSA" in run("inspect", dm).stderr


def test_notes_are_printed(dm: Path) -> None:
    assert "note: values lie in" in run("inspect", dm, "--normalisation", "none").stderr


def test_doubts_about_single_images_are_printed_and_in_the_json(tmp_path: Path) -> None:
    shutil.copytree(DISTILLED, tmp_path / "set")
    shutil.copy(tmp_path / "set/3/0.png", tmp_path / "set/3/0 (1).png")
    result = run("inspect", tmp_path / "set", "--json")
    (note,) = json.loads(result.stdout)["notes"]
    assert note.startswith("1 image is the same as an earlier one, such as 3/0.png and 3/0 (1).png")
    assert f"note: {note}\n" in result.stderr
