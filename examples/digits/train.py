"""Train the digits model: a small AutoencoderKL and a class-conditional DiT.

The result is a standard diffusers pipeline.

    python examples/digits/train.py --output examples/digits/dit-digits

Everything follows from `--seed`; takes about an hour on two CPU cores. The DiT follows DiT's own
recipe in miniature (Peebles & Xie 2023): adaLN-Zero blocks, label dropout for classifier-free
guidance, noise prediction with learned variance.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from handwritten import IMAGE_SIZE, NUM_CLASSES, jitter, load_splits, to_tensor
from torch import Tensor

LATENT_CHANNELS = 4
LATENT_SIZE = 8
SCALING_FACTOR = 0.5  # not 1, so that a factor forgotten somewhere shows
LABEL_DROPOUT = 0.1
TRAIN_TIMESTEPS = 1000


def train_autoencoder(
    images: Tensor, generator: torch.Generator, *, steps: int, batch: int = 64
) -> AutoencoderKL:
    """Train the VAE on images, [n, 3, 32, 32] float32 in [-1, 1], and normalise its latents."""
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
        x = jitter(images[index], generator)
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
def fold_latent_statistics(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold each latent channel's mean and deviation into the VAE's 1 x 1 convolutions.

    `latent x scaling_factor` then has mean 0 and deviation 1.
    """
    # Semantic guidance pulls the noisy latent towards the clean one (DIVER section 4), so a channel
    # mean far from zero would be pulled into every image.
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * SCALING_FACTOR
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:LATENT_CHANNELS] /= std[:, None, None, None]
    quant.bias[:LATENT_CHANNELS] = (quant.bias[:LATENT_CHANNELS] - mean) / std
    quant.bias[LATENT_CHANNELS:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def build_transformer() -> DiTTransformer2DModel:
    """Return a DiT of width 128 and depth 6 on 8 x 8 latents.

    Its blocks share one timestep and label embedder, as in DiT.
    """
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
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


class Diffusion:
    """The training chain: linear betas, q(z_t | z_0), and the losses with a learned variance."""

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
        labels = torch.where(
            torch.rand(n, generator=generator) < LABEL_DROPOUT, NUM_CLASSES, labels
        )
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
        return F.mse_loss(eps_hat, eps) + kl.mean() / math.log(2)


def train_transformer(
    latents: Tensor,
    labels: Tensor,
    scheduler: DDIMScheduler,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int = 128,
) -> DiTTransformer2DModel:
    """Train the DiT on latents and return the moving average of its weights.

    Latents are [variants, n, 4, 8, 8] float32 with unit variance.
    """
    transformer = build_transformer().train()
    average = copy.deepcopy(transformer).requires_grad_(False)
    diffusion = Diffusion(scheduler)
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
        loss.backward()
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


@torch.no_grad()
def encode_variants(
    vae: AutoencoderKL, images: Tensor, generator: torch.Generator, *, variants: int
) -> Tensor:
    """Return the scaled latents of jittered copies of the images, [variants, n, 4, 8, 8].

    The first copy is not jittered.
    """
    copies = [images] + [jitter(images, generator) for _ in range(variants - 1)]
    return (
        torch.stack(
            [
                torch.cat([vae.encode(part).latent_dist.mean for part in copy.split(256)])
                for copy in copies
            ]
        )
        * SCALING_FACTOR
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--dit-steps", type=int, default=10000)
    parser.add_argument("--vae", type=Path, help="use this trained VAE instead of training one")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train, test = load_splits()
    images, labels = to_tensor(train.images), torch.from_numpy(train.labels)

    vae = (
        AutoencoderKL.from_pretrained(args.vae).eval()
        if args.vae
        else train_autoencoder(images, generator, steps=args.vae_steps)
    )
    with torch.no_grad():
        held_out = to_tensor(test.images)
        error = F.mse_loss(
            vae.decode(vae.encode(held_out).latent_dist.mean).sample.clamp(-1, 1), held_out
        )
    print(
        f"vae: {10 * math.log10(4 / error.item()):.1f} dB on {len(held_out)} held-out digits",
        flush=True,
    )
    vae.save_pretrained(args.output / "vae")

    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
    )
    latents = encode_variants(vae, images, generator, variants=32)
    print(
        f"latents: mean {np.round(latents.mean((0, 1, 3, 4)).numpy(), 3)}, "
        f"std {np.round(latents.std((0, 1, 3, 4)).numpy(), 3)}",
        flush=True,
    )
    transformer = train_transformer(latents, labels, scheduler, generator, steps=args.dit_steps)
    for block in transformer.transformer_blocks[1:]:
        # safetensors stores no tensor under two names.
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(args.output)
    index = args.output / "model_index.json"
    # DiTPipeline reads them from here, but does not save them.
    names = {"id2label": {str(i): str(i) for i in range(NUM_CLASSES)}}
    index.write_text(json.dumps(json.loads(index.read_text()) | names, indent=2) + "\n")


if __name__ == "__main__":
    main()
