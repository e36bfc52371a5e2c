"""Adding or removing a public name is a decision."""

from __future__ import annotations

import pytest

import diver_trt


def test_the_public_names_are_these() -> None:
    assert diver_trt.__all__ == [
        "PRESETS",
        "Bundle",
        "Recipe",
        "RecoveredSample",
        "Recoverer",
        "Recovery",
        "recover",
    ]
    for name in diver_trt.__all__:
        assert getattr(diver_trt, name).__doc__


def test_every_public_name_has_a_home() -> None:
    assert sorted(diver_trt._HOMES) == sorted(diver_trt.__all__)


def test_other_names_are_missing_in_the_usual_way() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'distill'"):
        diver_trt.distill  # noqa: B018
