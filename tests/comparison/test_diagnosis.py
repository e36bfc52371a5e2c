"""What is printed for figures that are known, without an engine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from diver_trt.comparison.blocks import StageDifference
from diver_trt.comparison.checks import judge
from diver_trt.comparison.diagnosis import diagnose
from diver_trt.comparison.figures import Figures, StepDifference
from diver_trt.comparison.metrics import Difference, ImageDifference
from diver_trt.comparison.tolerances import TOLERANCES
from diver_trt.models.dit import stage_names

SINGLE = TOLERANCES["fp32"]


def apart(relative_l2: float) -> Difference:
    return Difference(0.0, 0.0, relative_l2, 1.0, 1.0, finite=math.isfinite(relative_l2))


def step(k: int, forced: float = 0.0, change: float = 0.0) -> StepDifference:
    return StepDifference(k, apart(forced), apart(2e-6), 0, change)


def places(*errors: float) -> tuple[StageDifference, ...]:
    names = [*stage_names(1), "final layer"]
    return tuple(
        StageDifference(name, apart(error), swapped=False)
        for name, error in zip(names, errors, strict=True)
    )


RIGHT = Figures(
    networks={name: apart(1e-7) for name in ("encoder", "conditioner", "decoder")},
    classes={"class 0": 1e-7, "class 1": 2e-7, "the null class": 1e-7},
    steps=tuple(step(k) for k in range(12, 0, -1)),
    replay=0.0,
    stage_step=12,
    stages=places(1e-7, 1e-7, 1e-7, 1e-7),
    images=(ImageDifference(math.inf, 1.0, 0), ImageDifference(70.0, 1.0, 1)),
)


def with_steps(*failing: int, error: float = 1e-3) -> tuple[StepDifference, ...]:
    return tuple(step(k, error if k in failing else 0.0) for k in range(12, 0, -1))


def test_right_figures_pass_every_check() -> None:
    checks = judge(RIGHT, SINGLE, ["a", "b"])
    assert all(check.passed for check in checks)
    assert [check.subject for check in checks] == [
        "encoder alone",
        "conditioner alone",
        "decoder alone",
        "every class alone",
        "every step alone",
        "what steps change",
        "block by block",
        "the whole run against its own steps",
        "final images",
    ]
    assert (checks[-1].figure, checks[-1].where) == (1.0, "image b")


@pytest.mark.parametrize(
    ("failing", "where"),
    [
        ((7,), "step 7"),
        ((7, 6), "steps 7, 6"),
        ((12, 11, 10, 9, 3), "steps 12 to 9, 3"),
        ((11, 9, 7, 5, 3, 1), "steps 11, 9, 7, 5, 3, 1"),
    ],
)
def test_steps_are_listed(failing: tuple[int, ...], where: str) -> None:
    (cause,) = diagnose(replace(RIGHT, steps=with_steps(*failing)), SINGLE)
    assert cause.startswith(
        f"{where}: every block holds and the prediction is a relative 1.0e-07 away"
    )


def test_the_first_place_beyond_the_limit_is_named_before_what_lies_behind() -> None:
    figures = replace(
        RIGHT, steps=with_steps(4), stage_step=4, stages=places(1e-7, 2e-5, 3e-3, 4e-3)
    )
    assert diagnose(figures, SINGLE) == (
        "step 4: block 1, attention is the first to diverge from the reference, by a relative "
        "2.0e-05 (compared in step 4)",
    )


def test_a_jump_below_the_limit_is_named_too() -> None:
    figures = replace(RIGHT, steps=with_steps(4), stages=places(1e-7, 1e-7, 9e-6, 2e-5))
    (cause,) = diagnose(figures, SINGLE)
    assert "final layer is the first to diverge from the reference" in cause
    assert "the error jumps at block 1, MLP" in cause


def test_a_fault_that_only_the_changes_show_concerns_all_steps() -> None:
    steps = tuple(step(k, forced=1e-6, change=1e-3) for k in range(12, 0, -1))
    (cause,) = diagnose(replace(RIGHT, steps=steps), SINGLE)
    assert cause.startswith("all steps: every block holds")


def test_a_fault_between_two_engines_of_one_graph_lies_in_an_engine() -> None:
    assert diagnose(replace(RIGHT, steps=with_steps(4), stages=()), SINGLE) == (
        "step 4: the reference runs the same graph, so the fault lies in an engine's computation "
        "of it; --model compares block by block",
    )


def test_networks_come_in_a_recoverys_order_and_hide_no_step() -> None:
    figures = replace(
        RIGHT,
        networks={**RIGHT.networks, "decoder": apart(0.25), "encoder": apart(math.inf)},
        steps=with_steps(4),
    )
    encoder, decoder, steps = diagnose(figures, SINGLE)
    assert encoder == "the encoder writes NaN or infinite values: it overflows"
    assert decoder == "the decoder is a relative 2.5e-01 away from the reference on the same input"
    assert steps.startswith("step 4: ")


def test_an_overflow_names_its_steps_and_its_place() -> None:
    figures = replace(
        RIGHT, steps=with_steps(4, 3, error=math.inf), stages=places(1e-7, 1e-7, math.inf, math.inf)
    )
    assert diagnose(figures, SINGLE) == (
        "steps 4, 3: NaN or infinite values, first after block 1, MLP: it overflows",
    )


def test_classes_that_no_image_is_of() -> None:
    figures = replace(RIGHT, classes={"class 0": 1e-3, "class 1": 0.5, "the null class": 0.0})
    assert diagnose(figures, SINGLE) == (
        "the conditioner is wrong for 2 classes without an image, most for class 1: check its "
        "label table",
    )


def test_a_run_that_ends_elsewhere_than_its_steps() -> None:
    assert diagnose(replace(RIGHT, replay=0.125), SINGLE) == (
        "the whole run ends a relative 1.2e-01 away from where the same steps end one by one: "
        "check the CUDA graph",
    )


def test_images_that_fail_though_every_level_holds() -> None:
    assert diagnose(RIGHT, SINGLE) == (
        "every network and every step holds alone; over the free run the errors accumulate to a "
        "relative L2 of 2.0e-06",
    )
