"""`diver-trt compare --report`: when a report is written, and over what."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from tests.cli.command import fails
from tests.comparison.command import QUICK, compare, compare_onnx
from tests.comparison.faults import plant, scale_block_4

pytestmark = pytest.mark.slow


def test_the_verdict_comes_before_a_report_that_cannot_be_written(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("diver_trt.files.os.fsync", full)
    report = tmp_path / "report.html"
    result = compare_onnx(digits.path, "--report", report)
    assert "report.html: cannot be written (No space left on device)" in fails(result)
    assert result.stdout.splitlines()[-1] == "passed: onnx fp32 stays with torch fp32"
    assert not list(tmp_path.iterdir())


def link_to_ours(path: Path) -> None:
    (path.parent / "real").write_text("<title>diver-trt compare: passed</title>")
    path.symlink_to("real")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("notes"),
        lambda path: path.write_text(""),
        lambda path: path.write_text("<title>another page</title>"),
        lambda path: path.symlink_to("missing"),
        lambda path: path.symlink_to("/dev/null"),
        os.mkfifo,
        link_to_ours,
    ],
)
def test_a_report_replaces_nothing_but_a_report(
    digits: Bundle, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "report.html")
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert "already exists and is not a report of diver-trt compare" in fails(
        compare(digits.path, "--report", tmp_path / "report.html")
    )
    after = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert {n: (s.st_ino, s.st_size) for n, s in after.items()} == {
        n: (s.st_ino, s.st_size) for n, s in before.items()
    }


def test_a_bundle_and_its_copy_do_not_differ_at_all(digits: Bundle, tmp_path: Path) -> None:
    """Then there is nothing to draw on a logarithmic axis."""
    copy = shutil.copytree(digits.path, tmp_path / "copy")
    result = compare(
        digits.path, copy, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert result.exit_code == 0, result.output
    first = (tmp_path / "report.html").stat().st_ino
    again = compare(
        digits.path, copy, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert again.exit_code == 0, again.output  # an earlier report is replaced, and not written into
    assert (tmp_path / "report.html").stat().st_ino != first
    assert "every value is 0 or not finite" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_a_report_shows_an_engine_that_outputs_nan(digits: Bundle, tmp_path: Path) -> None:
    broken = plant(
        digits,
        tmp_path / "broken",
        {"denoiser": scale_block_4(float("nan"))},
    )
    result = compare(
        digits.path, broken.path, "--engine", "onnx", "--report", tmp_path / "report.html", *QUICK
    )
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2].startswith(
        "failed: onnx fp32 (broken) leaves onnx fp32 (digits)"
    )
    assert "not finite" in (tmp_path / "report.html").read_text(encoding="utf-8")
