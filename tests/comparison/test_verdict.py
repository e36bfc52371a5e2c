"""Engines that are right pass, and of faults that were planted the network, the step and the block are named.

No figure here depends on how a CPU computes in float16: the limits of fp16 are tried on weights that are rounded to float16 and computed
with in float32.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diver_trt.bundle import NETWORKS, Bundle
from diver_trt.comparison import torch_engine
from diver_trt.comparison.blocks import GraphProbe
from diver_trt.comparison.figures import mean_psnr
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import bundle_participant, line_up, torch_participant
from diver_trt.comparison.runs import Participant, Reference, record
from diver_trt.comparison.tolerances import TOLERANCES, Limit, tolerances_for
from diver_trt.comparison.torch_engine import TorchSession
from diver_trt.comparison.verdict import Comparison, compare_engine, compare_lineup
from diver_trt.errors import EngineError
from diver_trt.models.dit import Dit, load_model
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.engine import TrtSession
from tests.comparison.conftest import FEW, Held, first
from tests.comparison.faults import (
    Mistake,
    exchange_conditions,
    exchange_predictions,
    gammas,
    guidance_scale,
    judged_as_fp16,
    longer_steps,
    mistaking,
    plant,
    round_weights,
    scale_initializer,
    scale_weight_beside,
    shifted_window,
)
from tests.stand_in import StandInCuda, stand_in_tensorrt, write_stand_in_plan

pytestmark = pytest.mark.slow

BEHIND = "so look behind the network: at guidance"


@pytest.fixture(scope="session")
def rounded(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits with the weights of an fp16 bundle, computed with in float32."""
    folder = tmp_path_factory.mktemp("bundles") / "rounded"
    return plant(digits, folder, dict.fromkeys(NETWORKS, round_weights))


@pytest.fixture
def bundles(digits: Bundle, rounded: Bundle) -> dict[str, Bundle]:
    return {"fp32": digits, "fp16": rounded}


def judged(precision: str, one: Bundle | Participant) -> Bundle | Participant:
    return judged_as_fp16(one, FEW) if precision == "fp16" else one


def failed(comparison: Comparison) -> set[str]:
    assert comparison.verdict == "failed"
    return {check.subject for check in comparison.checks if not check.passed}


# --- engines that are right


def test_the_fp32_bundle_holds_at_every_step(ten: Held, digits: Bundle) -> None:
    found = ten(digits)
    assert found.verdict == "passed"
    assert [step.k for step in found.steps] == list(range(50, 0, -1))
    assert max(step.forced.relative_l2 for step in found.steps) <= 1e-5
    assert max(image.max_levels for image in found.images) <= 1
    # Tighter than the tolerance, which allows for large images.
    assert max(apart.relative_l2 for apart in found.networks.values()) <= 1e-5
    assert found.causes == ()
    assert len(found.stages) == 2 * 6 + 2


def test_the_fp16_bundle_keeps_the_images(few: Held, digits_fp16: Bundle) -> None:
    """Its images are at 60 dB, its steps at 1e-4: neither comes near a limit, however a CPU rounds."""
    found = few(digits_fp16)
    assert found.verdict == "passed"
    assert mean_psnr(found.images) >= 40
    assert min(image.psnr_db for image in found.images) >= 30
    assert found.worst_step.forced.relative_l2 > 1e-6  # float16 was really computed in


def test_weights_rounded_to_float16_pass_and_are_as_far_off_as_float16(
    few: Held, rounded: Bundle
) -> None:
    """What the tests below lean on: this stands for an fp16 bundle."""
    found = few(judged_as_fp16(rounded, FEW))
    assert found.verdict == "passed"
    assert 1e-5 < found.worst_step.forced.relative_l2 < 1e-3
    assert failed(few(rounded)) >= {"every step alone", "block by block", "encoder alone"}


def test_torch_in_float16_is_judged_and_in_bfloat16_only_shown(
    few: Held, digits: Bundle, digits_model: Dit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both compute in float32 here: what is judged follows from the precision's name."""
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
def test_torch_computes_in_the_precision_that_it_is_called_by(
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
    assert [image.max_levels for image in by_four.images] == [
        image.max_levels for image in ten(digits).images
    ]


# --- planted faults: weights


@pytest.mark.parametrize(
    ("bias", "place"),
    [
        ("predictor.blocks.3.attention.to_v.bias", "block 4, attention"),
        ("predictor.blocks.3.mlp.net.2.bias", "block 4, MLP"),
    ],
)
def test_one_weight_of_the_fourth_block(
    few: Held, digits: Bundle, tmp_path: Path, bias: str, place: str
) -> None:
    found = few(plant(digits, tmp_path / "planted", {"denoiser": scale_weight_beside(bias, 1.01)}))
    assert "every step alone" in failed(found)  # the images may well stay within a level
    assert not {"encoder alone", "conditioner alone", "decoder alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to ")
    assert f"{place} is the first to leave the reference" in cause


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 1.01), ("fp16", 1.01), ("fp16", 1.1)])
def test_a_weight_of_the_final_layer(
    few: Held, bundles: dict[str, Bundle], tmp_path: Path, precision: str, factor: float
) -> None:
    edits = {"denoiser": scale_weight_beside("predictor.final_projection.bias", factor)}
    found = few(judged(precision, plant(bundles[precision], tmp_path / "planted", edits)))
    assert "block by block" in failed(found)
    (cause,) = found.causes
    assert "final layer is the first to leave the reference" in cause


def test_a_weight_of_an_fp16_bundle_that_the_images_would_forgive(
    few: Held, rounded: Bundle, tmp_path: Path
) -> None:
    """The rounding of float16 hides in a latent what one such weight does, and the images stay above 40 dB."""
    edits = {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", 1.05)}
    found = few(judged_as_fp16(plant(rounded, tmp_path / "planted", edits), FEW))
    assert failed(found) == {"what steps change", "block by block"}
    (cause,) = found.causes
    assert cause.startswith("all steps: block 4, MLP is the first to leave the reference")


def test_a_small_fault_in_fp16_is_placed_where_the_error_jumps(
    few: Held, rounded: Bundle, tmp_path: Path
) -> None:
    edits = {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", 1.02)}
    found = few(judged_as_fp16(plant(rounded, tmp_path / "planted", edits), FEW))
    assert failed(found) == {"block by block"}
    (cause,) = found.causes
    assert "final layer is the first to leave the reference" in cause
    assert "the error jumps at block 4, MLP" in cause


def test_a_block_is_named_in_a_random_model_too(
    random_bundle: Bundle, random_pipeline: Path, tmp_path: Path, inputs: Inputs
) -> None:
    pictures = replace(
        inputs,
        labels=tuple(label % 7 for label in inputs.labels),
        images=tuple(image[::2, ::2] for image in inputs.images),
    )
    recipe = Recipe(steps=6, inherit_step=3, start_step=6, window=(5, 3))
    torch = torch_participant(load_model(str(random_pipeline)), random_bundle, 10, "fp32")
    reference = Reference(torch, record(torch, pictures, recipe), torch.probe())
    right = compare_engine(
        reference, bundle_participant("onnx", "onnx", random_bundle, 10), pictures, recipe
    )
    assert right.verdict == "passed"
    wrong = plant(
        random_bundle,
        tmp_path / "planted",
        {"denoiser": scale_weight_beside("predictor.blocks.1.attention.to_out.0.bias", 1.01)},
    )
    found = compare_engine(
        reference, bundle_participant("onnx", "onnx", wrong, 10), pictures, recipe
    )
    assert "every step alone" in failed(found)
    (cause,) = found.causes
    assert "block 2, attention is the first to leave the reference" in cause


def test_a_weight_that_overflows(few: Held, digits: Bundle, tmp_path: Path) -> None:
    found = few(
        plant(
            digits,
            tmp_path / "planted",
            {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", 1e38)},
        )
    )
    assert failed(found) == {
        "every step alone",
        "what steps change",
        "block by block",
        "final images",
    }
    (cause,) = found.causes
    assert "NaN or infinite values, first after block 4, MLP: it overflows" in cause


@pytest.mark.parametrize("network", ["encoder", "decoder", "conditioner"])
def test_a_network_that_overflows(few: Held, digits: Bundle, tmp_path: Path, network: str) -> None:
    """What follows from it is no second fault."""
    weight = {
        "encoder": "encoder.conv_in.weight",
        "decoder": "decoder.conv_in.weight",
        "conditioner": "label_tables.0.weight",
    }[network]
    found = few(
        plant(digits, tmp_path / "planted", {network: scale_initializer(weight, float("nan"))})
    )
    assert failed(found) == {
        f"{network} alone",
        "final images",
        *(["every class alone"] if network == "conditioner" else []),
    }
    assert found.causes == (f"the {network} writes NaN or infinite values: it overflows",)


@pytest.mark.parametrize(
    ("network", "weight", "where"),
    [
        ("encoder", "encoder.conv_in.weight", "the encoder"),
        ("conditioner", "label_tables.0.weight", "the conditioner"),
        ("denoiser", "predictor.blocks.3.mlp.net.2.bias", "step 6, after block 4, MLP"),
        ("decoder", "decoder.conv_in.weight", "the decoder"),
    ],
)
def test_a_reference_that_overflows_is_not_held_against_others(
    digits: Bundle, inputs: Inputs, tmp_path: Path, network: str, weight: str, where: str
) -> None:
    wrong = plant(digits, tmp_path / "planted", {network: scale_initializer(weight, float("nan"))})
    one = first(inputs, 1)
    with pytest.raises(EngineError) as caught:
        compare_lineup(
            line_up([wrong, digits], None, ["onnx"], 1),
            one,
            Recipe(steps=6, inherit_step=3, start_step=6, window=(5, 3)),
        )
    assert (
        f"onnx fp32 (planted): the reference itself is not finite, first in {where}; expected finite values"
        in str(caught.value)
    )


# --- planted faults: guidance and the numbers of a step


def test_guidance_that_reads_the_wrong_rows(few: Held, digits: Bundle, tmp_path: Path) -> None:
    found = few(plant(digits, tmp_path / "planted", {"denoiser": exchange_predictions}))
    assert "every step alone" in failed(found)
    assert "block by block" not in failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to 1: every block holds")
    assert BEHIND in cause


def test_conditions_in_the_wrong_rows(few: Held, digits: Bundle, tmp_path: Path) -> None:
    found = few(plant(digits, tmp_path / "planted", {"denoiser": exchange_conditions}))
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
    found = few(judged(precision, mistaking(bundles[precision], mistake, FEW)))
    assert "every step alone" in failed(found)
    limit = TOLERANCES[precision].step
    failing = [step.k for step in found.steps if not limit.holds(step.forced.relative_l2)]
    assert failing == list(wrong)
    assert found.worst_step.k in wrong
    (cause,) = found.causes
    assert cause.startswith(f"{where}: every block holds")
    assert BEHIND in cause


@pytest.mark.parametrize("mistake", [guidance_scale(3.5), guidance_scale(3.7), longer_steps])
def test_a_number_that_only_what_steps_change_shows(
    few: Held, rounded: Bundle, mistake: Mistake
) -> None:
    found = few(judged_as_fp16(mistaking(rounded, mistake, FEW), FEW))
    assert failed(found) == {"what steps change"}
    (cause,) = found.causes
    assert cause.startswith("all steps: every block holds")
    assert BEHIND in cause


@pytest.mark.parametrize("mistake", [None, guidance_scale(3.5), longer_steps])
def test_an_engine_that_rounds_otherwise_than_its_graph(
    few: Held, digits: Bundle, rounded: Bundle, mistake: Mistake | None
) -> None:
    """As a GPU does: its rounding is not taken for a fault, and does not hide one."""
    engine = mistaking(rounded, mistake or (lambda table, layout: None), FEW)
    found = few(judged_as_fp16(replace(engine, probe=lambda: GraphProbe(digits)), FEW))
    if mistake is None:
        assert found.verdict == "passed"
    else:
        assert failed(found) == {"what steps change"}
        assert BEHIND in found.causes[0]


def test_what_an_engine_makes_of_a_right_graph(few: Held, digits: Bundle, tmp_path: Path) -> None:
    """Such as a compiler that gets block 4 wrong: the graph cannot show where."""
    edits = {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", 1.01)}
    wrong = bundle_participant("onnx", "onnx", plant(digits, tmp_path / "planted", edits), FEW)
    found = few(replace(wrong, probe=lambda: GraphProbe(digits)))
    assert {"every step alone", "what steps change"} <= failed(found)
    (cause,) = found.causes
    assert "every block holds" in cause
    assert "or what the engine made of the graph" in cause


@pytest.mark.parametrize(
    ("precision", "check"), [("fp32", "every step alone"), ("fp16", "what steps change")]
)
def test_a_schedule_that_is_not_the_model_s(
    few: Held, bundles: dict[str, Bundle], tmp_path: Path, precision: str, check: str
) -> None:
    wrong = plant(bundles[precision], tmp_path / "planted", {})
    manifest = json.loads((wrong.path / "bundle.json").read_text())
    manifest["process"]["beta_end"] = 0.018
    (wrong.path / "bundle.json").write_text(json.dumps(manifest))
    found = few(judged(precision, Bundle.open(wrong.path)))
    assert check in failed(found)
    (cause,) = found.causes
    assert "every block holds" in cause
    assert BEHIND in cause


# --- planted faults: the networks alone


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_scaling_factor(
    few: Held, bundles: dict[str, Bundle], tmp_path: Path, precision: str
) -> None:
    edits = {name: scale_initializer("scale", 1.3) for name in ("encoder", "decoder")}
    found = few(judged(precision, plant(bundles[precision], tmp_path / "planted", edits)))
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
    tmp_path: Path,
    weight: str,
    factor: float,
    precision: str,
) -> None:
    edits = {"decoder": scale_initializer(weight, factor)}
    found = few(judged(precision, plant(bundles[precision], tmp_path / "planted", edits)))
    assert "decoder alone" in failed(found) <= {"decoder alone", "final images"}
    apart = found.networks["decoder"].relative_l2
    assert found.causes == (
        f"the decoder is a relative {apart:.1e} away from the reference on the same input",
    )


def test_a_conditioner_with_other_weights(few: Held, digits: Bundle, tmp_path: Path) -> None:
    edits = {"conditioner": scale_initializer("label_tables.0.weight", 1.05)}
    found = few(plant(digits, tmp_path / "planted", edits))
    assert {"conditioner alone", "final images"} <= failed(found)
    assert not {"encoder alone", "decoder alone", "every step alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("the conditioner is a relative")


def test_rounding_alone_is_not_taken_for_a_block(
    few: Held, rounded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], step=Limit(1e-5, "")))
    found = few(judged_as_fp16(rounded, FEW))
    assert failed(found) == {"every step alone"}
    (cause,) = found.causes
    assert "every block holds" in cause
    assert "guidance (which multiplies the rounding of the prediction)" in cause


# --- a replayed graph


def replayed(bundle: Bundle, folder: Path, api: StandInCuda, batch: int) -> Participant:
    """Return a bundle on TensorRT against the stand-in: all steps of a batch are one recorded graph."""
    plan = write_stand_in_plan(bundle, batch, folder)

    def open_session() -> TrtSession:
        return TrtSession(bundle, plan, batch, stand_in_tensorrt(api), Cuda(api))

    return replace(bundle_participant("rtx fp32", "rtx", bundle, batch), open=open_session)


@pytest.fixture
def replaying(digits: Bundle, tmp_path: Path) -> tuple[Participant, StandInCuda]:
    api = StandInCuda()
    return replayed(digits, tmp_path / "plan", api, 2), api


def test_a_replayed_graph_is_compared_step_by_step_too(
    few: Held, replaying: tuple[Participant, StandInCuda]
) -> None:
    participant, api = replaying
    found = few(participant)
    assert found.verdict == "passed"
    assert api.launches == 2
    assert max(step.free.relative_l2 for step in found.steps) < 1e-4
    assert len({step.free.relative_l2 for step in found.steps}) > 40
    assert api.device == api.host == {}


def test_a_replayed_graph_that_overflows(few: Held, digits: Bundle, tmp_path: Path) -> None:
    """Both the whole run and its steps end in NaN, so the graph that was captured is not at fault."""
    edits = {"denoiser": scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", float("nan"))}
    wrong = plant(digits, tmp_path / "planted", edits)
    found = few(replayed(wrong, tmp_path / "plan", StandInCuda(), FEW))
    assert found.causes == (
        "steps 50 to 1: NaN or infinite values, first after block 4, MLP: it overflows",
    )


def test_a_graph_that_misses_a_step(
    few: Held, replaying: tuple[Participant, StandInCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    participant, api = replaying
    instantiate = api.cudaGraphInstantiate
    monkeypatch.setattr(
        api,
        "cudaGraphInstantiate",
        lambda graph, flags: instantiate(graph[: -len(graph) // 50], flags),
    )
    found = few(participant)
    assert "the whole run against its own steps" in failed(found)
    assert "every step alone" not in failed(found)
    (cause,) = found.causes
    assert "look at the CUDA graph" in cause


# --- tolerances


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


def test_a_limit_holds_up_to_itself_and_never_for_what_is_no_number() -> None:
    assert Limit(1.0, "").holds(1.0)
    assert not Limit(1.0, "").holds(1.01)
    assert Limit(1.0, "", at_least=True).holds(1.0)
    for at_least in (True, False):
        assert not Limit(1.0, "", at_least=at_least).holds(float("nan"))
