"""What a device has to load: subprocesses list their modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import IPC1

HEAVY = (
    "openvino_telemetry",
    "torch",
    "diffusers",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "transformers",
    "polygraphy",
    "sklearn",
    "scipy",
    "huggingface_hub",
    "httpx2",
)


def modules_after(code: str) -> set[str]:
    output = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name.split(".")[0] for name in output.splitlines()}


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_recovery_never_loads_torch_diffusers_or_onnx(engine: str) -> None:
    code = f"""
import numpy as np
from diver_trt import Bundle, Recipe, Recoverer
from diver_trt.digits import default_bundle
recipe = Recipe(steps=4, inherit_step=2, start_step=4, window=(3, 2))
with Recoverer(Bundle.open(default_bundle()), recipe, engine={engine!r}, batch=1) as recoverer:
    (sample,) = recoverer(np.zeros((1, 32, 32, 3), np.uint8), [0])
assert sample.image.shape == (32, 32, 3)
"""
    loaded = modules_after(code)
    runtimes = {"onnx": "onnxruntime", "openvino": "openvino"}
    assert loaded & set(runtimes.values()) == {runtimes[engine]}
    assert loaded.isdisjoint(HEAVY)
    assert loaded.isdisjoint({"typer", "rich", "PIL"})


def test_the_recover_command_never_loads_torch_diffusers_or_onnx(tmp_path: Path) -> None:
    arguments = [
        "recover",
        str(IPC1),
        str(tmp_path / "out"),
        "--preset",
        "matched",
    ]
    code = f"""
import contextlib, io, sys
sys.argv = ["diver-trt", *{arguments!r}]
from diver_trt.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
"""
    loaded = modules_after(code)
    assert (tmp_path / "out" / "manifest.json").exists()
    assert "openvino" in loaded  # what `auto` takes here
    assert loaded.isdisjoint(HEAVY)
