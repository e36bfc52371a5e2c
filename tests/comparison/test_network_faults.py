"""A wrong encoder, conditioner or decoder fails by itself."""

from __future__ import annotations

import pytest

from diver_trt.bundle import Bundle
from tests.comparison.conftest import Held, Planted, failed
from tests.comparison.faults import judged, scale_initializer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", ["encoder", "decoder", "conditioner"])
def test_a_network_that_overflows(
    few: Held, digits: Bundle, planted: Planted, network: str
) -> None:
    """Its consequences are not reported as faults of their own."""
    weight = {
        "encoder": "encoder.conv_in.weight",
        "decoder": "decoder.conv_in.weight",
        "conditioner": "label_tables.0.weight",
    }[network]
    found = few(planted(digits, **{network: scale_initializer(weight, float("nan"))}))
    assert failed(found) == {
        f"{network} alone",
        "final images",
        *(["every class alone"] if network == "conditioner" else []),
    }
    assert found.causes == (f"the {network} writes NaN or infinite values: it overflows",)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_scaling_factor(
    few: Held, bundles: dict[str, Bundle], planted: Planted, precision: str
) -> None:
    edits = dict.fromkeys(("encoder", "decoder"), scale_initializer("scale", 1.3))
    found = few(judged(precision, planted(bundles[precision], **edits)))
    assert {"encoder alone", "decoder alone"} <= failed(found)
    assert "every step alone" not in failed(found)
    encoder, decoder = found.causes
    assert encoder == "the encoder is a relative 3.0e-01 away from the reference on the same input"
    assert decoder.startswith("the decoder is a relative ")


@pytest.mark.parametrize(
    ("weight", "factor", "precision"),
    [
        ("decoder.conv_out.weight", 1.1, "fp32"),
        ("decoder.conv_in.weight", 1.01, "fp32"),
        ("decoder.up_blocks.0.resnets.0.conv2.weight", 1.01, "fp32"),
        ("decoder.conv_out.weight", 1.1, "fp16"),
    ],
)
def test_another_decoder(
    few: Held,
    bundles: dict[str, Bundle],
    planted: Planted,
    weight: str,
    factor: float,
    precision: str,
) -> None:
    wrong = planted(bundles[precision], decoder=scale_initializer(weight, factor))
    found = few(judged(precision, wrong))
    assert "decoder alone" in failed(found) <= {"decoder alone", "final images"}
    apart = found.figures.networks["decoder"].relative_l2
    assert found.causes == (
        f"the decoder is a relative {apart:.1e} away from the reference on the same input",
    )


def test_a_conditioner_with_other_weights(few: Held, digits: Bundle, planted: Planted) -> None:
    found = few(planted(digits, conditioner=scale_initializer("label_tables.0.weight", 1.05)))
    assert {"conditioner alone", "final images"} <= failed(found)
    assert not {"encoder alone", "decoder alone", "every step alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("the conditioner is a relative")
