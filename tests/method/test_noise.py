"""Noise belongs to the image."""

from __future__ import annotations

import numpy as np

from diver_trt.method.noise import sample_noise


def test_noise_follows_from_seed_and_key_alone() -> None:
    first = sample_noise(0, "00003/00007", (4, 8, 8))
    sample_noise(0, "00003/00008", (4, 8, 8))
    np.testing.assert_array_equal(first, sample_noise(0, "00003/00007", (4, 8, 8)))


def test_other_keys_and_other_seeds_draw_other_noise() -> None:
    first = sample_noise(0, "a", (4, 8, 8))
    for other in (sample_noise(1, "a", (4, 8, 8)), sample_noise(0, "b", (4, 8, 8))):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.3


def test_seed_and_key_cannot_be_mistaken_for_each_other() -> None:
    assert not np.array_equal(sample_noise(1, "2/a", (64,)), sample_noise(12, "/a", (64,)))


def test_noise_is_standard_normal() -> None:
    noise = sample_noise(0, "large", (100_000,))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_noise_is_the_same_with_every_numpy() -> None:
    """Golden values of numpy 2.4.6.

    numpy may change its normal generator, and then recovered bytes would change unnoticed.
    """
    golden = [2.5279223918914795, 0.28513315320014954, -1.444273591041565, -0.2812030613422394]
    np.testing.assert_array_equal(
        sample_noise(0, "00003/00007", (4,)), np.array(golden, dtype=np.float32)
    )
