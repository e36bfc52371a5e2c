"""A wheel holds one package, the digits bundle and the class lists, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(folder),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_claims_one_name_only(names: list[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"diver_trt"}


def test_the_wheel_contains_everything_that_a_recovery_needs(names: list[str]) -> None:
    needed = {
        "py.typed",
        "distilled/imagenet_subsets.json",
        "distilled/imagenet_wnids.txt",
        "engines/digits/bundle.json",
    }
    needed |= {
        "bench/report.html.jinja",
        "comparison/report.html.jinja",
        "evaluation/report.html.jinja",
        *(f"recovered/gallery/page.{suffix}" for suffix in ("html", "css", "js")),
        *(f"engines/digits-distilled/{digit}/0.png" for digit in range(10)),
    }
    assert {f"diver_trt/{name}" for name in needed} <= set(names)


def test_every_module_is_in_the_wheel(names: list[str]) -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in Path(ROOT / "diver_trt").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.parametrize(("command", "written"), [("recover", 10), ("inspect", 0)])
def test_the_examples_of_the_help_run_where_only_the_wheel_is(
    wheel: Path, tmp_path: Path, command: str, written: int
) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "cwd").mkdir()

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "diver_trt", *arguments],
            cwd=tmp_path / "cwd",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    *_, last = filter(str.strip, run(command, "--help").splitlines())
    name, program, *arguments = last.split()
    assert (name, program, arguments[0]) == ("Example:", "diver-trt", command)
    run(*arguments)
    assert len(list((tmp_path / "cwd").rglob("0*/*.png"))) == written
