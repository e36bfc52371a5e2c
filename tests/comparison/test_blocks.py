from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import (
    PREDICTION,
    GraphProbe,
    Stages,
    compare_stages,
    first_beyond,
    steepest,
)
from diver_trt.comparison.tolerances import TOLERANCES
from diver_trt.comparison.torch_engine import TorchSession
from diver_trt.errors import BundleError, MissingExtraError
from diver_trt.models.dit import Dit, stage_names
from diver_trt.runtime.backends.onnx import OnnxSession
from tests.comparison.faults import plant


def values(bundle: Bundle) -> tuple[Any, Any]:
    generator = np.random.default_rng(2)
    latent = generator.standard_normal((2, *bundle.latent_shape)).astype(np.float32)
    # Near 1, as the scales of a condition are: near 0 the stream would hardly change.
    condition = 1 + 0.1 * generator.standard_normal((2, 2, bundle.condition_width))
    return latent, condition.astype(np.float32)


def stages_of(*errors: float, rows: int = 4) -> Stages:
    generator = np.random.default_rng(0)
    stream = {}
    for name, error in zip(stage_names(1), errors, strict=False):
        expected = np.random.default_rng(1).standard_normal((rows, 3, 2)).astype(np.float32)
        stream[name] = (expected + error * generator.standard_normal(expected.shape)).astype(
            np.float32
        )
    return Stages(stream, np.ones((2, 1, 8, 2, 2), np.float32))


def test_places_are_named_in_order() -> None:
    assert stage_names(2) == [
        "patch embedding",
        "block 1, attention",
        "block 1, MLP",
        "block 2, attention",
        "block 2, MLP",
    ]


def test_the_graph_and_torch_pass_through_the_same_places(
    digits: Bundle, digits_model: Dit
) -> None:
    found = GraphProbe(digits).stages(*values(digits))
    expected = TorchSession(digits_model, digits, 2, "fp32").stages(*values(digits))
    compared = compare_stages(found, expected, 1e-5)
    assert [stage.place for stage in compared] == [*stage_names(6), PREDICTION]
    assert first_beyond(compared, 1e-5) is None
    assert found.prediction.shape == (2, 2, 8, 8, 8)
    assert len({stage.difference.max_abs for stage in compared}) > 3  # they are different arrays


def test_the_fp16_graph_has_the_same_places(digits_fp16: Bundle, digits_model: Dit) -> None:
    """Within the limit of fp16, which is several times the rounding of any CPU."""
    tolerance = TOLERANCES["fp16"].place.value
    compared = compare_stages(
        GraphProbe(digits_fp16).stages(*values(digits_fp16)),
        TorchSession(digits_model, digits_fp16, 2, "fp32").stages(*values(digits_fp16)),
        tolerance,
    )
    assert [stage.place for stage in compared] == [*stage_names(6), PREDICTION]
    assert first_beyond(compared, tolerance) is None
    assert first_beyond(compared, 1e-6) is compared[0]


def test_looking_into_the_graph_changes_nothing(digits: Bundle) -> None:
    """The probe's last place is the unchanged engine's prediction.

    With a guidance scale and a of 0 and a b of 1, the engine returns e_u.
    """
    latent, pair = values(digits)
    engine = OnnxSession(digits, 2).open_denoiser(
        row := np.zeros((1, digits.layout.width), np.float32), 1
    )
    row[0, digits.layout.b] = 1
    engine.load(latent, latent, latent, [pair[0, :1], pair[0, 1:]], pair[1, :1])
    null_only = np.stack([pair[0], np.repeat(pair[1, :1], 2, axis=0)])
    seen = GraphProbe(digits).stages(latent, null_only).prediction[1, :, :4]
    np.testing.assert_allclose(engine.step(1, latent), seen, atol=1e-6)
    engine.close()


def test_the_first_place_beyond_the_tolerance() -> None:
    compared = compare_stages(stages_of(0.0, 1e-3, 1e-2), stages_of(0.0, 0.0, 0.0), 1e-5)
    first = first_beyond(compared, 1e-5)
    assert first is not None
    assert (first.place, first.swapped) == ("block 1, attention", False)


def test_the_jump_of_an_error_is_where_it_comes_in() -> None:
    compared = compare_stages(stages_of(1e-4, 2e-3, 4e-3), stages_of(0.0, 0.0, 0.0), 3e-3)
    assert steepest(compared[:3], 3.0) is compared[1]
    assert steepest(compared[:3], 30.0) is None
    assert steepest(compared[:1], 3.0) is None


def test_exchanged_rows_are_seen() -> None:
    expected = stages_of(0.0, 0.0, 0.0)
    stream = dict(expected.stream)
    stream["block 1, attention"] = np.roll(stream["block 1, attention"], 2, axis=0)
    first = first_beyond(compare_stages(Stages(stream, expected.prediction), expected, 1e-5), 1e-5)
    assert first is not None
    assert (first.place, first.swapped) == ("block 1, attention", True)


def test_other_models_are_not_compared() -> None:
    with pytest.raises(BundleError, match="Compare bundles of one model"):
        compare_stages(stages_of(0.0, 0.0, 0.0), stages_of(0.0), 1e-5)


def test_a_graph_without_guidance_or_norms_is_refused(digits: Bundle, tmp_path: Path) -> None:
    def without_norms(graph: Any) -> None:
        for node in graph.node:
            if node.op_type == "LayerNormalization":
                node.CopyFrom(onnx.helper.make_node("Identity", [node.input[0]], list(node.output)))

    with pytest.raises(
        BundleError,
        match=r"has 0 layer normalisations, but bundle\.json names 13 places, expected one",
    ):
        GraphProbe(plant(digits, tmp_path / "planted", {"denoiser": without_norms}))


def test_a_changed_file_is_refused(digits: Bundle, tmp_path: Path) -> None:
    copy = plant(digits, tmp_path / "copy", {})
    data = bytearray((copy.path / "denoiser.onnx").read_bytes())
    data[-1000] ^= 255
    (copy.path / "denoiser.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="the file has changed since the export"):
        GraphProbe(copy)


def test_a_missing_package_is_its_install_line(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diver-trt\[compare\]'"):
        GraphProbe(digits)
