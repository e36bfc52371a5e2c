"""Figures of a benchmark in words."""

from __future__ import annotations

import pytest

from diver_trt.bench.words import milliseconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.88, "0.880"),
        (16.04, "16.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1204.4, "1,204"),
    ],
)
def test_times_have_at_least_three_digits(value: float, text: str) -> None:
    assert milliseconds(value / 1e3) == text
