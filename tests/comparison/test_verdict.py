"""Correct engines pass.

No figure here depends on how a CPU computes in float16: the limits of fp16 are tested on weights
that are rounded to float16, computed with in float32. So are those of the planted faults.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diver_trt.bundle import Bundle
from diver_trt.comparison import torch_engine
from diver_trt.comparison.figures import mean_psnr
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import Lineup, bundle_participant, line_up, torch_participant
from diver_trt.comparison.tolerances import TOLERANCES, Limit
from diver_trt.comparison.torch_engine import TorchSession
from diver_trt.comparison.verdict import compare_lineup
from diver_trt.errors import EngineError
from diver_trt.models.dit import Dit
from tests.comparison.conftest import SHORT, Held, Planted, failed, first
from tests.comparison.faults import FEW, judged, scale_initializer

pytestmark = pytest.mark.slow


def test_the_fp32_bundle_holds_at_every_step(ten: Held, digits: Bundle) -> None:
    found = ten(digits)
    assert found.verdict == "passed"
    assert [step.k for step in found.figures.steps] == list(range(50, 0, -1))
    assert max(step.forced.relative_l2 for step in found.figures.steps) <= 1e-5
    assert max(image.max_levels for image in found.figures.images) <= 1
    # Tighter than the tolerance, which allows for large images.
    assert max(apart.relative_l2 for apart in found.figures.networks.values()) <= 1e-5
    assert found.causes == ()
    assert len(found.figures.stages) == 2 * 6 + 2


def test_the_fp16_bundle_keeps_the_images(few: Held, digits_fp16: Bundle) -> None:
    """Its images are at 60 dB and its steps at 1e-4, far from the limits on any CPU."""
    found = few(digits_fp16)
    assert found.verdict == "passed"
    assert mean_psnr(found.figures.images) >= 40
    assert min(image.psnr_db for image in found.figures.images) >= 30
    assert found.figures.worst_step.forced.relative_l2 > 1e-6  # float16 was really computed in


def test_weights_rounded_to_float16_pass_with_the_error_of_float16(
    few: Held, rounded: Bundle
) -> None:
    """So the tests of planted faults can use them in place of an fp16 bundle."""
    found = few(judged("fp16", rounded))
    assert found.verdict == "passed"
    assert 1e-5 < found.figures.worst_step.forced.relative_l2 < 1e-3
    assert failed(few(rounded)) >= {"every step alone", "block by block", "encoder alone"}


def test_torch_in_float16_is_judged_and_in_bfloat16_only_shown(
    few: Held, digits: Bundle, digits_model: Dit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both compute in float32 here: the limits follow from the precision's name."""
    for precision in ("fp16", "bf16"):
        monkeypatch.setitem(torch_engine._DTYPES, precision, torch.float32)
    half, brain = (
        few(torch_participant(digits_model, digits, FEW, name)) for name in ("fp16", "bf16")
    )
    assert (half.name, half.precision, half.verdict) == ("torch fp16", "fp16", "passed")
    assert {check.limit for check in half.checks} >= {TOLERANCES["fp16"].step}
    assert (brain.name, brain.precision, brain.verdict) == ("torch bf16", "bf16", "not judged")


@pytest.mark.parametrize(
    ("precision", "dtype", "border"),
    [
        ("fp32", torch.float32, "float32"),
        ("fp16", torch.float16, "float16"),
        ("bf16", torch.bfloat16, "float32"),
    ],
)
def test_torch_computes_in_the_precision_of_its_name(
    digits: Bundle, digits_model: Dit, precision: str, dtype: torch.dtype, border: str
) -> None:
    session = TorchSession(digits_model, digits, 1, precision)  # type: ignore[arg-type]
    assert {
        block.mlp.net[2].weight.dtype for block in session.networks["denoiser"].predictor.blocks
    } == {dtype}
    assert session.networks["decoder"].decoder.conv_in.weight.dtype == dtype
    conditioner = session.open("conditioner")
    for name, value in (("time", np.float32(500)), ("label", 3)):
        conditioner.write(name, np.full(conditioner.batch, value))
    conditioner.run()
    assert conditioner.read("condition").dtype == border


def test_the_batch_changes_no_figure(ten: Held, digits: Bundle) -> None:
    """Ten images in batches of four, the last one padded."""
    by_four = ten(bundle_participant("onnx", "onnx", digits, 4))
    assert by_four.verdict == "passed"
    assert [image.max_levels for image in by_four.figures.images] == [
        image.max_levels for image in ten(digits).figures.images
    ]


def test_engines_of_one_graph_are_not_compared_block_by_block(
    digits: Bundle, rounded: Bundle, inputs: Inputs
) -> None:
    """The graph would be compared with itself, and never differ."""
    reference, again, other = (
        bundle_participant(name, "onnx", bundle, 1)
        for name, bundle in (("a", digits), ("b", digits), ("c", rounded))
    )
    _, (same, differs), _ = compare_lineup(
        Lineup(reference, (again, other), ()), first(inputs, 1), SHORT
    )
    assert same.verdict == "passed" and same.figures.stages == ()
    assert "block by block" not in {check.subject for check in same.checks}
    assert max(stage.difference.relative_l2 for stage in differs.figures.stages) > 1e-5
    assert "block by block" in failed(differs)


def test_rounding_alone_is_not_blamed_on_a_block(
    few: Held, rounded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], step=Limit(1e-5, "")))
    found = few(judged("fp16", rounded))
    assert failed(found) == {"every step alone"}
    (cause,) = found.causes
    assert "every block holds" in cause
    assert "guidance (which multiplies the rounding of the prediction)" in cause


@pytest.mark.parametrize(
    ("network", "weight", "where"),
    [
        ("encoder", "encoder.conv_in.weight", "the encoder"),
        ("conditioner", "label_tables.0.weight", "the conditioner"),
        ("denoiser", "predictor.blocks.3.mlp.net.2.bias", "step 6, after block 4, MLP"),
        ("decoder", "decoder.conv_in.weight", "the decoder"),
    ],
)
def test_a_reference_that_overflows_is_refused(
    digits: Bundle, inputs: Inputs, planted: Planted, network: str, weight: str, where: str
) -> None:
    wrong = planted(digits, **{network: scale_initializer(weight, float("nan"))})
    lineup = line_up([wrong, digits], None, ["onnx"], 1)
    with pytest.raises(EngineError) as caught:
        compare_lineup(lineup, first(inputs, 1), SHORT)
    assert (
        f"onnx fp32 (planted): the reference itself is not finite, first in {where}; expected "
        "finite values" in str(caught.value)
    )
