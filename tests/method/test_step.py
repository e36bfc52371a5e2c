"""One DIVER step on numpy arrays: the very lines the exporter traces into the denoiser graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.method.ddpm import Ddpm
from diver_trt.method.guidance import GUIDES
from diver_trt.method.schedule import step_table
from diver_trt.method.step import StepLayout, guided_step
from diver_trt.recipe import GUIDE_KINDS, Guide, Recipe, Sigma

PROCESS = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
LAYOUT = StepLayout(channels=4, learned_variance=True, guided_channels=3)
Array = NDArray[np.float64]


@pytest.fixture
def tensors() -> dict[str, Array]:
    generator = np.random.default_rng(1)
    names = ("latent", "anchor", "by_class", "by_null", "variance", "noise")
    return {name: generator.standard_normal((2, 4, 8, 8)) for name in names}


def step(tensors: dict[str, Array], k: int, **settings: Any) -> Array:
    table = step_table(PROCESS, Recipe(**settings), LAYOUT)
    result: Array = guided_step(**tensors, row=table[k - 1], layout=LAYOUT, exp=np.exp)
    return result


def guided_noise(tensors: dict[str, Array], channels: int = 3) -> Array:
    by_class, by_null = tensors["by_class"], tensors["by_null"]
    eps = by_null + 4 * (by_class - by_null)
    eps[:, channels:] = by_class[:, channels:]
    return eps


def plain_ddim(tensors: dict[str, Array], k: int, channels: int = 3) -> Array:
    """DDIM as diffusers writes it: predict z0, then go to the next level."""
    abar = PROCESS.respaced(50)
    eps = guided_noise(tensors, channels)
    z0 = (tensors["latent"] - np.sqrt(1 - abar[k]) * eps) / np.sqrt(abar[k])
    result: Array = np.sqrt(abar[k - 1]) * z0 + np.sqrt(1 - abar[k - 1]) * eps
    return result


@pytest.mark.parametrize("k", [50, 33, 1])
def test_without_gamma_a_step_is_plain_ddim(tensors: dict[str, Array], k: int) -> None:
    np.testing.assert_allclose(step(tensors, k, gamma=0), plain_ddim(tensors, k), atol=1e-12)


@pytest.mark.parametrize(("k", "channels"), [(41, 3), (25, 3), (1, 3), (20, 4)])
def test_outside_the_window_a_step_is_plain_ddim(
    tensors: dict[str, Array], k: int, channels: int
) -> None:
    """And four guided channels are diffusers' guidance."""
    expected = plain_ddim(tensors, k, channels=channels)
    np.testing.assert_allclose(step(tensors, k, cfg_channels=channels), expected, atol=1e-12)


@pytest.mark.parametrize("k", [40, 26])
@pytest.mark.parametrize("guide", GUIDE_KINDS)
def test_each_kind_of_guidance_pulls_where_its_equation_says(
    tensors: dict[str, Array], k: int, guide: Guide
) -> None:
    abar = PROCESS.respaced(50)
    signal, spread = np.sqrt(abar[k]), np.sqrt(1 - abar[k])
    clean = (tensors["latent"] - spread * guided_noise(tensors)) / signal
    difference = {
        "latent": tensors["latent"] - tensors["anchor"],
        "noised": tensors["latent"] - signal * tensors["anchor"] - spread * tensors["noise"],
        "x0": clean - tensors["anchor"],
    }[guide]
    expected = plain_ddim(tensors, k) - 0.1 * spread * difference
    found = step(tensors, k, guide=guide, sigma="marginal")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_latent_that_is_its_anchor_at_the_noise_level_is_not_pulled(
    tensors: dict[str, Array],
) -> None:
    """With the true noise as the prediction, neither kind that keeps the noise level pulls."""
    abar = PROCESS.respaced(50)[33]
    noise, anchor = tensors["noise"], tensors["anchor"]
    tensors |= {"by_class": noise, "by_null": noise}
    tensors["latent"] = np.sqrt(abar) * anchor + np.sqrt(1 - abar) * noise
    for guide in ("noised", "x0"):
        np.testing.assert_allclose(
            step(tensors, 33, guide=guide), plain_ddim(tensors, 33), atol=1e-12
        )
    assert not np.allclose(step(tensors, 33), plain_ddim(tensors, 33), atol=1e-3)


def test_every_kind_of_guidance_has_an_equation() -> None:
    assert tuple(GUIDES) == GUIDE_KINDS


@pytest.mark.parametrize("sigma", ["learned", "posterior"])
@pytest.mark.parametrize("k", [40, 26])
def test_inside_the_window_the_latent_is_pulled_to_the_anchor(
    tensors: dict[str, Array], k: int, sigma: Sigma
) -> None:
    abar = PROCESS.respaced(50)
    beta = 1 - abar[k] / abar[k - 1]
    posterior = beta * (1 - abar[k - 1]) / (1 - abar[k])
    fraction = (tensors["variance"] + 1) / 2
    expected = {
        "learned": np.exp((fraction * np.log(beta) + (1 - fraction) * np.log(posterior)) / 2),
        "posterior": np.sqrt(posterior),
    }
    pull = 0.1 * expected[sigma] * (tensors["latent"] - tensors["anchor"])
    np.testing.assert_allclose(
        step(tensors, k, sigma=sigma), plain_ddim(tensors, k) - pull, atol=1e-12
    )


def test_a_full_window_guides_every_step(tensors: dict[str, Array]) -> None:
    for k in range(1, 51):
        full, narrow = step(tensors, k, window=(50, 0)), step(tensors, k, window=(k, k - 1))
        np.testing.assert_array_equal(full, narrow)
        assert not np.allclose(full, plain_ddim(tensors, k), atol=1e-9)
