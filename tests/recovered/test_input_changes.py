"""Images that are unreadable for a while, repaired, changed or added between two equal commands."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from benchmarks.crash import different
from tests.cli.command import run
from tests.conftest import DISTILLED, digit_folder, files_of
from tests.recovered.commands import different_data, during, manifest_of, recover


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Six distilled digits of two classes."""
    return digit_folder(tmp_path / "few", {3: 3, 8: 3})


SKIP = ("--on-error", "skip")


def times(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("0*.png")
    }


@pytest.mark.parametrize("how", ["deleted", "half-written"])
def test_an_image_that_was_away_for_a_moment_is_recovered_by_the_same_command(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    image, out = few / "8" / "1.png", tmp_path / "out"
    data = image.read_bytes()
    assert recover(few, tmp_path / "expected").exit_code == 0
    with monkeypatch.context() as patched:
        during(patched, image.unlink if how == "deleted" else lambda: image.write_bytes(data[:99]))
        assert recover(few, out, "--batch", 2, *SKIP).exit_code == 1
    (skipped,) = manifest_of(out)["skipped"]
    assert skipped["source"] == "8/1.png"
    expected = "cannot be read any more" if how == "deleted" else "has changed while"
    assert skipped["problem"].startswith(expected)
    assert recover(few, out, *SKIP).exit_code == 1  # it is still away
    image.write_bytes(data)
    before = times(out)
    result = recover(few, out, *SKIP)
    assert result.exit_code == 0, result.output
    assert "out: 1 image was left out before and can be read now" in result.stderr
    assert "5 of 6 images are already there" in result.stderr
    assert different(tmp_path / "expected", out) == []
    assert times(out).items() >= before.items()


@pytest.mark.parametrize("finished", [True, False])
def test_a_repaired_image_is_added_and_no_other_is_made_again(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None], finished: bool
) -> None:
    image, out = few / "3" / "1.png", tmp_path / "out"
    data = image.read_bytes()
    assert recover(few, tmp_path / "expected").exit_code == 0
    image.write_bytes(b"not a picture")
    if not finished:
        fail_after(4)
    assert recover(few, out, "--batch", 1, *SKIP).exit_code == 1
    assert (out / "manifest.json").exists() == finished
    image.write_bytes(data)
    before = times(out)
    result = recover(few, out)
    assert result.exit_code == 0, result.output
    assert "out: the input differs only in images that were left out" in result.stderr
    assert different(tmp_path / "expected", out) == []
    done = {name: time for name, time in before.items() if finished or name < "00008"}
    assert times(out).items() >= done.items()


def test_a_repaired_image_in_one_shard_leaves_the_others_as_they_are(
    few: Path, tmp_path: Path
) -> None:
    image = few / "8" / "1.png"
    data = image.read_bytes()
    assert recover(few, tmp_path / "expected").exit_code == 0
    image.write_bytes(b"not a picture")
    parts = [tmp_path / f"part{number}" for number in (1, 2)]

    def shards(*options: object) -> list[int]:
        return [
            recover(few, part, "--shard", f"{number}/2", *options).exit_code
            for number, part in enumerate(parts, 1)
        ]

    def merge(name: str) -> Result:
        return run("merge", *parts, tmp_path / name)

    assert shards(*SKIP) == [0, 1]
    assert merge("out").exit_code == 1
    image.write_bytes(data)
    before = [times(part) for part in parts]
    assert recover(few, parts[1], "--shard", "2/2").exit_code == 0
    result = merge("out")
    assert result.exit_code == 1
    assert (
        "part1 and "
        f"{parts[1]}: belong to different inputs, their source sha256 differs. Run the command of "
        "each shard again on the same input"
    ) in result.stderr
    assert shards() == [0, 0]
    assert all(
        times(part).items() >= earlier.items() for part, earlier in zip(parts, before, strict=True)
    )
    assert merge("out").exit_code == 0
    assert different_data(tmp_path / "expected", tmp_path / "out") == []


def repaint(few: Path) -> None:
    Image.new("RGB", (32, 32), (9, 9, 200)).save(few / "8" / "2.png")


def relabel(few: Path) -> None:
    (few / "8").rename(few / "9")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (repaint, "1 changed: 8/2.png"),
        (lambda few: shutil.copy(DISTILLED / "8" / "5.png", few / "8"), "1 added: 8/5.png"),
        (
            lambda few: shutil.copy(DISTILLED / "3" / "5.png", few / "3" / "-1.png"),
            "1 added: 3/-1.png",
        ),
        (lambda few: (few / "3" / "1.png").unlink(), "1 removed: 3/1.png"),
        (
            lambda few: shutil.move(few / "3" / "0.png", few / "8" / "7.png"),
            "1 added: 8/7.png; 1 removed: 3/0.png",
        ),
        (relabel, "3 added: 9/0.png, 9/1.png, 9/2.png; 3 removed: 8/0.png, 8/1.png, 8/2.png"),
    ],
)
def test_a_refusal_names_the_images(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
    change: Callable[[Path], object],
    message: str,
) -> None:
    """Also those that the run has not come to."""
    out = tmp_path / "out"
    if not finished:
        monkeypatch.setattr("diver_trt.cli.recover.stop_requested", AfterOneBatch)
    assert recover(few, out, "--batch", 2).exit_code == (0 if finished else 130)
    monkeypatch.undo()
    before = files_of(out)
    change(few)
    result = recover(few, out, *SKIP)
    assert result.exit_code == 1, result.output
    assert (
        f"{out}: holds a run of another input ({message}); use the same to resume it"
        in result.stderr
    )
    assert files_of(out) == before


class AfterOneBatch:
    """Stands in for `stop_requested`: an end is asked for as soon as the first batch has begun."""

    def __enter__(self) -> Callable[[], bool]:
        asked = iter([False])
        return lambda: next(asked, True)

    def __exit__(self, *_: object) -> None:
        pass


def test_another_class_map_relabels_images(few: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("3 3\n8 8\n")
    assert recover(few, tmp_path / "out", "--classes", names).exit_code == 0
    names.write_text("3 3\n8 9\n")
    result = recover(few, tmp_path / "out", "--classes", names)
    assert "another input (3 relabelled: 8/0.png, 8/1.png, 8/2.png)" in result.stderr


# Reasons in the manifest


def test_reasons_hold_no_path_of_this_machine(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor an address in memory, whether the input is named by an absolute path or not."""
    reasons, manifests = [], []
    for place, relative in (("a", True), ("b/b", False), ("c", False)):
        source = shutil.copytree(few, tmp_path / place / "set")
        (source / "3" / "0.png").write_bytes(b"not a picture")
        (source / "3" / "1.png").write_bytes((source / "3" / "1.png").read_bytes()[:-40])
        monkeypatch.chdir(tmp_path)
        image = source / "8" / "2.png"
        with monkeypatch.context() as patched:
            during(patched, image.unlink if place == "a" else partial(image.write_bytes, b"other"))
            name = Path(os.path.relpath(source)) if relative else source
            assert recover(name, tmp_path / place / "out", "--batch", 1, *SKIP).exit_code == 1
        manifests.append((tmp_path / place / "out" / "manifest.json").read_text())
        assert str(tmp_path) not in manifests[-1]
        reasons.append([entry["problem"] for entry in json.loads(manifests[-1])["skipped"]])
    assert manifests[1] == manifests[2]
    damaged = "not an image, or a damaged one"
    changed = "has changed while it was being recovered; run again on a copy that nothing modifies"
    cut_short = reasons[0][1]
    assert cut_short.startswith(f"{damaged} (")
    assert reasons == [
        [damaged, cut_short, "cannot be read any more (No such file or directory)"],
        [damaged, cut_short, changed],
        [damaged, cut_short, changed],
    ]


# Shards, strays


def test_a_shard_without_images_is_announced(few: Path, tmp_path: Path) -> None:
    result = recover(few, tmp_path / "out", "--shard", "1/7")
    assert result.exit_code == 0
    assert "diver-trt: shard 1/7 has no images: the input has 6\n" in result.stderr
    assert "has no images" not in recover(few, tmp_path / "other", "--shard", "2/7").stderr


def test_images_in_the_folder_that_are_not_of_the_recovery_are_named(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "warning" not in recover(few, out).stderr
    assert json.loads(run("inspect", out, "--json").stdout)["not_listed"] == []
    for name in ("00003/99999.png", "cat.d/x.JPG", "00003/notes.txt", "loose.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"mine")
    warning = (
        f"warning: {out}: 00003/99999.png, cat.d/x.JPG: not of this recovery, but a trainer that "
        "reads the folders"
    )
    result = run("inspect", out, "--json")
    assert json.loads(result.stdout)["not_listed"] == ["00003/99999.png", "cat.d/x.JPG"]
    assert warning in result.stderr
    again = recover(few, out)
    assert (again.exit_code, warning in again.stderr) == (0, True)
    assert (out / "00003" / "99999.png").read_bytes() == b"mine"


def test_nothing_is_recovered_into_a_bundle(few: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(
        DISTILLED.parent.parent.parent.parent / "engines" / "digits", tmp_path / "bundle"
    )
    result = recover(few, bundle / "plans", "--bundle", bundle)
    assert f"{bundle / 'plans'}: overlaps the bundle {bundle}; " in result.stderr
    assert not (bundle / "plans").exists()


def test_nothing_is_recovered_into_a_recovered_dataset(few: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    assert recover(few, outer).exit_code == 0
    before = sorted(outer.rglob("*"))
    result = recover(few, outer / "00003" / "inner")
    assert f"inner: lies in the recovered dataset {outer}, and a trainer would" in result.stderr
    assert (result.exit_code, sorted(outer.rglob("*"))) == (1, before)
    # Another program's manifest.json does not mark a dataset.
    (tmp_path / "manifest.json").write_text("{}")
    assert recover(few, tmp_path / "beside").exit_code == 0
