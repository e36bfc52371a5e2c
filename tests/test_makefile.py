"""`make demo` and `make clean` leave what a user recovered alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a space in its path, a `diver-trt` that only records its arguments, and a
    user's `recovered`.
    """
    root = tmp_path / "my checkout"
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root)
    command = root / ".venv" / "bin" / "diver-trt"
    command.write_text('#!/bin/sh\necho "$@" > arguments\nmkdir -p "$3"\n')
    command.chmod(0o755)
    for folder in ("recovered", "recovered-demo"):
        (root / folder).mkdir()
        (root / folder / "0.png").write_text("an image")
    return root


def make(root: Path, target: str) -> str:
    # These tests run under `make test`, whose flags would have this make announce its directory.
    command = ["make", "--no-print-directory", "--old-file=.venv/.demo", target]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def test_the_demo_writes_a_folder_of_its_own(checkout: Path) -> None:
    printed = make(checkout, "demo")
    assert (checkout / "arguments").read_text().split() == [
        "recover",
        "examples/digits/distilled/ipc10",
        "recovered-demo",
    ]
    assert not (checkout / "recovered-demo" / "0.png").exists()
    assert (checkout / "recovered" / "0.png").read_text() == "an image"
    assert printed.splitlines()[-2:] == [
        f"The command is {checkout}/.venv/bin/diver-trt; to call it by name in this shell, run",
        f"  . '{checkout}/.venv/bin/activate'",
    ]


def test_cleaning_keeps_recovered_images(checkout: Path) -> None:
    make(checkout, "clean")
    assert not (checkout / "recovered-demo").exists()
    assert not (checkout / ".venv").exists()
    assert (checkout / "recovered" / "0.png").read_text() == "an image"
