"""The process that measures memory: what libraries print there, and how it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diver_trt.bench import peaks
from diver_trt.bench.contestants import Contestant, EngineContestant, Specification
from diver_trt.bench.peaks import measure_peaks, run_child
from diver_trt.bench.result import RECOVERY
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.errors import EngineError
from diver_trt.recipe import Recipe

RECIPE = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))


def test_what_libraries_print_is_not_taken_for_the_peaks(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python imports this module as it starts:
    # https://docs.python.org/3/library/site.html#module-sitecustomize
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit\nprint('at the start')\natexit.register(print, 'at the end')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = measure_peaks(EngineContestant("onnx", digits).specification(1, 1, RECIPE))
    # Only Linux has a figure for each network.
    assert {RECOVERY} <= found.host_bytes.keys() <= {*NETWORKS, RECOVERY}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-9, "was killed by signal 9, probably for lack of memory"),
        (-11, "was killed by signal 11"),
        (1, "failed: no message"),
    ],
)
def test_how_the_process_ended_is_reported(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    ended = subprocess.CompletedProcess([], code, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(EngineError, match=f"the process that measures memory {message}$"):
        measure_peaks(EngineContestant("onnx", digits).specification(1, 1, RECIPE))


def test_a_model_that_is_loaded_before_its_networks_counts(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch moves all weights to the device as it loads a model, not as a network is opened."""
    free = [1000]

    class Device:
        def memory(self) -> tuple[int, int]:
            return free[0], 1000

    def load(specification: Specification, bundle: Bundle) -> Contestant:
        free[0] = 400
        return EngineContestant("onnx", bundle)

    monkeypatch.setattr(peaks, "_open_device", Device)
    monkeypatch.setattr(peaks, "contestant_for", load)
    found = run_child(
        Specification(
            bundle=str(digits.path),
            batch=1,
            images=1,
            recipe=RECIPE.to_json(),
            model=("model", None, None),
            device="cuda",
        )
    )
    assert found.device_bytes == dict.fromkeys((*NETWORKS, RECOVERY), 600)
