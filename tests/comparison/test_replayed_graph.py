"""A captured CUDA graph is compared with its own steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.lineup import bundle_participant
from diver_trt.comparison.runs import Participant
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.session import TrtSession
from tests.comparison.conftest import Held, Planted, failed
from tests.comparison.faults import FEW, scale_block_4
from tests.stand_in import StandInCuda, stand_in_tensorrt, write_stand_in_plan

pytestmark = pytest.mark.slow


def replayed(bundle: Bundle, folder: Path, api: StandInCuda, batch: int) -> Participant:
    """Return a bundle on the stand-in for TensorRT, which records a batch as one graph."""
    plan = write_stand_in_plan(bundle, batch, folder)

    def open_session() -> TrtSession:
        return TrtSession(bundle, plan, batch, stand_in_tensorrt(api), Cuda(api))

    return replace(bundle_participant("rtx fp32", "rtx", bundle, batch), open=open_session)


@pytest.fixture
def replaying(digits: Bundle, tmp_path: Path) -> tuple[Participant, StandInCuda]:
    api = StandInCuda()
    return replayed(digits, tmp_path / "plan", api, 2), api


def test_a_replayed_graph_is_compared_step_by_step_too(
    few: Held, replaying: tuple[Participant, StandInCuda]
) -> None:
    participant, api = replaying
    found = few(participant)
    assert found.verdict == "passed"
    assert api.launches == 2
    assert max(step.free.relative_l2 for step in found.figures.steps) < 1e-4
    assert len({step.free.relative_l2 for step in found.figures.steps}) > 40
    assert api.device == api.host == {}


def test_a_replayed_graph_that_overflows(
    few: Held, digits: Bundle, planted: Planted, tmp_path: Path
) -> None:
    """Both the whole run and its steps end in NaN, so the captured graph is not at fault."""
    wrong = planted(digits, denoiser=scale_block_4(float("nan")))
    found = few(replayed(wrong, tmp_path / "plan", StandInCuda(), FEW))
    assert found.causes == (
        "steps 50 to 1: NaN or infinite values, first after block 4, MLP: it overflows",
    )


def test_a_graph_that_misses_a_step(
    few: Held, replaying: tuple[Participant, StandInCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, api = replaying
    instantiate = api.cudaGraphInstantiate
    monkeypatch.setattr(
        api,
        "cudaGraphInstantiate",
        lambda graph, flags: instantiate(graph[: -len(graph) // 50], flags),
    )
    found = few(participant)
    assert "the whole run against its own steps" in failed(found)
    assert "every step alone" not in failed(found)
    (cause,) = found.causes
    assert "check the CUDA graph" in cause
