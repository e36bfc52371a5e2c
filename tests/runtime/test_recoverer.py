"""The recoverer: results that do not depend on batches, a loop that allocates nothing, and inputs that do not fit."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import DatasetError, EngineError, RecipeError
from diver_trt.method.noise import sample_noise
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.runtime.recoverer import RecoveredSample, Recoverer

Images = NDArray[np.uint8]
QUICK = PRESETS["matched"].with_settings(steps=10, inherit_step=5, start_step=5, window=(5, 2))


def recover(
    bundle: Bundle,
    images: Images,
    labels: list[int],
    *,
    batch: int = 8,
    recipe: Recipe = QUICK,
    **options: Any,
) -> list[RecoveredSample]:
    with Recoverer(bundle, recipe, batch=batch) as recoverer:
        return list(recoverer(images, labels, **options))


LABELS = [3, 1, 3, 9, 0, 3]


def test_samples_come_in_order_with_their_class_and_number(digits: Bundle, images: Images) -> None:
    samples = recover(digits, images, LABELS)
    assert [sample.key for sample in samples] == [
        "00003/00000",
        "00001/00000",
        "00003/00001",
        "00009/00000",
        "00000/00000",
        "00003/00002",
    ]
    assert [sample.label for sample in samples] == LABELS
    assert {(sample.image.dtype.name, sample.image.shape) for sample in samples} == {
        ("uint8", (32, 32, 3))
    }


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_the_batch_changes_nothing(digits: Bundle, images: Images, batch: int) -> None:
    expected = recover(digits, images, LABELS, batch=8, recipe=Recipe())
    for ours, theirs in zip(
        recover(digits, images, LABELS, batch=batch, recipe=Recipe()), expected, strict=True
    ):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_order_and_neighbours_change_nothing(digits: Bundle, images: Images) -> None:
    keys = [str(i) for i in range(6)]
    expected = {sample.key: sample.image for sample in recover(digits, images, LABELS, keys=keys)}
    shuffled = [4, 2, 5]
    found = recover(
        digits,
        images[shuffled],
        [LABELS[i] for i in shuffled],
        batch=2,
        keys=[keys[i] for i in shuffled],
    )
    for sample in found:
        np.testing.assert_array_equal(sample.image, expected[sample.key])


def test_the_seed_changes_the_image(digits: Bundle, images: Images) -> None:
    first, again, other = (
        recover(digits, images[:1], [3], seed=seed)[0].image for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_may_be_given(digits: Bundle, images: Images) -> None:
    noise = np.stack(
        [sample_noise(5, f"{label:05d}/00000", digits.latent_shape) for label in (1, 2)]
    )
    given, seeded = (
        recover(digits, images[:2], [1, 2], noise=noise),
        recover(digits, images[:2], [1, 2], seed=5),
    )
    for ours, theirs in zip(given, seeded, strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)


def test_images_are_taken_one_batch_at_a_time(digits: Bundle, images: Images) -> None:
    taken = 0

    def stream() -> Any:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    with Recoverer(digits, QUICK, batch=2) as recoverer:
        next(recoverer(stream(), LABELS))
    assert taken == 2


def test_every_step_is_reported(digits: Bundle, images: Images) -> None:
    steps: list[None] = []
    with Recoverer(digits, QUICK, batch=4) as recoverer:
        list(recoverer(images, LABELS, on_step=lambda: steps.append(None)))
        assert len(steps) == 2 * recoverer.steps_per_batch == 10


def test_the_denoise_loop_allocates_nothing_per_step(digits: Bundle, images: Images) -> None:
    """Python's and numpy's memory, as tracemalloc sees it: no array the size of a latent, and nothing that stays.

    What is left are the views that a step makes and drops, some 5 kB whatever the batch.
    """
    with Recoverer(digits, Recipe(), batch=16) as recoverer:
        anchor = recoverer.encode([images[i % 6] for i in range(16)])
        steps = recoverer.denoise(anchor, anchor, [i % 10 for i in range(16)])
        for _ in range(3):
            next(steps)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(40):
                next(steps)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        addresses = {recoverer.latent.ctypes.data for _ in steps}
    assert anchor.nbytes == 16 * 4 * 8 * 8 * 4
    assert peak - before < anchor.nbytes
    assert after - before < anchor.nbytes
    assert len(addresses) == 2


def test_only_the_modulations_of_the_current_classes_are_kept(
    digits: Bundle, images: Images
) -> None:
    with Recoverer(digits, QUICK, batch=2) as recoverer:
        list(recoverer(images, LABELS))
        assert recoverer._modulations.keys() == {0, 3, digits.null_label}


def test_other_sizes_are_resized_and_cropped_to_the_middle(digits: Bundle) -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 24:104] = 200  # the middle square and what the bicubic filter sees beside it
    middle = np.full((32, 32, 3), 200, np.uint8)
    (cropped,), (plain,) = recover(digits, wide[None], [1]), recover(digits, middle[None], [1])
    np.testing.assert_array_equal(cropped.image, plain.image)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.uint8), [1], {}, "more than 1 images but only 1 labels"),
        (np.zeros((1, 32, 32, 3), np.uint8), [1, 2], {}, "1 images but more labels"),
        (np.zeros((1, 32, 32, 3), np.uint8), [10], {}, "label 10; the model has classes 0 to 9"),
        (np.zeros((1, 32, 32, 3), np.uint8), [-1], {}, "label -1"),
        (
            np.zeros((1, 32, 32, 3), np.float32),
            [1],
            {},
            r"got float32\[32, 32, 3\], expected uint8\[H, W, 3\]",
        ),
        (
            np.zeros((1, 3, 32, 32), np.uint8),
            [1],
            {},
            r"got uint8\[3, 32, 32\], expected uint8\[H, W, 3\]",
        ),
        (
            np.zeros((1, 32, 32, 3), np.uint8),
            [1],
            {"noise": [np.zeros((4, 8, 8))]},
            r"noise of image 0: got float64",
        ),
        (np.zeros((1, 32, 32, 3), np.uint8), [1], {"keys": []}, "only 0 keys"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    digits: Bundle, images: Any, labels: list[int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        recover(digits, images, labels, **options)


def test_settings_that_do_not_fit_the_model_are_refused(digits: Bundle) -> None:
    with pytest.raises(RecipeError, match="cfg_channels is 5"):
        Recoverer(digits, Recipe(cfg_channels=5))
    with pytest.raises(EngineError, match="batch is 0; expected 1 or more"):
        Recoverer(digits, batch=0)


def test_values_that_are_no_numbers_never_become_an_image(digits: Bundle) -> None:
    with (
        Recoverer(digits, QUICK, batch=1) as recoverer,
        pytest.raises(EngineError, match="values that are no numbers"),
    ):
        recoverer.decode(np.full((1, 4, 8, 8), np.nan, np.float32))
