"""The gallery's files: when they are written, rewritten, copied, deleted and left alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.crash import different
from diver_trt import Recipe, recover
from diver_trt.errors import OutputError
from diver_trt.manifest import MANIFEST, open_recovered, unlisted_note
from diver_trt.recovered.gallery import sheets
from diver_trt.recovered.gallery.files import delete_stale, is_current, require_place
from diver_trt.recovered.gallery.sheets import write_sheets
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.merge import merge_shards
from tests.cli.command import fails
from tests.conftest import DISTILLED, digit_folder
from tests.odd_files import fifo, link_out
from tests.recovered import commands
from tests.recovered.commands import manifest_of
from tests.recovered.finished import distilled, finished, flat

IPC1 = DISTILLED.parent / "ipc1"
QUICK = Recipe(steps=4, inherit_step=2, start_step=4, window=(3, 2))


def data_of(page: Path) -> dict[str, Any]:
    """Return what the page's script shows, each class with its images."""
    text = page.read_text(encoding="utf-8")
    parts = [re.findall(rf'id="{name}">(.*?)</script>', text) for name in ("data", "rows")]
    (data,), (rows,) = ([json.loads(part) for part in found] for found in parts)
    for in_class, images in zip(data["classes"], rows, strict=True):
        in_class["images"] = images
    value: dict[str, Any] = data
    return value


def gallery_of(root: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in root.iterdir()
        if path.name == "index.html" or path.name.startswith((".index", "gallery_", ".gallery"))
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve images of three classes."""
    return distilled(tmp_path / "in", flat(12, 16), 4)


@pytest.fixture
def by_fives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets of five thumbnails instead of a hundred."""
    monkeypatch.setattr(sheets, "PER_SHEET", 5)


# What is written


def test_the_page_lists_every_image_and_its_class(source: Path, tmp_path: Path) -> None:
    dataset = finished(source, tmp_path / "out", left_out=["00002/00001"])
    page = dataset.write_gallery()
    data = data_of(page)
    assert data["sheets"] == [["gallery_00000.png", 12]]
    assert (data["size"], data["side"], data["engines"]) == (16, 16, ["onnx"])
    assert [entry["index"] for entry in data["classes"]] == [0, 1, 2]
    assert data["classes"][2]["images"] == [
        [0, "2/0.png", "00000.png", 0],
        [1, "2/1.png", None, "is all in one colour"],
        [2, "2/2.png", "00002.png", 0],
        [3, "2/3.png", "00003.png", 0],
    ]
    assert unlisted_note(dataset.root) is None


def test_it_names_no_place_and_no_time_and_is_the_same_every_time(
    source: Path, tmp_path: Path
) -> None:
    first = finished(source, tmp_path / "out").write_gallery()
    shutil.copytree(source, tmp_path / "elsewhere" / "in")
    again = finished(tmp_path / "elsewhere" / "in", tmp_path / "other").write_gallery()
    assert different(first.parent, again.parent) == []
    text = first.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert not re.search(r"\b20[0-9]{2}-[0-9]{2}", text)
    assert not re.search(r"https?:|url\(|@import|//[a-z]+\.", text)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_s_images_are_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "wnid":
        monkeypatch.setattr(
            "diver_trt.recovered.job.wnid_of", lambda label, _: f"n{label // 2:08d}"
        )
    dataset = finished(source, tmp_path / "out", layout=name)
    data = data_of(dataset.write_gallery())
    files = [
        f"{entry['folder']}/{image[2]}" for entry in data["classes"] for image in entry["images"]
    ]
    assert files == [sample.file for sample in open_recovered(dataset.root).manifest.samples]
    assert all((dataset.root / file).is_file() for file in files)
    # No folder is added, which torchvision's ImageFolder would take for a class.
    assert {path.name for path in dataset.root.iterdir() if path.is_dir()} == {
        file.split("/")[0] for file in files
    }


@pytest.mark.parametrize(("side", "suffix"), [(20, "png"), (64, "png"), (65, "jpg"), (128, "jpg")])
def test_a_sheet_has_the_images_in_rows_of_ten(tmp_path: Path, side: int, suffix: str) -> None:
    images = [*flat(103, side)]
    missing: list[Any] = [None if number == 7 else image for number, image in enumerate(images)]
    written = list(write_sheets(tmp_path, missing, side))
    assert [(sheet.name, sheet.count) for sheet in written] == [
        (f"gallery_00000.{suffix}", 100),
        (f"gallery_00001.{suffix}", 3),
    ]
    shapes = []
    for number, sheet in enumerate(written):
        pixels = np.asarray(Image.open(tmp_path / str(sheet.name)).convert("RGB")).astype(int)
        shapes.append(pixels.shape[:2])
        for place, image in enumerate(missing[100 * number :][: sheet.count]):
            row, column = divmod(place, 10)
            tile = pixels[row * side :, column * side :][:side, :side]  # JPEG mixes edges
            expected = 128 if image is None else image.astype(int)
            assert np.abs(tile - expected)[8:-8, 8:-8].max() <= (0 if suffix == "png" else 8)
    assert shapes == [(10 * side, 10 * side), (side, 10 * side)]


def test_thumbnails_are_what_the_model_was_given(tmp_path: Path) -> None:
    wide = np.zeros((300, 500, 3), np.uint8)
    wide[:, 100:400] = (200, 30, 60)  # the central square
    list(write_sheets(tmp_path, [wide], 128))
    pixels = np.asarray(Image.open(tmp_path / "gallery_00000.jpg").convert("RGB")).astype(int)
    assert np.abs(pixels[:, :128] - (200, 30, 60)).max() <= 8


def test_an_image_that_vanished_or_changed_is_marked(source: Path, tmp_path: Path) -> None:
    dataset = finished(source, tmp_path / "out")
    (source / "0" / "1.png").unlink()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(source / "2" / "3.png")
    assert data_of(dataset.write_gallery())["unread"] == [1, 11]


# When


def test_a_gallery_is_current_while_its_manifest_and_its_sheets_are_there(
    source: Path, tmp_path: Path, by_fives: None
) -> None:
    dataset = finished(source, tmp_path / "out")
    root = dataset.root
    assert not is_current(root)
    dataset.write_gallery()
    assert is_current(root)
    assert sorted(gallery_of(root)) == [
        *(f"gallery_0000{number}.png" for number in range(3)),
        "index.html",
    ]
    (root / "gallery_00001.png").rename(tmp_path / "away")
    assert not is_current(root)
    (tmp_path / "away").rename(root / "gallery_00001.png")
    assert is_current(root)
    page = (root / "index.html").read_text(encoding="utf-8")
    (root / "index.html").write_text(page.replace('content="3 ', 'content="2 ', 1))
    assert not is_current(root)  # an older version's
    (root / "index.html").write_text(page)
    (root / MANIFEST).write_text((root / MANIFEST).read_text() + " ")
    assert not is_current(root)
    delete_stale(root, 12)
    assert gallery_of(root) == {}


def test_a_recovery_that_is_stopped_in_its_gallery_writes_it_the_next_time(
    tmp_path: Path, by_fives: None
) -> None:
    notes: list[str] = []
    options: dict[str, Any] = {"recipe": QUICK, "engine": "onnx", "on_note": notes.append}
    whole = recover(IPC1, tmp_path / "whole", **options)
    begun: list[tuple[str, int, int]] = []
    stopped = recover(
        IPC1,
        tmp_path / "out",
        **options,
        on_progress=lambda *step: begun.append(step),
        stopping=lambda: begun[-1][0] == "gallery",
    )
    assert (stopped.finished, stopped.gallery) == (True, None)
    assert begun[-1] == ("gallery", 5, 10)
    assert list(gallery_of(tmp_path / "out")) == ["gallery_00000.png"]
    for name in (".gallery_00001.png.partial", ".index.html.partial"):  # what a kill leaves
        (tmp_path / "out" / name).write_bytes(b"half")
    again = recover(IPC1, tmp_path / "out", **options)
    assert (again.engine, again.gallery) == (None, tmp_path / "out" / "index.html")
    assert different(whole.output, tmp_path / "out") == []


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two distilled digits, the second of which cannot be read."""
    folder = digit_folder(tmp_path / "few", {3: 1})
    (folder / "3" / "1.png").write_bytes(b"not a picture")
    return folder


def test_it_is_left_out_added_and_kept_up_to_date(few: Path, tmp_path: Path) -> None:
    out, skip = tmp_path / "out", ("--on-error", "skip")
    assert commands.recover(few, out, "--no-gallery", *skip).exit_code == 1
    assert gallery_of(out) == {}
    result = commands.recover(few, out, *skip, "--json")
    assert json.loads(result.stdout)["gallery"] == str(out / "index.html")
    assert [image[2] for image in data_of(out / "index.html")["classes"][0]["images"]] == [
        "00000.png",
        None,
    ]
    before = gallery_of(out)
    assert commands.recover(few, out, "--no-gallery", *skip).exit_code == 1
    assert gallery_of(out) == before  # it shows the dataset as it is
    shutil.copy(DISTILLED / "3" / "1.png", few / "3")
    commands.recovered(few, out, "--no-gallery")
    assert gallery_of(out) == {}
    commands.recovered(few, out)
    assert [image[2] for image in data_of(out / "index.html")["classes"][0]["images"]] == [
        "00000.png",
        "00001.png",
    ]


def test_somebody_else_s_page_is_neither_replaced_nor_deleted(few: Path, tmp_path: Path) -> None:
    out, skip = tmp_path / "out", ("--on-error", "skip")
    commands.recover(few, out, "--no-gallery", *skip)
    (out / "index.html").write_text("<title>my thesis</title>")
    for option in ([], ["--overwrite"]):
        assert "is not a page of diver-trt recover, and the gallery would replace it; " in fails(
            commands.recover(few, out, *skip, *option)
        )
    for option in (["--no-gallery"], ["--no-gallery", "--overwrite"]):
        assert commands.recover(few, out, *skip, *option).exit_code == 1
        assert gallery_of(out) == {"index.html": b"<title>my thesis</title>"}
    (out / "index.html").unlink()
    (out / "index.html").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="move it elsewhere, or add --no-gallery"):
        require_place(out)


@pytest.mark.parametrize("record", ["manifest", "journal", "empty journal", "nothing"])
def test_overwrite_deletes_it(few: Path, tmp_path: Path, record: str) -> None:
    shutil.copy(DISTILLED / "3" / "1.png", few / "3")
    expected = commands.recovered(few, tmp_path / "expected", "--seed", 1, "--no-gallery")
    out = commands.recovered(few, tmp_path / "out")
    (out / "gallery_00001.jpg").touch()
    (out / ".gallery_00000.png.partial").touch()
    (tmp_path / "out" / "gallery_00002.png").touch()  # two images have no sheet 2
    if record == "journal":
        manifest = manifest_of(out)
        head = {name: manifest[name] for name in list(manifest)[:-4]}
        (out / "journal.jsonl").write_text(json.dumps(head) + "\n")
    if record == "empty journal":
        (out / "journal.jsonl").touch()
    if record != "manifest":
        (out / MANIFEST).unlink()
        (out / "gallery_00002.png").unlink()
    commands.recovered(few, out, "--seed", 1, "--overwrite", "--no-gallery")
    assert different(expected, out) == (["gallery_00002.png"] if record == "manifest" else [])


# Merging


@pytest.fixture
def shards(source: Path, tmp_path: Path, by_fives: None) -> list[Path]:
    """Two shards of six images, the last of the first left out, and their galleries."""
    parts = []
    for number in (1, 2):
        part = finished(
            source, tmp_path / f"part{number}", shard=f"{number}/2", left_out=["00001/00001"]
        )
        part.write_gallery()
        parts.append(part.root)
    return parts


def test_merging_copies_the_sheets_of_the_shards(
    source: Path, shards: list[Path], tmp_path: Path
) -> None:
    shutil.rmtree(source)
    merge_shards(shards, tmp_path / "out")
    data = data_of(tmp_path / "out" / "index.html")
    assert data["sheets"] == [[f"gallery_0000{n}.png", count] for n, count in enumerate((5, 1) * 2)]
    assert (tmp_path / "out" / "gallery_00002.png").read_bytes() == (
        shards[1] / "gallery_00000.png"
    ).read_bytes()
    keys = [(entry["index"], image[0]) for entry in data["classes"] for image in entry["images"]]
    assert keys == [(index, number) for index in range(3) for number in range(4)]
    before = gallery_of(tmp_path / "out")
    merge_shards(shards, tmp_path / "out")
    assert gallery_of(tmp_path / "out") == before
    merge_shards(shards, tmp_path / "without", gallery=False)
    assert gallery_of(tmp_path / "without") == {}
    merge_shards(shards, tmp_path / "without")
    assert gallery_of(tmp_path / "without") == before


def resize(path: Path) -> None:
    Image.new("RGB", (100, 20)).save(path)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"<svg>"), resize, link_out, fifo]
)
def test_of_a_damaged_sheet_in_a_shard_nothing_is_taken(
    shards: list[Path], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(shards[0] / "gallery_00001.png")
    merge_shards(shards, tmp_path / "out")
    assert data_of(tmp_path / "out" / "index.html")["sheets"] == [
        [None, 6],
        ["gallery_00000.png", 5],
        ["gallery_00001.png", 1],
    ]


def test_shards_without_galleries_are_merged(shards: list[Path], tmp_path: Path) -> None:
    for shard in shards:
        (shard / "index.html").unlink()
    merge_shards(shards, tmp_path / "out")
    assert data_of(tmp_path / "out" / "index.html")["sheets"] == [[None, 6], [None, 6]]
    assert is_current(tmp_path / "out")


def test_galleries_that_shards_have_got_since_are_taken_by_the_next_merge(
    shards: list[Path], tmp_path: Path
) -> None:
    page = (shards[1] / "index.html").read_bytes()
    (shards[1] / "index.html").unlink()
    merge_shards(shards, tmp_path / "out")
    assert data_of(tmp_path / "out" / "index.html")["sheets"][2:] == [[None, 6]]
    (shards[1] / "index.html").write_bytes(page)
    merge_shards(shards, tmp_path / "out")
    assert len(data_of(tmp_path / "out" / "index.html")["sheets"]) == 4
