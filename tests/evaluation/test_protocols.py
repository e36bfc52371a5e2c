"""Lengths and rates of the protocols, as the code that they come from has them."""

from __future__ import annotations

import pytest

from diver_trt.errors import UsageError
from diver_trt.evaluation.protocols import DSA, MINIMAX, PROTOCOLS, QUICK, find_protocol


@pytest.mark.parametrize(
    ("per_class", "classes", "epochs"),
    [
        (1, 10, 3000),
        (10, 10, 2000),
        (11, 10, 1500),
        (50, 10, 1500),
        (200, 10, 1000),
        (500, 10, 500),
        (501, 10, 300),
        (10, 100, 1333),
    ],
)
def test_minimax_trains_longer_on_smaller_sets(per_class: int, classes: int, epochs: int) -> None:
    images = per_class * classes
    assert MINIMAX.total_steps(images, classes) == epochs * -(-images // 64)


def test_dsa_trains_for_a_thousand_epochs_and_quick_for_300_steps() -> None:
    assert DSA.total_steps(500, 10) == 2000
    assert QUICK.total_steps(500, 10) == QUICK.total_steps(10, 10) == 300


def test_rates_fall_where_the_protocol_has_it() -> None:
    minimax = [MINIMAX.rate(done) for done in (0, 0.66, 0.67, 0.83, 0.84)]
    assert minimax == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004])
    assert [DSA.rate(0.49), DSA.rate(0.5)] == pytest.approx([0.01, 0.001])
    assert [QUICK.rate(done) for done in (0, 0.5, 1)] == pytest.approx([1e-3, 5e-4, 0])


def test_an_unknown_protocol_is_refused_with_all_names() -> None:
    assert list(PROTOCOLS) == ["minimax", "dsa", "quick"]
    with pytest.raises(UsageError, match="no such protocol; expected one of minimax, dsa, quick"):
        find_protocol("rded")
