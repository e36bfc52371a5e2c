"""`diver-trt export`: a bundle that works, and refusals."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.cli.export import _print_exported
from diver_trt.errors import ExportError
from tests.cli.command import QUICK, fails, run, succeeds

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("traced_once")
def test_export_then_recover(random_pipeline: Path, few: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    requested = ("--precision", "fp16", "--timestep-frequencies", "dit", "--json")
    result = run("export", random_pipeline, bundle, *requested)
    answer = json.loads(result.stdout)
    assert answer["timestep_frequencies"] == "dit"
    assert set(answer["relative_l2"]) == {"encoder", "conditioner", "denoiser", "decoder"}
    assert all(0 < error < 1e-2 for error in answer["relative_l2"].values())
    shutil.rmtree(few / "8")
    succeeds("recover", few, tmp_path / "out", "--bundle", bundle, *QUICK)
    image = np.asarray(Image.open(tmp_path / "out" / "00003" / "00000.png"))
    assert image.shape == (16, 16, 3)


def test_an_export_prints_the_timestep_frequencies_it_assumes(
    random_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise ExportError("as planned")

    monkeypatch.setattr("diver_trt.export.exporter.export_bundle", stops)
    result = run("export", random_pipeline, tmp_path / "bundle")
    assert fails(result) == "diver-trt: error: as planned"
    note = "timestep frequencies of diffusers (taken to be trained with diffusers' class)"
    assert note in result.stderr


def test_the_next_command_is_one_to_paste(
    digits: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(digits.path, tmp_path / "my bundle")
    _print_exported([], bundle, as_json=False)
    assert shlex.split(capsys.readouterr().out)[-2:] == ["--bundle", str(bundle)]


def test_export_of_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "has no model_index.json" in fails(run("export", tmp_path, tmp_path / "bundle"))
    assert run("export", tmp_path, tmp_path / "bundle", "--precision", "int4").exit_code == 2
