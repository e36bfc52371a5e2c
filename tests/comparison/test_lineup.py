from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import distilled_inputs, random_pixels
from diver_trt.comparison.lineup import Lineup, line_up
from diver_trt.comparison.runs import steps_in
from diver_trt.comparison.verdict import compare_lineup
from diver_trt.digits import default_images
from diver_trt.errors import BundleError, DatasetError, EngineError, UsageError
from diver_trt.models.dit import Dit, load_model
from diver_trt.recipe import Recipe
from diver_trt.runtime.engine import Opened, Placement
from diver_trt.runtime.session import open_session
from tests.cli.command import fails
from tests.comparison.command import compare, refused
from tests.comparison.faults import plant
from tests.conftest import DIGITS_MODEL, DISTILLED


def names(lineup: Lineup) -> tuple[str, list[str], list[str]]:
    return (
        lineup.reference.name,
        [one.name for one in lineup.others],
        [one.name for one in lineup.absent],
    )


def test_torch_is_the_reference_wherever_a_model_is_given(
    digits: Bundle, digits_fp16: Bundle, digits_model: Dit
) -> None:
    found = names(
        line_up([digits_fp16, digits], digits_model, ["onnx", "torch-bf16", "torch-fp32"], 4)
    )
    assert found == ("torch fp32", ["onnx fp16", "onnx fp32", "torch bf16"], [])


def test_without_a_model_an_fp32_bundle_is_the_reference(
    digits: Bundle, digits_fp16: Bundle
) -> None:
    assert names(line_up([digits_fp16, digits], None, ["onnx"], 4)) == (
        "onnx fp32",
        ["onnx fp16"],
        [],
    )


def test_bundles_of_one_precision_have_different_names(
    digits: Bundle, edited: Callable[..., Path]
) -> None:
    other = Bundle.open(edited(lambda manifest: None))
    assert names(line_up([digits, other], None, ["onnx"], 4)) == (
        "onnx fp32 (digits)",
        ["onnx fp32 (edited)"],
        [],
    )


def test_bundles_of_one_folder_name_are_named_by_their_paths(
    digits: Bundle, tmp_path: Path
) -> None:
    other = plant(digits, tmp_path / "digits", {})
    assert names(line_up([digits, other], None, ["onnx", "onnx"], 4))[1] == [
        f"onnx fp32 ({tmp_path / 'digits'})"
    ]
    with pytest.raises(UsageError, match="is given twice; give each bundle once"):
        line_up([digits, other, digits], None, ["onnx"], 4)


def test_the_progress_counts_the_batches_that_engines_have(
    digits: Bundle, digits_model: Dit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TensorRT engine keeps the batch that it was built for, and here ONNX Runtime does too."""

    def of_three(name: str, bundle: Bundle, placement: Placement) -> Opened:
        return open_session(name, bundle, replace(placement, batch=3))

    monkeypatch.setattr("diver_trt.comparison.lineup.open_session", of_three)
    found = line_up([digits], digits_model, ["onnx"], 4)
    recipe = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))
    inputs = distilled_inputs(digits, 10)
    done: list[None] = []
    compare_lineup(found, inputs, recipe, lambda: done.append(None))
    # Ten images are three batches of torch, and twice four of three images.
    assert len(done) == 2 * (3 + 2 * 4)
    assert steps_in(found.reference, found.others, inputs, recipe) == len(done)


def test_engines_that_cannot_take_part_are_listed_with_reasons(
    digits: Bundle, digits_model: Dit
) -> None:
    lineup = line_up([digits], digits_model, ["onnx", "onnx-cuda", "rtx"], 4)
    absent = {one.name: one for one in lineup.absent}
    assert [one.name for one in lineup.others] == ["onnx fp32"]
    assert set(absent) == {"onnx-cuda fp32", "rtx fp32"}
    assert all(one.asked for one in lineup.absent)
    assert "CUDAExecutionProvider" in absent["onnx-cuda fp32"].reason


def test_an_absent_engine_that_was_not_requested_is_not_a_failure(
    digits: Bundle, digits_model: Dit
) -> None:
    lineup = line_up([digits], digits_model, [], 4)
    assert {"rtx fp32", "trt fp32"} <= {one.name for one in lineup.absent}
    assert not any(one.asked for one in lineup.absent)


def test_torch_without_a_model_is_absent(digits: Bundle, digits_fp16: Bundle) -> None:
    (absent,) = line_up([digits, digits_fp16], None, ["onnx", "torch-fp16"], 4).absent
    assert (absent.name, absent.asked) == ("torch fp16", True)
    assert "no model is given" in absent.reason


def test_one_engine_alone_is_nothing_to_compare(digits: Bundle) -> None:
    with pytest.raises(
        EngineError, match="expected two engines that work here, or one and --model"
    ):
        line_up([digits], None, ["onnx"], 4)
    with pytest.raises(EngineError, match="onnx-cuda fp32: ONNX Runtime"):
        line_up([digits], None, ["onnx-cuda"], 4)


def test_an_unknown_engine_is_refused(digits: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown engine 'tpu'; expected torch-fp32, torch-fp16"):
        line_up([digits], None, ["tpu"], 4)


def test_bundles_and_models_that_do_not_belong_together_are_refused(
    digits: Bundle, random_bundle: Bundle, random_pipeline: Path
) -> None:
    with pytest.raises(
        BundleError, match=r"image_size is 16, that of .* is 32. Compare bundles of one model"
    ):
        line_up([digits, random_bundle], None, [], 4)
    with pytest.raises(
        BundleError,
        match=r"10 classes and a learned variance; random-pipeline has latents .* "
        "Give the model that the bundle was exported",
    ):
        line_up([digits], load_model(str(random_pipeline)), [], 4)


def test_other_weights_are_another_model(digits: Bundle) -> None:
    other = load_model(str(DIGITS_MODEL))
    other.vae.decoder.conv_out.bias[0] += 1
    with pytest.raises(
        BundleError,
        match=r"was exported from weights with SHA-256 [0-9a-f]{12}…, those of dit-digits have "
        r"[0-9a-f]{12}…\. Give",
    ):
        line_up([digits], other, [], 4)
    with pytest.raises(
        BundleError, match=r"weights_sha256 is 0000.*. Compare bundles of one model"
    ):
        line_up(
            [
                digits,
                replace(
                    digits,
                    path=digits.path / "other",
                    model=replace(digits.model, weights_sha256="0" * 64),
                ),
            ],
            None,
            [],
            4,
        )


# --- inputs


def test_the_distilled_digits_come_along(digits: Bundle) -> None:
    inputs = distilled_inputs(digits, 10)
    assert inputs.labels == tuple(range(10))
    assert inputs.noise.shape == (10, *digits.latent_shape)
    assert len({image.tobytes() for image in inputs.images}) == 10
    assert default_images().is_dir()


def test_a_folder_gives_one_image_of_each_class_first(digits: Bundle) -> None:
    inputs = distilled_inputs(digits, 13, folder=DISTILLED)
    assert inputs.labels == (*range(10), 0, 1, 2)
    assert inputs.keys[0] == "00000/00000"
    assert inputs.keys[10] == "00000/00001"
    assert inputs.origin == "13 distilled images of ipc10"


def test_the_current_folder_is_called_by_its_name(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DISTILLED)
    assert distilled_inputs(digits, 1, folder=Path()).origin == "1 distilled image of ipc10"


def test_the_digits_serve_other_models_as_pictures(random_bundle: Bundle) -> None:
    inputs = distilled_inputs(random_bundle, 10)
    assert max(inputs.labels) < random_bundle.num_classes
    assert {image.shape for image in inputs.images} == {
        (random_bundle.image_size, random_bundle.image_size, 3)
    }


def test_random_pixels_follow_from_the_seed(digits: Bundle) -> None:
    one, same, other = (random_pixels(digits, 3, seed=seed) for seed in (1, 1, 2))
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in same.images]
    assert one.images[0].tobytes() != other.images[0].tobytes()
    assert one.labels == same.labels
    assert len(random_pixels(digits, 1, seed=-1)) == 1


def save(path: Path, values: Any) -> Path:
    """Save ten images as a file of tensors that states nothing about its values."""
    images = np.broadcast_to(np.float32(values), (10, 3, 32, 32))
    np.savez(path, images=images, labels=np.arange(10))
    return path


def test_a_set_that_needs_an_option_of_others_is_refused_with_a_remedy(
    digits: Bundle, tmp_path: Path
) -> None:
    path = save(tmp_path / "a set.npz", np.linspace(-9, 9, 32))
    message = fails(compare(digits.path, "--images", path))
    assert "Set --normalisation, such as cifar10" in message
    assert f"compare has no such option: give it to `diver-trt convert '{path}' NEW.npz`" in message


def test_notes_about_the_set_are_printed(digits: Bundle, tmp_path: Path) -> None:
    path = save(tmp_path / "set.npz", np.linspace(-1, 1, 32))
    (note,) = distilled_inputs(digits, 3, folder=path).notes
    result = compare(digits.path, "--images", path, "--engine", "onnx")
    assert f"diver-trt: note: {note}\n" in refused(result)  # for lack of a second engine


def test_a_folder_that_cannot_be_read_is_refused(digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        distilled_inputs(digits, 3, folder=tmp_path / "missing")
