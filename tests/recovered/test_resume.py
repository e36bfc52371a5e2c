"""An interrupted or damaged recovery is resumed and ends as if undisturbed; others are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.crash import RECIPE, different
from diver_trt.bundle import Bundle
from diver_trt.files import temporary_of
from tests.cli.command import fails, run
from tests.conftest import ALL_CORES, ROOT
from tests.edited_json import json_file
from tests.recovered.commands import interrupted_at, journal_keys, journal_of, recover, recovered

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_second_run_resumes_and_ends_as_if_undisturbed(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None], batch: int
) -> None:
    expected = recovered(few, tmp_path / "expected", "--layout", "npz")
    fail_after(4)
    assert "journal.jsonl: cannot be written (Input/output error)" in fails(
        recover(few, tmp_path / "out", "--layout", "npz", "--batch", batch)
    )
    assert len(journal_keys(tmp_path / "out")) == 4
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert "unfinished recovery" in fails(recover(tmp_path / "out", tmp_path / "next"))
    result = recover(few, tmp_path / "out", "--layout", "npz")
    assert result.exit_code == 0
    assert "4 of 10 images are already there" in result.stderr
    assert different(expected, tmp_path / "out") == []


def test_a_finished_run_has_nothing_left_to_do(few: Path, tmp_path: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in recovered(few, tmp_path / "out").rglob("*.*")
    }
    result = recover(few, tmp_path / "out")
    assert result.exit_code == 0
    assert "10 of 10 images are already there" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", 1), "holds a run with seed 0, and this one has seed 1"),
        (("--gamma", 0.02), "recipe gamma 0.1, and this one has recipe gamma 0.02"),
        (("--layout", "npz"), 'layout name "index", and this one has layout name "npz"'),
        (("--size", 16), "layout size 32, and this one has layout size 16"),
        (("--shard", "1/2"), "shard none, and this one has shard 1/2"),
        (("--collage", 2), "source collage 1, and this one has source collage 2"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_something_else_in_the_same_folder_is_refused(
    few: Path,
    tmp_path: Path,
    fail_after: Callable[[int], None],
    change: tuple[str, object],
    message: str,
    finished: bool,
) -> None:
    if finished:
        recovered(few, tmp_path / "out")
    else:
        interrupted_at(few, tmp_path / "out", fail_after, 4)
    line = fails(recover(few, tmp_path / "out", *change))
    assert message in line
    assert "use the same to resume it, --overwrite to begin again, or choose another folder" in line


def test_another_model_or_input_is_refused(few: Path, tmp_path: Path, digits: Bundle) -> None:
    recovered(few, tmp_path / "out")
    shutil.copytree(digits.path, tmp_path / "other")
    with json_file(tmp_path / "other" / "bundle.json") as manifest:
        manifest["model"]["id"] = "another"
    assert 'bundle model "dit-digits", and this one has bundle model "another"' in fails(
        recover(few, tmp_path / "out", "--bundle", tmp_path / "other")
    )
    Image.new("RGB", (32, 32), (9, 9, 200)).save(few / "3" / "1.png")
    assert "holds a run of another input (1 changed: 3/1.png); " in fails(
        recover(few, tmp_path / "out")
    )


def test_damaged_images_of_a_finished_folder_are_made_again(few: Path, tmp_path: Path) -> None:
    expected = recovered(few, tmp_path / "expected", "--layout", "npz")
    out = recovered(few, tmp_path / "out", "--layout", "npz")
    (out / "00003" / "00001.png").write_bytes(b"")
    (out / "00008" / "00002.png").unlink()
    result = recover(few, out, "--layout", "npz")
    assert "2 images are not on disk as recorded" in result.stderr
    assert "8 of 10 images are already there" in result.stderr
    assert different(expected, out) == []
    (out / "dataset.npz").unlink()
    assert recover(few, out, "--layout", "npz").exit_code == 0
    assert different(expected, out) == []


def test_names_of_folders_make_no_difference(few: Path, tmp_path: Path) -> None:
    """Shards come from two machines, and a class map may be named from another folder."""
    shutil.copytree(few, tmp_path / "elsewhere")
    (tmp_path / "map.txt").write_text("\n".join("0123456789"))
    out = tmp_path / "out"
    first = recovered(few, tmp_path / "part1", "--shard", "1/2", "--classes", tmp_path / "map.txt")
    shutil.copy(tmp_path / "map.txt", tmp_path / "other.txt")
    second = recovered(
        tmp_path / "elsewhere",
        tmp_path / "part2",
        "--shard",
        "2/2",
        "--classes",
        tmp_path / "other.txt",
    )
    assert run("merge", first, second, out).exit_code == 0
    assert (
        recover(
            tmp_path / "elsewhere",
            tmp_path / "part1",
            "--shard",
            "1/2",
            "--classes",
            tmp_path / "other.txt",
        ).exit_code
        == 0
    )


def test_images_lost_in_a_power_loss_are_found_and_made_again(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    expected = recovered(few, tmp_path / "expected")
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 6)
    files = [entry["file"] for entry in journal_of(out)[1:]]
    (out / files[0]).write_bytes(b"")
    (out / files[1]).unlink()
    (out / files[2]).write_bytes((out / files[3]).read_bytes())
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"key": "00008/0000')
    temporary_of(out / files[5]).write_bytes(b"half a picture")
    result = recover(few, out)
    assert "3 images are not on disk as recorded" in result.stderr
    assert "3 of 10 images are already there" in result.stderr
    assert sorted(different(expected, out)) == [str(temporary_of(Path(files[5])))]


def test_a_file_that_is_not_a_journal_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("once upon a time\n")
    for options in ((), ("--overwrite",)):
        assert (
            "is not a journal of diver-trt; delete it by hand, or choose another folder"
            in fails(recover(few, tmp_path / "out", *options))
        )
    assert (tmp_path / "out" / "journal.jsonl").exists()


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="this process may use one core only")
def test_one_thread_writes_the_same_bytes_as_all(few: Path, tmp_path: Path) -> None:
    for name, cores, batch in (("all", ALL_CORES, 8), ("one", ALL_CORES[:1], 3)):
        code = (
            f"import os; os.sched_setaffinity(0, {cores}); from diver_trt.cli import main; main()"
        )
        command = [sys.executable, "-c", code, "recover", str(few), str(tmp_path / name), *RECIPE]
        subprocess.run([*command, "--batch", str(batch)], check=True, capture_output=True, cwd=ROOT)
    assert different(tmp_path / "all", tmp_path / "one") == []
