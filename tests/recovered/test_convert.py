"""A converted folder is what a recovery with its layout and size would have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.crash import different
from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError, DiverError, OutputError, UsageError
from diver_trt.evaluation.sets import list_set
from diver_trt.files import file_sha256
from diver_trt.manifest import open_recovered
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.records import Shard
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.convert import convert_recovered
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.merge import merge_shards
from diver_trt.recovered.writer import DatasetWriter
from tests.cli.command import fails, run
from tests.conftest import files_of
from tests.distilled import methods
from tests.distilled.test_dataset import known_images
from tests.edited_json import set_in
from tests.recovered.commands import different_data, in_manifest
from tests.recovered.job_runs import copy_job, opened

CLASSES = [0, 0, 0, 1, 2, 4, 4, 5, 9, 9]
ALL = tuple(LAYOUTS)


class Recovery:
    """A recovery of ten images with soft labels, the third one left out, by a model that copies.

    Two of its classes are one class of ImageNet's, and share a folder of layout `wnid`.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        path = methods.datm(folder, known_images(10, 16), CLASSES)
        dataset = read_dataset(path, bundle, ReadOptions(classes="compdd-music-hard"))
        self.options: dict[str, Any] = {
            "dataset": dataset,
            "checked": list(dataset.images.check()),
            "bundle": bundle,
            "recipe": Recipe(),
            "skip_bad": True,
        }

    def job(self, layout: str, size: int | None, shard: Shard | None = None) -> Job:
        return Job(**self.options, layout=LAYOUTS[layout], size=size, shard=shard)

    def run(
        self, output: Path, layout: str = "index", size: int | None = None, **more: Any
    ) -> Path:
        job = self.job(layout, size, **more)
        problems = ["is all in one colour" if n == 2 else None for n in range(10)]
        copy_job(job, output, problems)
        return output

    def reopened(self, output: Path, layout: str, size: int | None = None) -> DatasetWriter:
        """Open a folder as the same recovery would, and leave it as it is."""
        with opened(self.job(layout, size), output) as writer:
            return writer


@pytest.fixture
def recovery(tmp_path: Path, imagenet: Bundle) -> Recovery:
    (tmp_path / "distilled").mkdir()
    return Recovery(tmp_path / "distilled", imagenet)


@pytest.fixture
def source(recovery: Recovery, tmp_path: Path) -> Path:
    return recovery.run(tmp_path / "source")


def assert_as_recovered(converted: Path, recovered: Path) -> None:
    assert different_data(converted, recovered) == ["manifest.json"]
    manifests = [(folder / "manifest.json").read_text() for folder in (converted, recovered)]
    found, expected = map(json.loads, manifests)
    assert found.pop("converted_from")
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize(
    ("layout", "size"),
    [*((layout, size) for layout in ALL for size in (None, 16)), ("index", 48), ("pt", 48)],
)
def test_every_layout_and_size_is_written_as_a_recovery_writes_it(
    recovery: Recovery, source: Path, tmp_path: Path, layout: str, size: int | None
) -> None:
    expected = recovery.run(tmp_path / "expected", layout, size)
    if layout == "index" and size is None:
        source = recovery.run(tmp_path / "other", "huggingface")
    result = convert_recovered(source, tmp_path / "out", layout=layout, size=size)
    assert (result.layout, result.size, result.images) == (layout, size or 32, 9)
    assert [entry["key"] for entry in result.skipped] == ["00000/00002"]
    assert_as_recovered(tmp_path / "out", expected)


@pytest.mark.parametrize("layout", [name for name in ALL if name not in ("index", "idc")])
def test_every_layout_is_converted_back(
    recovery: Recovery, source: Path, tmp_path: Path, layout: str
) -> None:
    other = recovery.run(tmp_path / "other", layout)
    convert_recovered(other, tmp_path / "out", layout="index")
    assert_as_recovered(tmp_path / "out", source)


def test_a_resized_folder_is_converted_to_other_layouts_of_its_size(
    recovery: Recovery, tmp_path: Path
) -> None:
    small = recovery.run(tmp_path / "small", "npz", 16)
    convert_recovered(small, tmp_path / "out", layout="webdataset")
    assert_as_recovered(tmp_path / "out", recovery.run(tmp_path / "expected", "webdataset", 16))
    with pytest.raises(DatasetError, match=r"its images are resized to 16 px, and resizing them"):
        convert_recovered(small, tmp_path / "larger", size=32)
    assert not (tmp_path / "larger").exists()


def test_soft_labels_that_a_layout_drops_are_reported(recovery: Recovery, tmp_path: Path) -> None:
    idc = recovery.run(tmp_path / "idc", "idc")
    convert_recovered(idc, tmp_path / "small", size=16)
    assert_as_recovered(tmp_path / "small", recovery.run(tmp_path / "expected", "idc", 16))
    index = recovery.run(tmp_path / "index")
    assert not convert_recovered(index, tmp_path / "kept", layout="npz").drops_soft_labels
    converted = run("convert", index, tmp_path / "dropped", "--layout", "idc")
    assert "note: layout idc does not hold soft labels" in converted.stderr
    with pytest.raises(
        DatasetError, match=r"layout idc does not keep soft labels, which layout pt"
    ):
        convert_recovered(idc, tmp_path / "out", layout="pt")
    assert not (tmp_path / "out").exists()


def test_soft_labels_of_a_recovered_input_are_dropped_with_a_note(
    recovery: Recovery, tmp_path: Path, imagenet: Bundle
) -> None:
    dropped = "its soft labels are not read: they are dropped"
    output = recovery.run(tmp_path / "out", "webdataset")
    assert read_dataset(output, imagenet).origin.notes == (dropped,)


def test_the_manifest_names_the_folder_that_was_converted(source: Path, tmp_path: Path) -> None:
    convert_recovered(source, tmp_path / "out", layout="pt", size=16)
    facts = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert facts["converted_from"] == {
        "layout": "index",
        "size": 32,
        "manifest_sha256": file_sha256(source / "manifest.json"),
    }
    assert facts["layout"]["resampling"] == "bicubic, antialiased"
    assert json.loads(run("inspect", source, "--json").stdout)["converted_from"] is None


def test_a_converted_folder_is_read_as_a_recovered_one(
    source: Path, tmp_path: Path, imagenet: Bundle
) -> None:
    convert_recovered(source, tmp_path / "out", layout="wnid")
    ours, theirs = (read_dataset(path, imagenet) for path in (tmp_path / "out", source))
    assert (ours.samples, ours.classes) == (theirs.samples, theirs.classes)
    for position in range(9):
        np.testing.assert_array_equal(ours.images.read(position), theirs.images.read(position))
    assert list_set(tmp_path / "out").names == list_set(source).names
    with pytest.raises(DatasetError, match="is a whole recovered dataset, not a shard"):
        merge_shards([tmp_path / "out"], tmp_path / "merged")


def test_a_recovery_takes_a_converted_folder_for_its_own(
    recovery: Recovery, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert_recovered(source, out, layout="npz", size=16)
    before = files_of(out)
    assert recovery.reopened(out, "npz", 16).finished
    assert files_of(out) == before
    (out / "00001" / "00000.png").unlink()
    recovery.run(out, "npz", 16)
    assert different_data(out, recovery.run(tmp_path / "expected", "npz", 16)) == []


def test_an_interrupted_conversion_is_resumed(
    source: Path, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    out = tmp_path / "out"
    arguments: dict[str, Any] = {"layout": "webdataset", "size": 16}
    convert_recovered(source, tmp_path / "expected", **arguments)
    fail_after(4)
    with pytest.raises(OutputError, match="Input/output error"):
        convert_recovered(source, out, **arguments)
    assert (out / "journal.jsonl").is_file()
    assert not (out / "manifest.json").exists()
    with pytest.raises(DatasetError, match="is an unfinished recovery; run the same command again"):
        convert_recovered(out, tmp_path / "next", layout="pt")
    with pytest.raises(OutputError, match=r'holds a run with layout name "webdataset"'):
        convert_recovered(source, out, layout="npz")
    for _ in range(2):  # the second one has nothing left to do
        convert_recovered(source, out, **arguments)
        assert different(out, tmp_path / "expected") == []
    convert_recovered(source, out, layout="npz", overwrite=True)
    assert not list(out.glob("*.tar"))


def tampered(folder: Path) -> None:
    (folder / "00004" / "00001.png").write_bytes(b"other")


def resized(folder: Path) -> None:
    image = folder / "00004" / "00001.png"
    Image.new("RGB", (8, 8)).save(image)
    in_manifest(folder, set_in("samples", 5, "sha256", to=file_sha256(image)))


def with_other_soft_labels(folder: Path) -> None:
    np.save(folder / "soft_labels.npy", np.zeros((9, 10), np.float32))
    sha256 = file_sha256(folder / "soft_labels.npy")
    in_manifest(folder, set_in("companions", 0, "sha256", to=sha256))


def unfinished(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "journal.jsonl")


def emptied(folder: Path) -> None:
    in_manifest(folder, set_in("source", "images", to=0))
    in_manifest(folder, lambda manifest: manifest.update(classes=[], samples=[], skipped=[]))


def linked(folder: Path) -> None:
    image = folder / "00004" / "00001.png"
    image.rename(folder.parent / "secret.png")
    image.symlink_to(folder.parent / "secret.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "source: no such folder"),
        (unfinished, "source: is an unfinished recovery; run the same command again"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a recovery"),
        (tampered, "00004/00001.png: is not the file that was written"),
        (resized, "00004/00001.png: is not a PNG image of 32 x 32 pixels"),
        (linked, "00004/00001.png: is a link out of the dataset"),
        (lambda folder: (folder / "00009" / "00000.png").unlink(), "00009/00000.png: missing"),
        (lambda folder: (folder / "soft_labels.npy").unlink(), "soft_labels.npy: missing"),
        (with_other_soft_labels, "is not the soft label of sample 00000/00000"),
        (
            lambda folder: in_manifest(folder, set_in("companions", to=[])),
            "layout index does not keep soft labels",
        ),
        (
            lambda folder: in_manifest(folder, set_in("skipped", to=[])),
            "manifest.json: lists 9 images, expected 10",
        ),
        (emptied, "source.images: found 0, expected a whole number, 1 or more"),
        (
            lambda folder: in_manifest(folder, set_in("layout", "name", to="zip")),
            'layout.name: found "zip", expected one of index',
        ),
        (
            lambda folder: in_manifest(folder, set_in("samples", 0, "file", to="../x.png")),
            'samples[0].file: found "../x.png", expected a path inside the folder',
        ),
        (
            lambda folder: in_manifest(folder, set_in("recipe", to={"a": 1})),
            "recipe: unknown settings a",
        ),
        (
            lambda folder: in_manifest(folder, set_in("converted_from", to={"layout": 3})),
            "converted_from.layout: found 3, expected a text",
        ),
    ],
)
def test_a_damaged_folder_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(source)
    with pytest.raises(DatasetError) as error:
        convert_recovered(source, tmp_path / "out", layout="npz")
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "is of layout index and 32 px already"),
        ({"layout": "index", "size": 32}, UsageError, "expected another --layout or --size"),
        ({"layout": "zip"}, UsageError, "layout is 'zip'; expected one of index, wnid"),
        ({"size": 5000}, UsageError, "size is 5000; expected a whole number, 1 to 4096"),
        ({"output": "source"}, OutputError, "overlaps the recovered dataset"),
        ({"output": "source/inside"}, OutputError, "overlaps the recovered dataset"),
        ({"output": "."}, OutputError, "already holds something"),
    ],
)
def test_what_cannot_be_written_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], error: type[DiverError], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / options.get("output", "out")
    wanted = {"layout": "pt"} if "output" in options else options
    with pytest.raises(error, match=message):
        convert_recovered(source, output, **wanted)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_sheet_titles_classes_as_the_recovery_did(
    recovery: Recovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    add = ContactSheet.add

    def record(sheet: ContactSheet, index: int, title: str, *images: Pixels) -> None:
        titles.append(title)
        add(sheet, index, title, *images)

    monkeypatch.setattr(ContactSheet, "add", record)
    folder = recovery.run(tmp_path / "recovered", "index")
    expected = titles.copy()
    assert expected
    titles.clear()
    convert_recovered(folder, tmp_path / "out", layout="npz")
    assert titles == expected


def test_another_recovery_in_the_output_is_kept(
    recovery: Recovery, source: Path, tmp_path: Path
) -> None:
    for layout in ("pt", "npz"):
        other = recovery.run(tmp_path / layout, layout)
        before = files_of(other)
        with pytest.raises(OutputError, match=r"holds a run with (layout name|converted from)"):
            convert_recovered(source, other, layout="pt")
        assert files_of(other) == before


def test_a_shard_is_merged_first(recovery: Recovery, tmp_path: Path) -> None:
    shards = [recovery.run(tmp_path / f"part{n}", "webdataset", shard=Shard(n, 2)) for n in (1, 2)]
    with pytest.raises(DatasetError, match="is shard 1/2 of a recovery; join the shards with"):
        convert_recovered(shards[0], tmp_path / "out", layout="pt")
    merge_shards(shards, tmp_path / "merged")
    convert_recovered(tmp_path / "merged", tmp_path / "out", layout="index")
    assert open_recovered(tmp_path / "out").manifest.shard is None


def test_the_command_converts_folders_and_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("convert", source, out, "--layout", "pt", "--size", 16)
    assert result.exit_code == 1  # as `recover` exits where an image was left out
    assert f"converted 9 images into {out}: layout pt, 16 px" in result.stdout
    assert "left out: images_best.pt[2]: is all in one colour" in result.stderr
    report = json.loads(
        run("convert", source, out, "--layout", "pt", "--size", 16, "--json").stdout
    )
    assert (report["layout"], report["size"], report["images"]) == ("pt", 16, 9)
    assert run("convert", out / "images.pt", tmp_path / "set.npz").exit_code == 0
    lines = {
        (source, tmp_path / "a", "--collage", "2"): (2, "--collage: "),
        (source, tmp_path / "a.npz", "--layout", "npz"): (1, "is the name of a file"),
        (out / "images.pt", tmp_path / "a.npz", "--layout", "npz"): (2, "--layout: "),
        (out / "images.pt", tmp_path / "a.npz", "--overwrite"): (2, "is a file of tensors"),
        (tmp_path / "distilled", tmp_path / "a", "--size", 8): (1, "is not a recovery"),
    }
    for arguments, (code, message) in lines.items():
        assert message in fails(run("convert", *arguments), code)
    assert not list(tmp_path.glob("a*"))
