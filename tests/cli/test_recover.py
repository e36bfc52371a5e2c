"""`diver-trt recover`: its output, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.files import file_sha256
from tests.cli.command import QUICK, fails, run, succeeds
from tests.conftest import Edited, flipped

pytestmark = pytest.mark.slow


def test_recover_writes_images_a_manifest_a_contact_sheet_and_a_gallery(
    few: Path, tmp_path: Path, digits: Bundle
) -> None:
    out = tmp_path / "out"
    result = succeeds("recover", few, out, *QUICK, "--seed", 7)
    assert "recovered 3 images" in result.stdout
    assert str(out / "index.html") in result.stdout
    assert sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    ) == [
        "00003/00000.png",
        "00003/00001.png",
        "00008/00000.png",
        "contact_sheet.png",
        "gallery_00000.png",
        "index.html",
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


def test_a_recovered_dataset_is_an_input_with_the_same_classes(few: Path, tmp_path: Path) -> None:
    succeeds("recover", few, tmp_path / "once", *QUICK)
    succeeds("recover", tmp_path / "once", tmp_path / "twice", *QUICK)
    classes = [
        json.loads((tmp_path / name / "manifest.json").read_text())["classes"]
        for name in ("once", "twice")
    ]
    assert classes[0] == classes[1]


def test_recover_prints_json(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", *QUICK, "--json")
    assert json.loads(result.stdout) | {"seconds": 0} == {
        "output": str(tmp_path / "out"),
        "images": 3,
        "skipped": [],
        "engine": "onnx",
        "batch": 3,
        "seconds": 0,
        "contact_sheet": str(tmp_path / "out" / "contact_sheet.png"),
        "gallery": str(tmp_path / "out" / "index.html"),
    }


def test_the_detected_format_is_printed_before_work_begins(dm: Path, tmp_path: Path) -> None:
    result = succeeds("recover", dm, tmp_path / "out", *QUICK)
    found, hint, clipped, *_ = result.stderr.splitlines()
    assert (
        "DC, DSA, DM or CAFE tensors, 10 classes x 1, 32 px, mnist-normalised, the model's own "
        "classes" in found
    )
    assert "if that is wrong: --format, --classes, --normalisation, --collage" in hint
    assert "1.6% of the values lie outside the range of pixels" in clipped
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert (source["format"], source["normalisation"], source["collage"]) == ("dc", "mnist", 1)
    assert source["clipped"] == pytest.approx(16 / 1024)


def test_a_bad_image_is_found_before_any_work(few: Path, tmp_path: Path) -> None:
    path = few / "8" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "8/0.png: not an image, or a damaged one" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "file: is a file; choose a new or"),
        ("file/out", "cannot be"),
        ("few/out", "overlaps the input"),
    ],
)
def test_an_output_where_no_folder_may_be_is_refused(
    few: Path, tmp_path: Path, output: str, message: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert message in fails(run("recover", few, tmp_path / output, *QUICK))
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_may_not_be_made_is_refused(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # the tests may run as root, whom no mode bits stop
    assert "cannot be made (Permission denied)" in fails(
        run("recover", few, tmp_path / "out", *QUICK)
    )


def test_an_output_inside_the_bundle_is_refused(few: Path, edited: Edited) -> None:
    folder = edited()
    for output in (folder, folder / "out", folder / "plans" / "deeper"):
        assert "edited" in fails(run("recover", few, output, "--bundle", folder, *QUICK))
    assert "overlaps the bundle" in fails(
        run("recover", few, folder / "out", "--bundle", folder, *QUICK)
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["bundle.json", *(f"{name}.onnx" for name in NETWORKS)]
    )


def test_an_error_of_the_system_ends_in_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("recover", few, tmp_path / "out", "--classes", "x" * 300)
    if sys.version_info < (3, 14):
        assert "File name too long" in fails(result)
    else:  # looking for a file with such a name is no error any more
        assert "neither a file nor a known subset" in fails(result, 2)

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
    copy = shutil.copytree(digits.path, tmp_path / "copy")
    (copy / "decoder.onnx").write_bytes(flipped(copy / "decoder.onnx"))
    assert "the file has changed since the export" in fails(
        run("recover", few, tmp_path / "out", "--bundle", copy, *QUICK)
    )
    assert not (tmp_path / "out").exists()
    assert "the file has changed since the export" in fails(run("inspect", copy))


def test_a_text_of_the_bundle_does_not_widen_the_contact_sheet(
    few: Path, tmp_path: Path, edited: Edited
) -> None:
    def long(manifest: dict[str, Any]) -> None:
        manifest["model"]["id"] = "x" * 1000
        manifest["class_names"] = ["y" * 1000] * 10

    succeeds("recover", few, tmp_path / "out", "--bundle", edited(long), *QUICK)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width <= 2032


def test_one_image_is_one_image(few: Path, tmp_path: Path) -> None:
    for name in ("3/0.png", "3/1.png"):
        (few / name).unlink()
    (few / "3").rmdir()
    result = succeeds("recover", few, tmp_path / "out", *QUICK)
    assert f"recovered 1 image into {tmp_path / 'out'}" in result.stdout
    assert "class folders, 1 class x 1" in result.stderr
    assert "in 1 batch of up to 1, 6 steps each" in result.stderr
    convert = ("convert", tmp_path / "out", tmp_path / "cv", "--layout", "npz")
    assert "converted 1 image into" in run(*convert).stdout


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    """A file of tensors with one image."""
    path = tmp_path / "tensors.npz"
    np.savez(path, images=np.zeros((1, 8, 8, 3), np.uint8), labels=[0])
    return path


def test_paths_are_printed_without_control_characters(
    few: Path, tensors: Path, tmp_path: Path
) -> None:
    for shard in (1, 2):
        run("recover", few, tmp_path / f"{shard}", "--shard", f"{shard}/2", *QUICK)
    merged = run("merge", tmp_path / "1", tmp_path / "2", tmp_path / "\x1b[2J")
    converted = run("convert", tensors, tmp_path / "\x1b[2J.npz")
    for result in (merged, converted):
        assert (result.exit_code, result.stdout.rstrip("\n").isprintable()) == (0, True)


def test_tensors_have_no_gallery_to_leave_out(tensors: Path, tmp_path: Path) -> None:
    result = run("convert", tensors, tmp_path / "new.npz", "--no-gallery")
    assert "--no-gallery: does not apply, since" in fails(result, 2)


def test_workers_name_the_option_that_they_are_for(few: Path, tmp_path: Path) -> None:
    result = run("recover", few, tmp_path / "out", "--workers", 2)
    assert result.exit_code == 2
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert "--workers is 2 without --ray; give both, or neither" in shown


def test_ctrl_c_exits_130(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diver_trt.runtime.recoverer import Recoverer

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recoverer, "encode", interrupted)
    result = run("recover", few, tmp_path / "out", *QUICK)
    assert result.exit_code == 130


def test_a_recovered_folder_is_read_as_its_manifest_has_it(few: Path, tmp_path: Path) -> None:
    succeeds("recover", few, tmp_path / "first", *QUICK)
    image = sorted((tmp_path / "first").glob("0*/*.png"))[0]
    shutil.copy(image, image.with_name("00099.png"))
    again = succeeds("recover", tmp_path / "first", tmp_path / "second", *QUICK)
    assert "00099.png: not of this recovery" in again.stderr
    Image.new("RGB", (32, 32), (200, 10, 10)).save(image)
    changed = run("recover", tmp_path / "first", tmp_path / "third", *QUICK)
    assert f"{image}: is not the file that was written" in fails(changed)
