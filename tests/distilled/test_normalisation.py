"""Statistics by name, from pixels and back, and the doubts about wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

from diver_trt.distilled.normalisation import (
    find_normalisation,
    normalisation_names,
    pixels_from_values,
)
from diver_trt.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", normalisation_names())
def test_pixels_survive_being_normalised_and_back(name: str) -> None:
    statistics = find_normalisation(name)
    found, clipped = pixels_from_values(statistics.denormalise(statistics.normalise(PIXELS)))
    np.testing.assert_array_equal(found, PIXELS)
    assert clipped == 0


def test_a_known_value_of_imagenet() -> None:
    white = find_normalisation("imagenet").normalise(np.full((1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(white.ravel(), [2.2489, 2.4286, 2.64], atol=1e-4)


def test_glads_decoder_has_another_mean_than_imagenet() -> None:
    """Undoing the wrong one shifts red by +12, green by +3 and blue by -17 levels of 255."""
    values = find_normalisation("glad").normalise(np.full((1, 1, 3), 128, np.uint8))
    wrong = find_normalisation("imagenet").denormalise(values) * 255
    np.testing.assert_allclose(wrong.ravel() - 128, [12, 3, -17], atol=0.5)


def test_statistics_may_be_written_out() -> None:
    found = find_normalisation("0.5:0.25")
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert find_normalisation("0.1,0.2,0.3:1").mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "text",
    [
        "imagnet",
        "0.5",
        "0.5:0",
        "0.5:-1",
        "a:b",
        "0.5,0.5:1",
        "nan:1",
        "1:2:3",
        "1e308:1",
        "1:1e308",
        "",
        "0.5\n:0.5",
        "\x1b" * 300,
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(
        DatasetError, match=r"expected none, minus1to1, 0to255, imagenet, .*, glad, .* or MEAN:STD"
    ):
        find_normalisation(text)


def test_values_outside_are_clipped_and_counted() -> None:
    values = np.array([[[-0.1, 0.0, 1.0], [1.2, 0.5, 1.001]]], np.float32)
    pixels, clipped = pixels_from_values(values)
    np.testing.assert_array_equal(pixels, [[[0, 0, 255], [255, 128, 255]]])
    assert clipped == pytest.approx(2 / 6)
