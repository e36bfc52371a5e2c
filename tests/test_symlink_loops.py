"""A symlink to itself, as any path of any command, ends in one line and exit code 1.

`Path.resolve` raises a RuntimeError for it up to Python 3.12.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import OutputError
from diver_trt.files import resolved
from tests.cli.command import fails, run, succeeds
from tests.cli.conftest import few as few


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    (tmp_path / "loop.png").symlink_to("loop.png")
    return tmp_path / "loop.png"


def test_resolving_differs_from_pathlib_only_for_loops(tmp_path: Path, loop: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("link", "link/missing/x", "missing/../link", "."):
        assert resolved(tmp_path / name) == (tmp_path / name).resolve()
    for path in (loop, loop / "x", tmp_path / "link" / ".." / "loop.png"):
        with pytest.raises(OutputError, match="leads through a symlink to itself"):
            resolved(path)


@pytest.mark.parametrize("below", ["", "x"])
def test_an_output_that_leads_to_itself_is_refused(
    few: Path, tmp_path: Path, loop: Path, below: str
) -> None:
    message = "leads through a symlink to itself, expected a file or folder. Delete the symlink."
    assert message in fails(run("recover", few, loop / below))
    shards = [tmp_path / f"shard{number}" for number in (1, 2)]
    for number, shard in enumerate(shards, 1):
        succeeds("recover", few, shard, "--steps", 2, "--shard", f"{number}/2")
    assert message in fails(run("merge", *shards, loop / below))


@pytest.mark.parametrize("below", ["", "x.png"])
def test_a_contact_sheet_that_leads_to_itself_is_refused(few: Path, loop: Path, below: str) -> None:
    assert "leads through a symlink to itself" in fails(
        run("inspect", few, "--contact-sheet", loop / below)
    )


def test_inputs_that_lead_to_themselves_are_refused(
    few: Path, tmp_path: Path, loop: Path, digits: Bundle
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 3, 8, 8), np.float32), labels=np.zeros(1, int))
    for command in (
        ("recover", loop, tmp_path / "out"),
        ("inspect", loop),
        ("inspect", loop / "x"),
        ("convert", loop, tmp_path / "b.npz"),
        ("inspect", few, "--bundle", loop),
        ("convert", tmp_path / "a.npz", tmp_path / "b.npz", "--zca-reference", loop),
    ):
        assert fails(run(*command))
    assert run("inspect", few, "--classes", loop).exit_code == 2


def test_a_fifo_or_device_is_not_a_dataset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.pt")
    for path in (tmp_path / "data.pt", Path("/dev/zero")):
        for command in (("recover", path, tmp_path / "out"), ("convert", path, tmp_path / "b.npz")):
            result = run(*command)
            assert f"{path}: is neither a regular file nor a folder" in fails(result)
