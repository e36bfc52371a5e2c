"""Engines that are right pass, and faults that were planted are found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import GraphProbe
from diver_trt.comparison.inputs import Inputs
from diver_trt.comparison.lineup import bundle_participant, line_up, torch_participant
from diver_trt.comparison.runs import Participant, record
from diver_trt.comparison.tolerances import TOLERANCES, Limit, tolerances_for
from diver_trt.comparison.torch_engine import TorchSession
from diver_trt.comparison.verdict import (
    Comparison,
    Reference,
    compare_engine,
    compare_lineup,
    mean_psnr,
)
from diver_trt.errors import EngineError
from diver_trt.export.checkpoint import Model, load_model
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.engine import TrtSession
from tests.comparison.faults import (
    Mistake,
    exchange_modulations,
    exchange_predictions,
    gammas,
    guidance_scale,
    longer_steps,
    mistaken,
    mistaking,
    plant,
    scale_initializer,
    scale_weight_beside,
    shifted_window,
)
from tests.conftest import save_random_pipeline
from tests.stand_in import StandInCuda, stand_in_tensorrt, write_stand_in_plan

Hold = Callable[[Bundle | Participant], Comparison]


@pytest.fixture(scope="module")
def few(reference: Reference, inputs: Inputs, digits: Bundle, digits_model: Model) -> Hold:
    """Compare on two images: enough for what a fault is called."""
    two = first(inputs, 2)
    participant = torch_participant(digits_model, digits, 2, "fp32")
    alone = Reference(participant, record(participant, two, Recipe()), reference.probe)

    def hold(one: Bundle | Participant) -> Comparison:
        return compare_engine(
            alone,
            bundle_participant("onnx", "onnx", one, 2) if isinstance(one, Bundle) else one,
            two,
            Recipe(),
        )

    return hold


def first(inputs: Inputs, n: int) -> Inputs:
    return replace(
        inputs,
        keys=inputs.keys[:n],
        labels=inputs.labels[:n],
        images=inputs.images[:n],
        noise=inputs.noise[:n],
    )


def failed(comparison: Comparison) -> set[str]:
    assert comparison.verdict == "failed"
    return {check.subject for check in comparison.checks if not check.passed}


# --- engines that are right


def test_the_fp32_bundle_holds_at_every_step(held_against_torch: Hold, digits: Bundle) -> None:
    found = held_against_torch(digits)
    assert found.verdict == "passed"
    assert [step.k for step in found.steps] == list(range(50, 0, -1))
    assert max(step.forced.relative_l2 for step in found.steps) <= 1e-5
    assert max(image.max_levels for image in found.images) <= 1
    assert (
        max(apart.relative_l2 for apart in found.networks.values()) <= 1e-5
    )  # small images do not need what large ones are given
    assert found.causes == ()
    assert len(found.stages) == 2 * 6 + 2


def test_the_fp16_bundle_keeps_the_images(held_against_torch: Hold, digits_fp16: Bundle) -> None:
    found = held_against_torch(digits_fp16)
    assert found.verdict == "passed"
    assert mean_psnr(found.images) >= 40
    assert min(image.psnr_db for image in found.images) >= 30
    assert found.worst_step.forced.relative_l2 > 1e-6  # float16 was really computed in


def test_torch_in_float16_is_judged_and_in_bfloat16_only_shown(
    reference: Reference, inputs: Inputs, digits: Bundle, digits_model: Model
) -> None:
    recipe = Recipe(steps=6, inherit_step=3, start_step=6, window=(5, 3))
    one = first(inputs, 1)
    alone = Reference(
        reference.participant, record(reference.participant, one, recipe), reference.probe
    )
    half, brain = (
        compare_engine(alone, torch_participant(digits_model, digits, 1, name), one, recipe)
        for name in ("fp16", "bf16")
    )
    assert half.verdict == "passed"
    assert brain.verdict == "not judged"
    assert brain.worst_step.forced.relative_l2 > half.worst_step.forced.relative_l2 > 1e-5


def test_the_batch_changes_no_figure(
    reference: Reference, inputs: Inputs, digits: Bundle, held_against_torch: Hold
) -> None:
    """Ten images in batches of four, the last one padded."""
    by_four = held_against_torch(bundle_participant("onnx", "onnx", digits, 4))
    assert by_four.verdict == "passed"
    assert [image.max_levels for image in by_four.images] == [
        image.max_levels for image in held_against_torch(digits).images
    ]


# --- planted faults: weights


@pytest.mark.parametrize(
    ("bias", "place"),
    [
        ("blocks.3.attention.to_v.bias", "block 4, attention"),
        ("blocks.3.mlp.net.2.bias", "block 4, MLP"),
    ],
)
def test_one_weight_of_the_fourth_block(
    held_against_torch: Hold, digits: Bundle, tmp_path: Path, bias: str, place: str
) -> None:
    found = held_against_torch(
        plant(digits, tmp_path / "planted", {"denoiser": scale_weight_beside(bias, 1.01)})
    )
    assert "every step alone" in failed(found)  # the images may well stay within a level
    assert not {"encoder alone", "conditioner alone", "decoder alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to ")
    assert f"{place} is the first to leave the reference" in cause


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 1.01), ("fp16", 1.01), ("fp16", 1.1)])
def test_a_weight_of_the_final_layer_is_not_taken_for_a_number_of_the_step(
    few: Hold, digits: Bundle, digits_fp16: Bundle, tmp_path: Path, precision: str, factor: float
) -> None:
    """The whole prediction is that much larger, which a larger b of DDIM would do as well."""
    bundle = {"fp32": digits, "fp16": digits_fp16}[precision]
    found = few(
        plant(
            bundle,
            tmp_path / "planted",
            {"denoiser": scale_weight_beside("final_projection.bias", factor)},
        )
    )
    assert "block by block" in failed(found)
    (cause,) = found.causes
    assert "final layer is the first to leave the reference" in cause


def test_a_weight_of_an_fp16_bundle_that_the_images_would_forgive(
    held_against_torch: Hold, digits_fp16: Bundle, tmp_path: Path
) -> None:
    """The rounding of float16 is larger than what one such weight does to a latent, and the images stay above 40 dB."""
    found = held_against_torch(
        plant(
            digits_fp16,
            tmp_path / "planted",
            {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1.05)},
        )
    )
    assert failed(found) == {"what steps change", "block by block"}
    (cause,) = found.causes
    assert cause.startswith("all steps: block 4, MLP is the first to leave the reference")


def test_a_small_fault_in_fp16_is_placed_where_the_error_jumps(
    held_against_torch: Hold, digits_fp16: Bundle, tmp_path: Path
) -> None:
    found = held_against_torch(
        plant(
            digits_fp16,
            tmp_path / "planted",
            {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1.02)},
        )
    )
    assert failed(found) == {"block by block"}
    (cause,) = found.causes
    assert "block 4, MLP" in cause


def test_a_block_is_named_in_a_random_model_too(
    export_to: Callable[..., Bundle], tmp_path: Path, inputs: Inputs
) -> None:
    pipeline = save_random_pipeline(tmp_path / "random", num_layers=5)
    bundle = export_to(pipeline)
    pictures = replace(
        inputs,
        labels=tuple(label % 7 for label in inputs.labels),
        images=tuple(image[::2, ::2] for image in inputs.images),
    )
    recipe = Recipe(steps=6, inherit_step=3, start_step=6, window=(5, 3))
    torch = torch_participant(load_model(str(pipeline)), bundle, 10, "fp32")
    reference = Reference(torch, record(torch, pictures, recipe), torch.probe())
    right = compare_engine(
        reference, bundle_participant("onnx", "onnx", bundle, 10), pictures, recipe
    )
    assert right.verdict == "passed"
    wrong = plant(
        bundle,
        tmp_path / "planted",
        {"denoiser": scale_weight_beside("blocks.3.attention.to_out.0.bias", 1.01)},
    )
    found = compare_engine(
        reference, bundle_participant("onnx", "onnx", wrong, 10), pictures, recipe
    )
    assert "every step alone" in failed(found)
    (cause,) = found.causes
    assert "block 4, attention is the first to leave the reference" in cause


def test_a_weight_that_overflows(few: Hold, digits: Bundle, tmp_path: Path) -> None:
    found = few(
        plant(
            digits,
            tmp_path / "planted",
            {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1e38)},
        )
    )
    assert failed(found) == {
        "every step alone",
        "what steps change",
        "block by block",
        "final images",
    }
    (cause,) = found.causes
    assert "values that are no numbers, first after block 4, MLP: it overflows" in cause


@pytest.mark.parametrize("network", ["encoder", "decoder", "conditioner"])
def test_a_network_that_overflows(few: Hold, digits: Bundle, tmp_path: Path, network: str) -> None:
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
    assert found.causes == (f"the {network} writes values that are no numbers: it overflows",)


@pytest.mark.parametrize(
    ("network", "weight", "where"),
    [
        ("encoder", "encoder.conv_in.weight", "the encoder"),
        ("conditioner", "label_tables.0.weight", "the conditioner"),
        ("denoiser", "blocks.3.mlp.net.2.bias", "step 6, after block 4, MLP"),
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
        f"onnx fp32 (planted): the reference itself is not finite, first in {where}; expected numbers"
        in str(caught.value)
    )


# --- planted faults: guidance


def test_guidance_that_reads_the_wrong_rows(
    held_against_torch: Hold, digits: Bundle, tmp_path: Path
) -> None:
    found = held_against_torch(
        plant(digits, tmp_path / "planted", {"denoiser": exchange_predictions})
    )
    assert "every step alone" in failed(found)
    assert found.causes == (
        "steps 50 to 1: guidance takes the class's row for the null class's and the other way round",
    )


def test_modulations_in_the_wrong_rows(
    held_against_torch: Hold, digits: Bundle, tmp_path: Path
) -> None:
    found = held_against_torch(
        plant(digits, tmp_path / "planted", {"denoiser": exchange_modulations})
    )
    assert "every step alone" in failed(found)
    (cause,) = found.causes
    assert (
        "block 1, attention holds the class's row where the null class's belongs and the other way round"
        in cause
    )


@pytest.mark.parametrize(
    ("shift", "steps", "window"), [(1, (41, 26), "41:26"), (-1, (40, 25), "39:24")]
)
def test_a_window_that_is_off_by_one(
    held_against_torch: Hold, digits: Bundle, shift: int, steps: tuple[int, int], window: str
) -> None:
    found = held_against_torch(mistaking(digits, shifted_window(shift), 10))
    assert "every step alone" in failed(found)
    assert {step.k for step in found.steps if step.forced.relative_l2 > 1e-5} == set(steps)
    assert found.worst_step.k in steps
    numbers = [
        f"as if gamma of semantic guidance were {text}"
        for text in ("0.1 instead of 0", "0 instead of 0.1")[::shift]
    ]
    assert found.causes == (
        *(f"step {k}: {text}" for k, text in zip(steps, numbers, strict=True)),
        f"semantic guidance acts in the window {window} instead of 40:25",
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("mistake", "causes"),
    [
        (
            gammas(40, 26, 0.0),
            (
                "steps 40 to 26: as if gamma of semantic guidance were 0 instead of 0.1",
                "semantic guidance acts nowhere instead of in the window 40:25",
            ),
        ),
        (
            shifted_window(5),
            (
                "steps 45 to 41: as if gamma of semantic guidance were 0.1 instead of 0",
                "steps 30 to 26: as if gamma of semantic guidance were 0 instead of 0.1",
                "semantic guidance acts in the window 45:30 instead of 40:25",
            ),
        ),
        (
            gammas(50, 1),
            (
                "steps 50 to 41, 25 to 1: as if gamma of semantic guidance were 0.1 instead of 0",
                "semantic guidance acts in the window 50:0 instead of 40:25",
            ),
        ),
        (
            gammas(40, 16),
            (
                "steps 25 to 16: as if gamma of semantic guidance were 0.1 instead of 0",
                "semantic guidance acts in the window 40:15 instead of 40:25",
            ),
        ),
        (
            gammas(40, 26, 0.2),
            ("steps 40 to 26: as if gamma of semantic guidance were 0.2 instead of 0.1",),
        ),
        (gammas(33, 33, 0.0), ("step 33: as if gamma of semantic guidance were 0 instead of 0.1",)),
    ],
    ids=["nowhere", "shifted by five", "everywhere", "too long", "twice as strong", "with a hole"],
)
def test_a_window_is_told_from_every_step_that_fails(
    few: Hold,
    digits: Bundle,
    digits_fp16: Bundle,
    precision: str,
    mistake: Mistake,
    causes: tuple[str, ...],
) -> None:
    found = few(mistaking({"fp32": digits, "fp16": digits_fp16}[precision], mistake, 2))
    assert "every step alone" in failed(found)
    assert found.causes == causes


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (
            guidance_scale(3.5),
            "as if the guidance scale were (3.5, 3.5, 3.5, 1) instead of (4, 4, 4, 1)",
        ),
        (
            guidance_scale(3.7),
            "as if the guidance scale were (3.7, 3.7, 3.7, 1) instead of (4, 4, 4, 1)",
        ),
        (longer_steps, "as if DDIM's b were "),
    ],
)
def test_a_number_that_only_what_steps_change_shows(
    few: Hold, digits_fp16: Bundle, mistake: Mistake, text: str
) -> None:
    found = few(mistaking(digits_fp16, mistake, 2))
    assert failed(found) == {"what steps change"}
    (cause,) = found.causes
    assert text in cause
    assert "rounding" not in cause


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (None, None),
        (guidance_scale(3.5), "guidance scale were (3.5, 3.5, 3.5, 1)"),
        (longer_steps, "DDIM's b were "),
    ],
)
def test_an_engine_that_rounds_otherwise_than_its_graph(
    few: Hold,
    digits_model: Model,
    digits: Bundle,
    digits_fp16: Bundle,
    mistake: Mistake | None,
    text: str | None,
) -> None:
    """As a GPU does. In the first steps, which hardly change anything, the rounding is larger than the fault, and is not told for one."""

    class Rounding(TorchSession):
        def open_denoiser(self, table: Any, steps: int) -> Any:
            return super().open_denoiser(
                table if mistake is None else mistaken(table, mistake, digits.layout), steps
            )

    half = torch_participant(digits_model, digits, 2, "fp16")
    found = few(
        replace(
            half,
            open=lambda: Rounding(digits_model, digits, 2, "fp16"),
            probe=lambda: GraphProbe(digits_fp16),
        )
    )
    assert (
        [text in cause for cause in found.causes] == [True] if text else found.verdict == "passed"
    )


def test_a_wrong_weight_does_not_hide_a_wrong_number(
    few: Hold, digits: Bundle, tmp_path: Path
) -> None:
    wrong = plant(
        digits,
        tmp_path / "planted",
        {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1.01)},
    )
    place, *numbers = few(mistaking(wrong, shifted_window(1), 2)).causes
    assert "block 4, MLP is the first to leave the reference" in place
    assert numbers == [
        "step 41: as if gamma of semantic guidance were 0.1 instead of 0",
        "step 26: as if gamma of semantic guidance were 0 instead of 0.1",
        "semantic guidance acts in the window 41:26 instead of 40:25",
    ]


def test_what_an_engine_makes_of_a_right_graph(few: Hold, digits: Bundle, tmp_path: Path) -> None:
    """Such as a compiler that gets block 4 wrong: the graph cannot show where."""
    wrong = plant(
        digits,
        tmp_path / "planted",
        {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", 1.01)},
    )
    found = few(
        replace(bundle_participant("onnx", "onnx", wrong, 2), probe=lambda: GraphProbe(digits))
    )
    assert {"every step alone", "what steps change"} <= failed(found)
    (cause,) = found.causes
    assert "no place in the graph leaves the reference" in cause
    assert "or in what the engine made of the graph" in cause


@pytest.mark.parametrize(
    ("precision", "check"), [("fp32", "every step alone"), ("fp16", "what steps change")]
)
def test_a_schedule_that_is_not_the_model_s(
    few: Hold, digits: Bundle, digits_fp16: Bundle, tmp_path: Path, precision: str, check: str
) -> None:
    wrong = plant({"fp32": digits, "fp16": digits_fp16}[precision], tmp_path / "planted", {})
    manifest = json.loads((wrong.path / "bundle.json").read_text())
    manifest["noise_schedule"]["beta_end"] = 0.018
    (wrong.path / "bundle.json").write_text(json.dumps(manifest))
    found = few(Bundle.open(wrong.path))
    assert check in failed(found)
    (cause,) = found.causes
    assert cause.startswith("steps 50 to 2: no place in the graph leaves the reference")
    assert "the fault lies behind the network, in guidance, DDIM or semantic guidance" in cause


# --- planted faults: the networks alone


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_scaling_factor(
    held_against_torch: Hold, digits: Bundle, digits_fp16: Bundle, tmp_path: Path, precision: str
) -> None:
    edits = {name: scale_initializer("scale", 1.3) for name in ("encoder", "decoder")}
    found = held_against_torch(
        plant({"fp32": digits, "fp16": digits_fp16}[precision], tmp_path / "planted", edits)
    )
    assert {"encoder alone", "decoder alone"} <= failed(found)
    assert "every step alone" not in failed(found)
    encoder, decoder = found.causes
    assert encoder.startswith("the encoder is a relative 3.0e-01 away from the reference")
    assert (
        "all latents are 1.3 times as large, so look at the scaling factor (bundle.json says 0.5)"
        in encoder
    )
    assert "it agrees for latents 1.3 times as large, so look at the scaling factor" in decoder


@pytest.mark.parametrize(
    ("weight", "factor", "precision"),
    [
        ("decoder.conv_out.weight", 1.1, "fp32"),
        ("decoder.conv_in.weight", 1.01, "fp32"),
        ("decoder.up_blocks.0.resnets.0.conv2.weight", 1.01, "fp32"),
        ("decoder.conv_out.weight", 1.1, "fp16"),
    ],
)
def test_another_decoder_is_not_taken_for_another_scaling_factor(
    held_against_torch: Hold,
    digits: Bundle,
    digits_fp16: Bundle,
    tmp_path: Path,
    weight: str,
    factor: float,
    precision: str,
) -> None:
    bundle = {"fp32": digits, "fp16": digits_fp16}[precision]
    found = held_against_torch(
        plant(bundle, tmp_path / "planted", {"decoder": scale_initializer(weight, factor)})
    )
    assert "decoder alone" in failed(found) <= {"decoder alone", "final images"}
    apart = found.networks["decoder"].relative_l2
    assert found.causes == (
        f"the decoder is a relative {apart:.1e} away from the reference on the same input",
    )


def test_a_conditioner_with_other_weights(
    held_against_torch: Hold, digits: Bundle, tmp_path: Path
) -> None:
    found = held_against_torch(
        plant(
            digits,
            tmp_path / "planted",
            {"conditioner": scale_initializer("label_tables.0.weight", 1.05)},
        )
    )
    assert {"conditioner alone", "final images"} <= failed(found)
    assert not {"encoder alone", "decoder alone", "every step alone"} & failed(found)
    (cause,) = found.causes
    assert cause.startswith("the conditioner is a relative")


def test_rounding_alone_is_not_taken_for_a_fault(
    held_against_torch: Hold, digits_fp16: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], step=Limit(1e-4, "")))
    found = held_against_torch(digits_fp16)
    assert failed(found) == {"every step alone"}
    (cause,) = found.causes
    assert (
        "every block holds; guidance and the size of the step multiply the rounding of the prediction"
        in cause
    )


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
    return replayed(digits, tmp_path / "plan", api, 5), api


def test_a_replayed_graph_is_compared_step_by_step_too(
    held_against_torch: Hold, replaying: tuple[Participant, StandInCuda]
) -> None:
    participant, api = replaying
    found = held_against_torch(participant)
    assert found.verdict == "passed"
    assert api.launches == 2
    assert max(step.free.relative_l2 for step in found.steps) < 1e-4
    assert len({step.free.relative_l2 for step in found.steps}) > 40
    assert api.device == api.host == {}


def test_a_replayed_graph_that_overflows(few: Hold, digits: Bundle, tmp_path: Path) -> None:
    """Both the whole run and its steps end in values that are no numbers, so the graph that was captured is not at fault."""
    wrong = plant(
        digits,
        tmp_path / "planted",
        {"denoiser": scale_weight_beside("blocks.3.mlp.net.2.bias", float("nan"))},
    )
    found = few(replayed(wrong, tmp_path / "plan", StandInCuda(), 2))
    assert found.causes == (
        "steps 50 to 1: values that are no numbers, first after block 4, MLP: it overflows",
    )


def test_a_graph_that_misses_a_step(
    held_against_torch: Hold,
    replaying: tuple[Participant, StandInCuda],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    participant, api = replaying
    instantiate = api.cudaGraphInstantiate
    monkeypatch.setattr(
        api,
        "cudaGraphInstantiate",
        lambda graph, flags: instantiate(graph[: -len(graph) // 50], flags),
    )
    found = held_against_torch(participant)
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
