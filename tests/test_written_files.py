"""A command writes only its output: no telemetry, no caches, no leftover temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diver_trt.contract import NETWORKS
from tests.conftest import IPC1, ROOT

ELSEWHERE = {
    "HOME": "home",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "runtime",
    "TMPDIR": "tmp",
}


def python(elsewhere: Path, *arguments: object, **variables: str) -> None:
    """Run Python in a clean environment, with every folder that libraries write to empty."""
    folders = {name: elsewhere / folder for name, folder in ELSEWHERE.items()}
    for folder in (*folders.values(), elsewhere / "cwd"):
        folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**kept, **{name: str(path) for name, path in folders.items()}, **variables}
        | {"PYTHONPATH": str(ROOT)},
        cwd=elsewhere / "cwd",
        capture_output=True,
        check=True,
    )


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


RECOVER = ("recover", IPC1, "--preset", "matched", "--layout", "npz", "--engine")


@pytest.mark.parametrize("command", ["recover", "inspect", "doctor"])
def test_a_command_writes_nothing_but_its_output(tmp_path: Path, command: str) -> None:
    arguments: dict[str, list[object]] = {
        "recover": [*RECOVER, "onnx", tmp_path / "out"],
        "inspect": ["inspect", IPC1, "--contact-sheet", tmp_path / "out.png"],
        "doctor": ["doctor"],
    }
    python(tmp_path / "elsewhere", "-m", "diver_trt", *arguments[command])
    assert files_below(tmp_path / "elsewhere") == []
    assert command == "doctor" or list(tmp_path.glob("out*"))


@pytest.mark.parametrize("engine", ["openvino", "auto"])
def test_a_recovery_with_openvino_writes_nothing_but_its_cache(tmp_path: Path, engine: str) -> None:
    """OpenVINO's telemetry would write to the home, once on import and once as the process ends."""
    python(tmp_path / "elsewhere", "-m", "diver_trt", *RECOVER, engine, tmp_path / "out")
    kept = [Path(name) for name in files_below(tmp_path / "elsewhere")]
    assert {path.parent.as_posix() for path in kept} == {"cache/diver-trt/openvino"}
    assert sorted(path.name.partition("-")[0] for path in kept) == sorted(NETWORKS)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_python_interface_writes_nothing(tmp_path: Path) -> None:
    code = """
import numpy as np
from diver_trt import Bundle, Recipe, Recoverer
from diver_trt.digits import default_bundle
recipe = Recipe(steps=4, inherit_step=2, start_step=4, window=(3, 2))
with Recoverer(Bundle.open(default_bundle()), recipe, engine="onnx") as recoverer:
    assert len(list(recoverer(np.zeros((1, 32, 32, 3), np.uint8), [0], keep_bad=True))) == 1
"""
    python(tmp_path, "-c", code)
    assert files_below(tmp_path) == []


def test_who_wants_telemetry_keeps_it(tmp_path: Path) -> None:
    code = "import os, diver_trt; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    python(tmp_path, "-c", code, ORT_DISABLE_TELEMETRY="0")
