"""`diver-trt build`: dry runs, real builds, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from diver_trt.runtime.backends.tensorrt.plans import read_plan
from tests.cli.command import fails, run, succeeds
from tests.conftest import Edited

pytestmark = pytest.mark.slow


def test_a_dry_run_prints_what_a_build_then_writes(
    edited: Edited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pytest.importorskip("tensorrt_rtx")
    folder = edited()
    would = json.loads(
        run("build", folder, "--sm", "86", "--batch", "2", "--dry-run", "--json").stdout
    )
    assert not (folder / "plans").exists()
    assert (
        would["networks"]["denoiser"]["weights_bytes"]
        == 4 * Bundle.open(folder).networks["denoiser"].parameters
    )
    result = succeeds("build", folder, "--sm", "86", "--batch", "2")
    assert f"wrote {would['would_write']}" in result.stdout
    assert sorted(path.name for path in Path(would["would_write"]).iterdir()) == sorted(
        f"{name}.{kind}"
        for name in ("encoder", "conditioner", "denoiser", "decoder")
        for kind in ("engine", "json")
    )
    assert read_plan(Path(would["would_write"])).distrusted() is None
    (tmp_path / "state" / "diver-trt" / "engines").unlink()
    assert read_plan(Path(would["would_write"])).distrusted() is not None


@pytest.mark.parametrize("capability", ["86", "8.6", "sm86", "sm_86", "SM86"])
def test_a_compute_capability_has_several_spellings(edited: Edited, capability: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = edited()
    would = json.loads(
        run("build", folder, "--sm", capability, "--sm", "12.0", "--dry-run", "--json").stdout
    )
    assert would["targets"] == ["sm86", "sm120"]


def test_build_refuses_targets_and_options_that_cannot_work(edited: Edited) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = edited()
    for capability in ("90", "9.0", "sm90"):
        assert "--sm 90: TensorRT-RTX" in fails(run("build", folder, "--sm", capability))
    for capability in ("8,6", "ampere", "8.66", "8", "", "-86", "٨٦"):
        assert run("build", folder, f"--sm={capability}").exit_code == 2
    for capability in ("75", "7.5"):
        for options in ((), ("--dry-run",), ("--sm", "8.6")):
            reason = fails(run("build", folder, "--sm", capability, *options))
            assert (
                "is an fp32 bundle, and TensorRT-RTX has no float32 matrix products for sm75"
                in reason
            )
            assert "diver-trt export MODEL BUNDLE --precision fp16" in reason
            assert "GEMM" not in reason
    for option, values, expected in (
        ("batch", ("some", "0", "1000000", "4:2:1", "1:2", "٨"), "one size such as 8, .* 999,999"),
        ("--workspace", ("some", "0", "1", "1e9", "9999999TB"), "a size .* 512MB.* of 1B or more"),
    ):
        for value in values:
            name = f"--{option.removeprefix('--')}"
            line = fails(run("build", folder, name, value), code=2)
            assert re.search(f"{option} is '{value}'; expected {expected}", line), line
    assert run("build", folder, "--backend", "openvino").exit_code == 2
    assert not (folder / "plans").exists()
