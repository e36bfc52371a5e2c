"""Faults of known size, planted into a step on random arrays, are found with their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diver_trt.comparison.causes import (
    TermFault,
    fit_gain,
    fit_input_gain,
    fit_step,
    next_latent,
    window_of,
)
from diver_trt.method.step import StepLayout, guided_step

LAYOUT = StepLayout(4, learned_variance=True)
ROW = np.array([4, 4, 4, 1, 1.01, -0.15, 0.1, -6.0, -4.0], np.float32)


def arrays() -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(5)
    latent, anchor = generator.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    prediction = generator.standard_normal((2, 3, 8, 8, 8)).astype(np.float32)
    return latent, anchor, prediction


def step_with(row: Any, latent: Any, anchor: Any, prediction: Any) -> Any:
    by_class, by_null = prediction
    return guided_step(
        latent, anchor, by_class[:, :4], by_null[:, :4], by_class[:, 4:], row, LAYOUT, np.exp
    )


@pytest.mark.parametrize(
    ("columns", "wrong", "term", "fitted"),
    [
        ([LAYOUT.gamma], 0.0, "gamma", [0.0]),
        ([LAYOUT.gamma], 0.2, "gamma", [0.2]),
        ([LAYOUT.a], 1.02, "a", [1.02]),
        ([LAYOUT.b], -0.1, "b", [-0.1]),
        ([0, 1, 2, 3], 2.0, "guidance", [2, 2, 2, 2]),
        ([3], 4.0, "guidance", [4, 4, 4, 4]),
    ],
)
def test_a_wrong_number_is_named_with_its_value(
    columns: list[int], wrong: float, term: str, fitted: list[float]
) -> None:
    row = ROW.copy()
    row[columns] = wrong
    fault = fit_step(step_with(row, *arrays()), *arrays(), ROW, LAYOUT)
    assert fault is not None
    assert fault.term == term
    np.testing.assert_allclose(fault.fitted, fitted, atol=1e-4)
    assert not fault.exchanged


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
def test_exchanged_rows_are_named(gamma: float) -> None:
    """Inside the window too, where the variance is the null class's as well."""
    latent, anchor, prediction = arrays()
    row = ROW.copy()
    row[LAYOUT.gamma] = gamma
    fault = fit_step(
        step_with(row, latent, anchor, prediction[::-1]), latent, anchor, prediction, row, LAYOUT
    )
    assert fault is not None
    assert fault.exchanged
    assert "takes the class's row for the null class's" in str(fault)


def test_what_no_number_explains_is_not_named() -> None:
    latent, anchor, prediction = arrays()
    found = step_with(ROW, latent, anchor, prediction)
    noise = np.random.default_rng(9).standard_normal(found.shape).astype(np.float32)
    assert (
        fit_step(found + np.float32(0.1) * noise, latent, anchor, prediction, ROW, LAYOUT) is None
    )


def test_a_right_step_and_one_that_is_no_number_have_no_fault() -> None:
    right = next_latent(*arrays(), ROW, LAYOUT)
    np.testing.assert_allclose(right, step_with(ROW, *arrays()), rtol=1e-5, atol=1e-6)
    assert fit_step(right, *arrays(), ROW, LAYOUT) is None  # type: ignore[arg-type]
    assert fit_step(np.full_like(arrays()[0], np.nan), *arrays(), ROW, LAYOUT) is None


def test_a_fault_is_found_under_the_rounding_of_float16() -> None:
    latent, anchor, prediction = arrays()
    row = ROW.copy()
    row[LAYOUT.gamma] = 0
    noise = np.random.default_rng(9).standard_normal(latent.shape).astype(np.float32)
    fault = fit_step(
        step_with(row, latent, anchor, prediction) + np.float32(2e-4) * noise,
        latent,
        anchor,
        prediction,
        ROW,
        LAYOUT,
    )
    assert fault is not None
    assert fault.term == "gamma"
    assert fault.fitted[0] == pytest.approx(0, abs=1e-3)


def test_a_gain_is_found_only_where_it_is_all_that_differs() -> None:
    latent, other, _ = arrays()
    assert fit_gain(latent * np.float32(1.3), latent, 1e-5) == pytest.approx(1.3, rel=1e-6)
    assert fit_gain(latent, latent, 1e-5) is None
    assert fit_gain(latent + np.float32(0.01) * other, latent, 1e-5) is None
    assert (
        fit_gain(latent + np.float32(0.01) * other, latent, 1e-2) is None
    )  # the best gain takes this below the tolerance
    assert fit_gain(np.full_like(latent, np.nan), latent, 1e-5) is None


def test_a_gain_on_a_network_s_input_is_found() -> None:
    latent, other, _ = arrays()
    assert fit_input_gain(
        lambda gain: np.tanh(latent * np.float32(gain / 0.7)), np.tanh(latent), 1e-5
    ) == pytest.approx(0.7, rel=1e-4)
    assert (
        fit_input_gain(lambda gain: np.tanh(other * np.float32(gain)), np.tanh(latent), 1e-5)
        is None
    )


def test_a_gain_that_takes_only_part_of_an_error_off_is_none() -> None:
    """An output 1.1 times as large is nearly an input 1.1 times as large, and what is left is below a coarse tolerance."""
    latent, _, _ = arrays()
    right = np.tanh(latent)
    for factor, tolerance in ((1.1, 3e-2), (1.01, 1e-3)):
        assert (
            fit_input_gain(
                lambda gain, by=factor: (  # type: ignore[misc]
                    np.float32(by) * np.tanh(latent * np.float32(gain))
                ),
                right,
                tolerance,
            )
            is None
        )
    assert (
        fit_input_gain(lambda gain: np.tanh(latent * np.float32(gain)), right, 1e-5) is None
    )  # nothing is wrong


def test_the_window_that_gammas_amount_to() -> None:
    assert window_of({k: 0.1 if 25 < k <= 40 else 0.0 for k in range(1, 51)}) == (40, 25)
    assert window_of({1: 0.1, 2: 0.0, 3: 0.1}) is None
    assert window_of({1: 0.0}) is None
    assert window_of({1: 0.1, 2: 0.1003}) == (2, 0)
    assert window_of({1: 0.1, 2: 0.05}) is None


def test_faults_read_as_sentences() -> None:
    assert (
        str(TermFault("gamma", (0.1,), (0.0,)))
        == "as if gamma of semantic guidance were 0 instead of 0.1"
    )
    assert (
        str(TermFault("gamma", (0.1,), (-5e-5,)))
        == "as if gamma of semantic guidance were 0 instead of 0.1"
    )
    assert (
        str(TermFault("guidance", (4.0, 1.0), (4.0, 4.0)))
        == "as if the guidance scale were 4 instead of (4, 1)"
    )


def test_faults_of_two_steps_are_alike_if_term_and_numbers_are() -> None:
    fault = TermFault("gamma", (0.1,), (5e-5,))
    assert fault.like(TermFault("gamma", (0.1,), (-5e-5,)))
    assert not fault.like(TermFault("gamma", (0.1,), (0.01,)))
    assert not fault.like(TermFault("gamma", (0.0,), (0.1,)))
    assert not fault.like(TermFault("b", (0.1,), (5e-5,)))
    assert not TermFault("guidance", (4.0, 1.0), (3.0, 1.0)).like(
        TermFault("guidance", (4.0, 4.0), (3.0, 1.0))
    )
