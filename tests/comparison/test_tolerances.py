"""The limits, and which of them decides."""

from __future__ import annotations

from diver_trt.comparison.tolerances import TOLERANCES, Limit, tolerances_for


def test_the_limits_are_these() -> None:
    single, half = TOLERANCES["fp32"], TOLERANCES["fp16"]
    assert {name: limit.value for name, limit in single.networks.items()} == {
        "encoder": 1e-4,
        "conditioner": 1e-5,
        "decoder": 1e-4,
    }
    assert {limit.value for limit in half.networks.values()} == {1e-2}
    assert (single.step.value, half.step.value, single.images["max_levels"].value) == (
        1e-5,
        5e-3,
        1,
    )
    assert (single.change.value, half.change.value, single.place.value, half.place.value) == (
        1e-4,
        1.5e-2,
        1e-5,
        5e-3,
    )
    assert (half.images["mean_psnr_db"].value, half.images["min_psnr_db"].value) == (40, 30)
    for tolerances in TOLERANCES.values():
        assert all(
            limit.reason
            for limit in (
                *tolerances.networks.values(),
                tolerances.step,
                tolerances.change,
                tolerances.place,
                *tolerances.images.values(),
            )
        )


def test_the_coarser_precision_decides() -> None:
    assert tolerances_for("fp32", "fp16") is TOLERANCES["fp16"]
    assert tolerances_for("fp32", "fp32") is TOLERANCES["fp32"]
    assert tolerances_for("bf16", "fp16") is None


def test_a_limit_includes_its_value_and_never_nan() -> None:
    assert Limit(1.0, "").holds(1.0)
    assert not Limit(1.0, "").holds(1.01)
    assert Limit(1.0, "", at_least=True).holds(1.0)
    for at_least in (True, False):
        assert not Limit(1.0, "", at_least=at_least).holds(float("nan"))
