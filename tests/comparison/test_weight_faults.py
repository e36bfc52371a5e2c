"""A wrong weight of the denoiser fails, and its block is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import bundle_participant, torch_participant
from diver_trt.comparison.runs import Reference, record
from diver_trt.comparison.verdict import compare_engine
from diver_trt.models.dit import load_model
from tests.comparison.conftest import SHORT, Held, Planted, failed
from tests.comparison.faults import judged, scale_block_4, scale_weight_beside

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("bias", "place"),
    [
        ("predictor.blocks.3.attention.query_key_value.bias", "block 4, attention"),
        ("predictor.blocks.3.mlp.net.2.bias", "block 4, MLP"),
    ],
)
def test_one_weight_of_the_fourth_block(
    few: Held, digits: Bundle, planted: Planted, bias: str, place: str
) -> None:
    found = few(planted(digits, denoiser=scale_weight_beside(bias, 1.01)))
    assert "every step alone" in failed(found)  # the images may well stay within a level
    assert not {"encoder alone", "conditioner alone", "decoder alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to ")
    assert f"{place} is the first to diverge from the reference" in cause


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 1.01), ("fp16", 1.01), ("fp16", 1.1)])
def test_a_weight_of_the_final_layer(
    few: Held, bundles: dict[str, Bundle], planted: Planted, precision: str, factor: float
) -> None:
    edit = scale_weight_beside("predictor.final_projection.bias", factor)
    found = few(judged(precision, planted(bundles[precision], denoiser=edit)))
    assert "block by block" in failed(found)
    (cause,) = found.causes
    assert "final layer is the first to diverge from the reference" in cause


def test_a_weight_of_an_fp16_bundle_that_the_images_would_forgive(
    few: Held, rounded: Bundle, planted: Planted
) -> None:
    """The rounding of float16 hides the effect on a latent, and the images stay above 40 dB."""
    found = few(judged("fp16", planted(rounded, denoiser=scale_block_4(1.05))))
    assert failed(found) == {"what steps change", "block by block"}
    (cause,) = found.causes
    assert cause.startswith("all steps: block 4, MLP is the first to diverge from the reference")


def test_a_small_fault_in_fp16_is_placed_where_the_error_jumps(
    few: Held, rounded: Bundle, planted: Planted
) -> None:
    found = few(judged("fp16", planted(rounded, denoiser=scale_block_4(1.02))))
    assert failed(found) == {"block by block"}
    (cause,) = found.causes
    assert "final layer is the first to diverge from the reference" in cause
    assert "the error jumps at block 4, MLP" in cause


def test_a_block_is_named_in_a_random_model_too(
    random_bundle: Bundle, random_pipeline: Path, planted: Planted, inputs: Inputs
) -> None:
    pictures = replace(
        inputs,
        labels=tuple(label % 7 for label in inputs.labels),
        images=tuple(image[::2, ::2] for image in inputs.images),
    )
    torch = torch_participant(load_model(str(random_pipeline)), random_bundle, 10, "fp32")
    reference = Reference(torch, record(torch, pictures, SHORT), torch.probe())
    edit = scale_weight_beside("predictor.blocks.1.attention.output.bias", 1.01)
    right, found = (
        compare_engine(reference, bundle_participant("onnx", "onnx", one, 10), pictures, SHORT)
        for one in (random_bundle, planted(random_bundle, denoiser=edit))
    )
    assert right.verdict == "passed"
    assert "every step alone" in failed(found)
    (cause,) = found.causes
    assert "block 2, attention is the first to diverge from the reference" in cause


def test_a_weight_that_overflows(few: Held, digits: Bundle, planted: Planted) -> None:
    found = few(planted(digits, denoiser=scale_block_4(1e38)))
    assert failed(found) == {
        "every step alone",
        "what steps change",
        "block by block",
        "final images",
    }
    (cause,) = found.causes
    assert "NaN or infinite values, first after block 4, MLP: it overflows" in cause
