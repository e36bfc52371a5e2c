"""A full or failing disk leaves no half-written file, and the run can be resumed."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.crash import different
from tests.cli.command import fails
from tests.recovered.commands import recover, recovered


@pytest.mark.parametrize(("failing", "call"), [("save", 0), ("save", 5), ("replace", 5)])
def test_an_error_of_the_disk_leaves_no_half_written_file(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, call: int
) -> None:
    expected = recovered(few, tmp_path / "expected")
    original: Any = Image.Image.save if failing == "save" else Path.replace
    calls = iter(range(10_000))

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image if failing == "save" else Path, failing, broken)
        assert "cannot be written (No space left on device)" in fails(
            recover(few, tmp_path / "out")
        )
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
