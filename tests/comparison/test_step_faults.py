"""Faults behind the network fail: guidance, conditions and the numbers of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import GraphProbe
from diver_trt.comparison.lineup import bundle_participant
from diver_trt.comparison.tolerances import TOLERANCES
from tests.comparison.conftest import BEHIND, Held, Planted, failed
from tests.comparison.faults import (
    FEW,
    Mistake,
    exchange_conditions,
    exchange_predictions,
    gammas,
    guidance_scale,
    judged,
    longer_steps,
    mistaking,
    scale_block_4,
    shifted_window,
)
from tests.edited_json import json_file

pytestmark = pytest.mark.slow


def test_guidance_that_reads_the_wrong_rows(few: Held, digits: Bundle, planted: Planted) -> None:
    found = few(planted(digits, denoiser=exchange_predictions))
    assert "every step alone" in failed(found)
    assert "block by block" not in failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to 1: every block holds")
    assert BEHIND in cause


def test_conditions_in_the_wrong_rows(few: Held, digits: Bundle, planted: Planted) -> None:
    found = few(planted(digits, denoiser=exchange_conditions))
    assert "every step alone" in failed(found)
    (cause,) = found.causes
    assert (
        "block 1, attention has the class's row in place of the null class's, and vice versa"
        in cause
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("mistake", "wrong", "where"),
    [
        (shifted_window(1), [41, 26], "steps 41, 26"),
        (shifted_window(-1), [40, 25], "steps 40, 25"),
        (gammas(40, 26, 0.0), range(40, 25, -1), "steps 40 to 26"),
        (shifted_window(5), [45, 44, 43, 42, 41, 30, 29, 28, 27, 26], "steps 45 to 41, 30 to 26"),
        (gammas(50, 16), [*range(50, 40, -1), *range(25, 15, -1)], "steps 50 to 41, 25 to 16"),
        (gammas(40, 26, 0.2), range(40, 25, -1), "steps 40 to 26"),
        (gammas(33, 33, 0.0), [33], "step 33"),
    ],
    ids=[
        "one late",
        "one early",
        "nowhere",
        "shifted by five",
        "far too long",
        "twice as strong",
        "with a hole",
    ],
)
def test_steps_in_which_semantic_guidance_is_wrong(
    few: Held,
    bundles: dict[str, Bundle],
    precision: str,
    mistake: Mistake,
    wrong: list[int],
    where: str,
) -> None:
    found = few(judged(precision, mistaking(bundles[precision], mistake)))
    assert "every step alone" in failed(found)
    limit = TOLERANCES[precision].step
    failing = [step.k for step in found.figures.steps if not limit.holds(step.forced.relative_l2)]
    assert failing == list(wrong)
    assert found.figures.worst_step.k in wrong
    (cause,) = found.causes
    assert cause.startswith(f"{where}: every block holds")
    assert BEHIND in cause


@pytest.mark.parametrize("mistake", [guidance_scale(3.5), guidance_scale(3.7), longer_steps])
def test_a_wrong_number_that_only_the_changes_show(
    few: Held, rounded: Bundle, mistake: Mistake
) -> None:
    found = few(judged("fp16", mistaking(rounded, mistake)))
    assert failed(found) == {"what steps change"}
    (cause,) = found.causes
    assert cause.startswith("all steps: every block holds")
    assert BEHIND in cause


@pytest.mark.parametrize("mistake", [None, guidance_scale(3.5), longer_steps])
def test_an_engine_that_rounds_differently_from_its_graph(
    few: Held, digits: Bundle, rounded: Bundle, mistake: Mistake | None
) -> None:
    """As a GPU does: its rounding is not reported as a fault, and does not hide one."""
    engine = mistaking(rounded, mistake or (lambda table, layout: None))
    found = few(judged("fp16", replace(engine, probe=lambda: GraphProbe(digits))))
    if mistake is None:
        assert found.verdict == "passed"
    else:
        assert failed(found) == {"what steps change"}
        assert BEHIND in found.causes[0]


def test_an_engine_that_computes_a_correct_graph_wrongly(
    few: Held, digits: Bundle, planted: Planted
) -> None:
    """Such as a compiler's mistake in block 4, which the graph cannot show."""
    wrong = bundle_participant("onnx", "onnx", planted(digits, denoiser=scale_block_4(1.01)), FEW)
    found = few(replace(wrong, probe=lambda: GraphProbe(digits)))
    assert {"every step alone", "what steps change"} <= failed(found)
    (cause,) = found.causes
    assert "every block holds" in cause
    assert "or the engine's computation of the graph" in cause


@pytest.mark.parametrize(
    ("precision", "check"), [("fp32", "every step alone"), ("fp16", "what steps change")]
)
def test_a_schedule_that_is_not_the_model_s(
    few: Held, bundles: dict[str, Bundle], planted: Planted, precision: str, check: str
) -> None:
    wrong = planted(bundles[precision])
    with json_file(wrong.path / "bundle.json") as manifest:
        manifest["process"]["beta_end"] = 0.018
    found = few(judged(precision, Bundle.open(wrong.path)))
    assert check in failed(found)
    (cause,) = found.causes
    assert "every block holds" in cause
    assert BEHIND in cause
