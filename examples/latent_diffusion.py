"""A small latent diffusion model: an AutoencoderKL and a class-conditional DiT, and their training.

The DiT follows DiT's own recipe in miniature (Peebles & Xie 2023): adaLN-Zero blocks, label dropout
for classifier-free guidance, noise prediction with learned variance. As a SiT (Ma et al. 2024) it
predicts the velocity of a straight path instead.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor

from diver_trt.models.dit import set_timestep_frequencies
from examples.dataset import IMAGE_SIZE, NUM_CLASSES, Augment, to_tensor

LATENT_CHANNELS = 4
LATENT_SIZE = 8
HEADS = 4
SCALING_FACTOR = 0.5  # not 1, so that a factor forgotten somewhere shows
LABEL_DROPOUT = 0.1
TRAIN_TIMESTEPS = 1000


def train_autoencoder(
    images: NDArray[np.uint8],
    augment: Augment,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int = 64,
) -> AutoencoderKL:
    """Train the VAE on images, [n, 32, 32, 3] uint8, and normalise its latents."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=SCALING_FACTOR,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    started = time.monotonic()
    for step in range(steps):
        index = torch.randint(len(images), (batch,), generator=generator)
        x = augment(to_tensor(images[index.numpy()]), generator)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        reconstruction = F.mse_loss(vae.decode(z).sample, x)
        loss = reconstruction + 1e-5 * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            psnr = 10 * math.log10(4 / reconstruction.item())
            print(
                f"vae {step + 1}/{steps}: {psnr:.1f} dB, "
                f"{(step + 1) / (time.monotonic() - started):.1f} steps/s",
                flush=True,
            )
    fold_latent_statistics(vae, images)
    return vae.eval()


@torch.no_grad()
def fold_latent_statistics(vae: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    """Fold each latent channel's mean and deviation into the VAE's 1 x 1 convolutions.

    `latent x scaling_factor` then has mean 0 and deviation 1.
    """
    # Semantic guidance pulls the noisy latent towards the clean one (DIVER section 4), so a channel
    # mean far from zero would be pulled into every image.
    # Thousands of images estimate eight numbers well enough.
    latents = torch.cat([encode(vae, part) for part in parts_of(images[:5000])])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * SCALING_FACTOR
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:LATENT_CHANNELS] /= std[:, None, None, None]
    quant.bias[:LATENT_CHANNELS] = (quant.bias[:LATENT_CHANNELS] - mean) / std
    quant.bias[LATENT_CHANNELS:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def build_transformer(outputs: int = 2 * LATENT_CHANNELS) -> DiTTransformer2DModel:
    """Return a DiT of width 128 and depth 6 on 8 x 8 latents.

    Its blocks share one timestep and label embedder, as in DiT.
    """
    transformer = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=outputs,
        num_layers=6,
        sample_size=LATENT_SIZE,
        patch_size=2,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    embedder = transformer.transformer_blocks[0].norm1.emb
    embedder.class_embedder.dropout_prob = (
        0.0  # diffusers would drop labels once per block; `training_loss` drops them once per image
    )
    torch.nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02)
    torch.nn.init.normal_(embedder.timestep_embedder.linear_1.weight, std=0.02)
    torch.nn.init.normal_(embedder.timestep_embedder.linear_2.weight, std=0.02)
    for block in transformer.transformer_blocks:
        block.norm1.emb = embedder
        torch.nn.init.zeros_(block.norm1.linear.weight)
        torch.nn.init.zeros_(block.norm1.linear.bias)
    for layer in (transformer.proj_out_1, transformer.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


def with_dropped_labels(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the labels, some replaced by the null class (classifier-free guidance)."""
    dropped = torch.rand(len(labels), generator=generator) < LABEL_DROPOUT
    return torch.where(dropped, NUM_CLASSES, labels)


class StraightPath:
    """SiT's training: `z_t = t z_0 + (1 - t) n` and the velocity `z_0 - n` (SiT, Eq. 6)."""

    outputs = LATENT_CHANNELS

    def training_loss(
        self,
        transformer: DiTTransformer2DModel,
        z0: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the mean squared error of the velocity, at uniform times."""
        n = len(z0)
        t = torch.rand(n, generator=generator)
        labels = with_dropped_labels(labels, generator)
        noise = torch.randn(z0.shape, generator=generator)
        at = (slice(None), None, None, None)
        velocity = transformer(
            t[at] * z0 + (1 - t[at]) * noise, timestep=t, class_labels=labels
        ).sample
        return F.mse_loss(velocity, z0 - noise)


class Diffusion:
    """The training chain: linear betas, q(z_t | z_0), and the losses with a learned variance."""

    outputs = 2 * LATENT_CHANNELS

    def __init__(self, scheduler: DDIMScheduler) -> None:
        beta = scheduler.betas.double()
        abar = scheduler.alphas_cumprod.double()
        abar_previous = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        posterior = beta * (1 - abar_previous) / (1 - abar)
        posterior[0] = posterior[1]
        self.signal, self.noise = abar.sqrt().float(), (1 - abar).sqrt().float()
        self.log_beta, self.log_posterior = beta.log().float(), posterior.log().float()
        # posterior mean of q(z_{t-1} | z_t, z_0) = from_z0 * z_0 + from_zt * z_t (DDPM, Eq. 7)
        self.from_z0 = (beta * abar_previous.sqrt() / (1 - abar)).float()
        self.from_zt = ((1 - abar_previous) * (1 - beta).sqrt() / (1 - abar)).float()

    def training_loss(
        self,
        transformer: DiTTransformer2DModel,
        z0: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return L_simple + L_vlb (Nichol & Dhariwal 2021, Eq. 16).

        The variational term trains the variance only.
        """
        n = len(z0)
        t = torch.randint(TRAIN_TIMESTEPS, (n,), generator=generator)
        labels = with_dropped_labels(labels, generator)
        eps = torch.randn(z0.shape, generator=generator)
        at = (slice(None), None, None, None)
        zt = self.signal[t][at] * z0 + self.noise[t][at] * eps
        eps_hat, v = transformer(zt, timestep=t, class_labels=labels).sample.chunk(2, dim=1)

        f = (v + 1) / 2
        log_variance = f * self.log_beta[t][at] + (1 - f) * self.log_posterior[t][at]
        z0_hat = (zt - self.noise[t][at] * eps_hat.detach()) / self.signal[t][at]
        squared = (self.from_z0[t][at] * (z0 - z0_hat)).square()
        true_log_variance = self.log_posterior[t][at]
        kl = 0.5 * (
            log_variance
            - true_log_variance
            + (true_log_variance - log_variance).exp()
            - 1
            + squared * (-log_variance).exp()
        )
        loss: Tensor = F.mse_loss(eps_hat, eps) + kl.mean() / math.log(2)
        return loss


def train_transformer(
    latents: Tensor,
    labels: Tensor,
    diffusion: Diffusion | StraightPath,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int = 128,
) -> DiTTransformer2DModel:
    """Train the DiT on latents and return the moving average of its weights.

    Latents are [variants, n, 4, 8, 8] float32 with unit variance.
    """
    transformer = build_transformer(diffusion.outputs).train()
    if isinstance(diffusion, StraightPath):
        set_timestep_frequencies(transformer, "dit")  # SiT's own
    average = copy.deepcopy(transformer).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=1e-3, weight_decay=0, betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.03)
    started, smoothed = time.monotonic(), None
    for step in range(steps):
        variant = torch.randint(len(latents), (batch,), generator=generator)
        index = torch.randint(len(labels), (batch,), generator=generator)
        loss = diffusion.training_loss(
            transformer, latents[variant, index], labels[index], generator
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.999, (step + 1) / (step + 10))
        for mean, parameter in zip(average.parameters(), transformer.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        smoothed = loss.item() if smoothed is None else 0.99 * smoothed + 0.01 * loss.item()
        if step % 200 == 199:
            print(
                f"dit {step + 1}/{steps}: loss {smoothed:.4f}, "
                f"{(step + 1) / (time.monotonic() - started):.1f} steps/s",
                flush=True,
            )
    return average.eval()


def parts_of(images: NDArray[np.uint8]) -> Iterator[Tensor]:
    """Yield the images as tensors of 256, [256, 3, 32, 32]."""
    for first in range(0, len(images), 256):
        yield to_tensor(images[first : first + 256])


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the posterior means of images, [n, 4, 8, 8], not scaled."""
    mean: Tensor = vae.encode(images).latent_dist.mean
    return mean


@torch.no_grad()
def encode_variants(
    vae: AutoencoderKL,
    images: NDArray[np.uint8],
    augment: Augment,
    generator: torch.Generator,
    *,
    variants: int,
) -> Tensor:
    """Return the scaled latents of jittered copies of the images, [variants, n, 4, 8, 8].

    The first copy is not jittered.
    """
    copies = [torch.cat([encode(vae, part) for part in parts_of(images)])]
    for _ in range(variants - 1):
        jittered = (augment(part, generator) for part in parts_of(images))
        copies.append(torch.cat([encode(vae, part) for part in jittered]))
    return torch.stack(copies) * SCALING_FACTOR


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> float:
    """Return the PSNR in dB of images that went through the VAE, clipped to [-1, 1]."""
    squared = 0.0
    for x in parts_of(images):
        error = vae.decode(encode(vae, x)).sample.clamp(-1, 1) - x
        squared += error.double().square().mean(dim=(1, 2, 3)).sum().item()
    return 10 * math.log10(4 * len(images) / squared)
