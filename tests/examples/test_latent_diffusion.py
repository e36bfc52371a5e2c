"""Training the examples' model: latents are normalised, and a run follows from its seed."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler

from examples.fashion.fashion import shift
from examples.latent_diffusion import (
    SCALING_FACTOR,
    TRAIN_TIMESTEPS,
    Diffusion,
    encode_variants,
    reconstruction_psnr,
    train_autoencoder,
    train_transformer,
)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (24, 8, 8, 1), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    return np.repeat(grey, 3, axis=-1)


@pytest.fixture(scope="module")
def vae(images: np.ndarray) -> AutoencoderKL:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    return train_autoencoder(images, shift, generator, steps=3, batch=8)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(num_train_timesteps=TRAIN_TIMESTEPS, clip_sample=False)


def test_latents_have_mean_0_and_deviation_1_in_every_channel(
    vae: AutoencoderKL, images: np.ndarray
) -> None:
    latents = encode_variants(vae, images, shift, torch.Generator(), variants=1)
    assert latents.shape == (1, 24, 4, 8, 8)
    assert vae.config.scaling_factor == SCALING_FACTOR
    assert latents.mean((0, 1, 3, 4)).abs().max() < 1e-4
    assert (latents.std((0, 1, 3, 4)) - 1).abs().max() < 1e-4


def test_only_the_first_variant_is_not_jittered(vae: AutoencoderKL, images: np.ndarray) -> None:
    plain = encode_variants(vae, images, shift, torch.Generator(), variants=1)
    both = encode_variants(vae, images, shift, torch.Generator(), variants=2)
    assert torch.equal(both[0], plain[0])
    assert not torch.equal(both[1], plain[0])


def test_the_psnr_is_that_of_the_clipped_reconstruction(
    vae: AutoencoderKL, images: np.ndarray
) -> None:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    expected = 10 * np.log10(4 / (x - y).double().square().mean().item())
    assert reconstruction_psnr(vae, images) == pytest.approx(expected, abs=1e-4)


def test_the_training_chain_is_that_of_the_scheduler() -> None:
    chain, diffusion = scheduler(), Diffusion(scheduler())
    x, noise = torch.randn(2, 3, 4, 8, 8)
    t = torch.tensor([0, 500, 999])
    expected = chain.add_noise(x, noise, t)
    at = (slice(None), None, None, None)
    found = diffusion.signal[t][at] * x + diffusion.noise[t][at] * noise
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_transformer_follows_from_its_seed() -> None:
    latents = torch.randn(1, 20, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10

    def trained() -> torch.Tensor:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        net = train_transformer(
            latents, labels, Diffusion(scheduler()), generator, steps=2, batch=8
        )
        return torch.cat([parameter.flatten() for parameter in net.parameters()])

    assert torch.equal(trained(), trained())
