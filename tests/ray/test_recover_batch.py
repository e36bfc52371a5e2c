"""A step of a pipeline returns what a `Recoverer` does; Ray is not needed for this."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import BundleError, DatasetError, EngineError, UsageError
from diver_trt.ray import RecoverBatch
from diver_trt.recipe import Recipe
from diver_trt.runtime.recoverer import Recoverer
from tests.ray.test_pool import RECIPE

KEYS = [f"00003/{number:05d}" for number in range(5)]


@pytest.fixture
def batch(digits: Bundle) -> dict[str, NDArray[Any]]:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    return {
        "image": images,
        "label": np.full(5, 3),
        "key": np.array(KEYS, object),
        "weight": np.arange(5.0),
    }


@pytest.fixture(scope="module")
def step() -> RecoverBatch:
    return RecoverBatch(recipe=RECIPE, seed=7, engine="onnx", batch=2)


def test_a_batch_has_the_images_of_a_recoverer(
    step: RecoverBatch, batch: dict[str, NDArray[Any]], digits: Bundle
) -> None:
    with Recoverer(digits, RECIPE, engine="onnx", batch=5) as recoverer:
        expected = [
            sample.image for sample in recoverer(batch["image"], [3] * 5, keys=KEYS, seed=7)
        ]
    found = step(batch)
    np.testing.assert_array_equal(found["image"], expected)
    assert found["image"].dtype == np.uint8
    assert list(found) == ["image", "label", "key", "weight"]
    for name in ("label", "key", "weight"):
        np.testing.assert_array_equal(found[name], batch[name])


def test_the_division_into_batches_changes_nothing(
    step: RecoverBatch, batch: dict[str, NDArray[Any]]
) -> None:
    whole = step(batch)["image"]
    last = step({name: values[3:] for name, values in batch.items()})["image"]
    np.testing.assert_array_equal(last, whole[3:])


def test_images_of_several_sizes_are_taken(
    step: RecoverBatch, batch: dict[str, NDArray[Any]]
) -> None:
    ragged = np.empty(5, object)
    for number in range(5):
        ragged[number] = np.zeros((32 + number, 40, 3), np.uint8)
    assert step({**batch, "image": ragged})["image"].shape == (5, 32, 32, 3)


def test_an_empty_batch_stays_empty(step: RecoverBatch, batch: dict[str, NDArray[Any]]) -> None:
    found = step({name: values[:0] for name, values in batch.items()})
    assert found["image"].shape == (0, 32, 32, 3)


def test_a_missing_column_is_named(step: RecoverBatch, batch: dict[str, NDArray[Any]]) -> None:
    del batch["key"]
    with pytest.raises(DatasetError, match=r"\['image', 'label', 'weight'\]; expected also key"):
        step(batch)


def test_a_value_that_does_not_fit_is_refused(
    step: RecoverBatch, batch: dict[str, NDArray[Any]]
) -> None:
    with pytest.raises(DatasetError, match="has label 10"):
        step({**batch, "label": np.full(5, 10)})
    with pytest.raises(DatasetError, match="another image's too"):
        step({**batch, "key": np.array(["a"] * 5, object)})
    assert list(step({**batch, "problem": np.arange(5)})["problem"]) == [0, 1, 2, 3, 4]
    keeping = RecoverBatch(recipe=RECIPE, engine="onnx", keep_bad=True)
    with pytest.raises(DatasetError, match="has a column problem, which keep_bad adds"):
        keeping({**batch, "problem": np.arange(5)})


def test_an_unusable_image_ends_the_pipeline_or_is_described(
    batch: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Recoverer._decoded

    def damaged(self: Recoverer, latents: Any) -> Any:
        for image, _ in decoded(self, latents):
            yield image, "all pixels are NaN"

    strict = RecoverBatch(recipe=RECIPE, engine="onnx")
    keeping = RecoverBatch(recipe=RECIPE, engine="onnx", keep_bad=True)
    assert list(keeping(batch)["problem"]) == [""] * 5
    monkeypatch.setattr(Recoverer, "_decoded", damaged)
    assert list(keeping(batch)["problem"]) == ["all pixels are NaN"] * 5
    with pytest.raises(EngineError, match="00003/00000: all pixels are NaN"):
        strict(batch)


def test_wrong_arguments_are_refused(tmp_path: Any) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        RecoverBatch(tmp_path)
    with pytest.raises(UsageError, match="seed"):
        RecoverBatch(seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown engine"):
        RecoverBatch(recipe=Recipe(), engine="nope")
