from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from diver_trt.comparison.metrics import difference, fp16_spacing, image_difference, worst_channel
from diver_trt.errors import MissingExtraError


def test_a_known_difference() -> None:
    apart = difference(np.array([3.0, 4.0, 0.0]), np.array([3.0, 0.0, 4.0]))
    assert apart.max_abs == 4
    assert apart.mean_abs == pytest.approx(8 / 3)
    assert apart.relative_l2 == pytest.approx(math.sqrt(32) / 5)
    assert apart.cosine == pytest.approx(9 / 25)
    assert apart.within_fp16 == pytest.approx(1 / 3)
    assert apart.finite


def test_equal_arrays_are_not_apart() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    apart = difference(values, values)
    assert (apart.max_abs, apart.mean_abs, apart.relative_l2, apart.within_fp16) == (0, 0, 0, 1)
    assert apart.cosine == pytest.approx(1, abs=1e-12)


def test_float16_is_compared_in_float64() -> None:
    """60000 squared overflows float16 and loses digits in float32."""
    found, expected = np.full(3, 60000, np.float16), np.full(3, 60032, np.float16)
    assert difference(found, expected).relative_l2 == pytest.approx(32 / 60032, rel=1e-12)


def test_nan_and_infinity_are_infinitely_far() -> None:
    for bad in (np.nan, np.inf):
        apart = difference(np.array([1.0, bad]), np.array([1.0, 1.0]))
        assert not apart.finite
        assert apart.relative_l2 == apart.max_abs == math.inf


def test_nothing_but_zeros_is_only_equal_to_itself() -> None:
    assert difference(np.zeros(2), np.zeros(2)).relative_l2 == 0
    assert difference(np.ones(2), np.zeros(2)).relative_l2 == math.inf


def test_the_float16_spacing_is_the_next_number_s_distance() -> None:
    values = np.array([0.0, 1.0, -1.0, 1000.0, 65504.0, 1e6])
    np.testing.assert_array_equal(
        fp16_spacing(values), [2.0**-24, 2.0**-10, 2.0**-10, 0.5, 32.0, 0.0]
    )


def test_a_value_one_float16_spacing_away_counts_as_within() -> None:
    expected = np.array([1.0, 1.0, 1.0])
    assert difference(
        expected + np.array([0, 2.0**-10, 2.1 * 2.0**-10]), expected
    ).within_fp16 == pytest.approx(2 / 3)


def test_the_worst_channel_is_found() -> None:
    expected = np.zeros((2, 4, 3, 3), np.float32)
    found = expected.copy()
    found[1, 2, 0, 0], found[0, 1, 1, 1] = 0.5, -0.4
    assert worst_channel(found, expected) == 2
    for bad in (np.nan, np.inf, -np.inf):
        found[0, 3, 0, 0] = bad
        assert worst_channel(found, expected) == 3


def test_the_psnr_of_one_level_everywhere() -> None:
    expected = np.full((16, 16, 3), 100, np.uint8)
    apart = image_difference(expected + np.uint8(1), expected)
    assert apart.psnr_db == pytest.approx(20 * math.log10(255))
    assert apart.max_levels == 1
    assert apart.ssim < 1


def test_equal_images_have_no_finite_psnr() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    apart = image_difference(image, image)
    assert (apart.psnr_db, apart.max_levels) == (math.inf, 0)
    assert apart.ssim == pytest.approx(1)


def test_levels_are_not_counted_modulo_256() -> None:
    assert (
        image_difference(
            np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
        ).max_levels
        == 255
    )


def test_a_missing_package_is_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diver-trt\[compare\]'"):
        image_difference(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8))
