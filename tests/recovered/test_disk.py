"""A full or failing disk leaves no half-written file, and the run can be resumed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.crash import different
from tests.cli.command import fails
from tests.recovered.commands import journal_keys, recover, recovered


def test_a_run_on_a_disk_that_is_full_from_the_start_is_resumed(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = recovered(few, tmp_path / "expected")
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        assert "No space left on device" in fails(recover(few, tmp_path / "out"))
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 kB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    # Lazily, since another process may have a file of it open.
    subprocess.run(["umount", "--lazy", str(disk)], check=False)


def test_a_run_on_a_full_disk_ends_in_one_line_and_is_resumed(
    few: Path, tmp_path: Path, small_disk: Path
) -> None:
    expected = recovered(few, tmp_path / "expected")
    assert "cannot be written (No space left on device)" in fails(
        recover(few, small_disk / "out", "--batch", 1)
    )
    done = journal_keys(small_disk / "out")
    assert 0 < len(done) < 10
    assert not list((small_disk / "out").rglob("*.partial"))
    shutil.copytree(small_disk / "out", tmp_path / "out")
    result = recover(few, tmp_path / "out")
    assert f"{len(done)} of 10 images are already there" in result.stderr
    assert different(expected, tmp_path / "out") == []


@pytest.mark.parametrize("failing", ["save", "replace"])
def test_an_error_of_the_disk_leaves_no_half_written_file(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    expected = recovered(few, tmp_path / "expected")
    original: Any = Image.Image.save if failing == "save" else Path.replace
    calls = iter(range(10_000))

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:
            raise OSError(errno.EIO, "Input/output error")
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image if failing == "save" else Path, failing, broken)
        assert "cannot be written (Input/output error)" in fails(recover(few, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []


def test_a_clock_that_jumps_changes_nothing(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recovered(few, tmp_path / "expected")
    fourteen_years = 450_000_000
    calls = iter(range(10_000))
    clock = time.time
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: clock() + (-1) ** next(calls) * fourteen_years)
    out = recovered(few, tmp_path / "out")
    for path in out.rglob("*.png"):
        os.utime(path, (0, 0))
    assert recover(few, out).exit_code == 0
    assert different(expected, out) == []
