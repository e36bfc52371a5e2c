"""The DDPM chain against closed forms, in float64."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from diver_trt.documents import Document
from diver_trt.errors import BundleError, RecipeError
from diver_trt.method.ddpm import MAX_TIMESTEPS, Ddpm
from diver_trt.method.process import PROCESSES, Process, StoredProcess
from diver_trt.structs import dump

LINEAR = Ddpm(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000)
SCALED = Ddpm(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, train_timesteps=1000
)


def test_fifty_steps_are_dits_ddim50() -> None:
    times = LINEAR.times(50)
    assert times.dtype == np.float32
    assert times.tolist() == list(range(0, 1000, 20))


def test_the_longest_chain_has_exact_times_in_float32() -> None:
    assert int(np.float32(MAX_TIMESTEPS - 1)) == MAX_TIMESTEPS - 1


def test_the_levels_start_clean_and_keep_the_variance() -> None:
    alpha, sigma = LINEAR.levels(50)
    assert alpha.shape == sigma.shape == (51,)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (np.diff(alpha) < 0).all()
    assert (np.diff(sigma) > 0).all()
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-15)
    np.testing.assert_allclose(alpha[1] ** 2, 1 - 1e-4, rtol=1e-15)


def test_scaled_linear_is_linear_in_the_square_root() -> None:
    chain = Ddpm(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, train_timesteps=3
    )
    betas = np.array([0.00085, ((0.00085**0.5 + 0.012**0.5) / 2) ** 2, 0.012])
    np.testing.assert_allclose(chain.alphas_cumprod(), np.cumprod(1 - betas), rtol=1e-14)


@pytest.mark.parametrize("chain", [LINEAR, SCALED])
def test_ddim_with_the_true_noise_returns_z0_and_every_level_between(chain: Ddpm) -> None:
    generator = np.random.default_rng(0)
    z0, noise = generator.standard_normal((2, 4, 8, 8))
    alpha, sigma = chain.levels(50)
    a, b = chain.coefficients(50)
    latent = alpha[50] * z0 + sigma[50] * noise
    for k in range(50, 0, -1):
        latent = a[k - 1] * latent + b[k - 1] * noise
        np.testing.assert_allclose(latent, alpha[k - 1] * z0 + sigma[k - 1] * noise, atol=1e-11)
    np.testing.assert_allclose(latent, z0, atol=1e-11)


def test_learned_variance_lies_between_the_posterior_and_the_prior() -> None:
    abar = LINEAR.respaced(50)
    low, high = LINEAR.log_variance_bounds(50, "learned", learned=True)
    k = 30
    beta = 1 - abar[k] / abar[k - 1]
    np.testing.assert_allclose(np.exp(high[k - 1]), beta, rtol=1e-12)
    np.testing.assert_allclose(
        np.exp(low[k - 1]), beta * (1 - abar[k - 1]) / (1 - abar[k]), rtol=1e-12
    )
    assert (low[1:] <= high[1:]).all()


def test_the_first_posterior_variance_is_clipped_to_the_second() -> None:
    low, _ = LINEAR.log_variance_bounds(50, "posterior", learned=True)
    assert low[0] == low[1]
    assert np.isfinite(low).all()


def test_marginal_sigma_is_the_noise_level() -> None:
    low, high = LINEAR.log_variance_bounds(50, "marginal", learned=True)
    np.testing.assert_allclose(np.exp(low / 2), LINEAR.levels(50)[1][1:], rtol=1e-14)
    assert (low == high).all()


def test_a_model_without_variance_takes_the_posterior() -> None:
    learned = LINEAR.log_variance_bounds(50, "learned", learned=False)
    posterior = LINEAR.log_variance_bounds(50, "posterior", learned=False)
    np.testing.assert_array_equal(learned, posterior)


def test_more_steps_than_the_model_was_trained_with_are_refused() -> None:
    with pytest.raises(RecipeError, match="steps is 2000, but the model was trained with 1000"):
        LINEAR.times(2000)


@dataclass(frozen=True)
class Holder:
    process: StoredProcess


@pytest.mark.parametrize("process", [LINEAR, SCALED, Ddpm.listed([0.1, 0.25, 1.0])])
def test_a_process_comes_back_from_its_json(process: Process) -> None:
    stored = json.loads(json.dumps(dump(process)))
    assert stored["kind"] in PROCESSES
    document = Document({"process": stored}, "bundle.json", BundleError)
    assert document.load(Holder).process == process
