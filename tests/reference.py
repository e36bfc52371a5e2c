"""DIVER in plain torch, independent of the package.

It uses diffusers' modules, diffusers' own DDIMScheduler, and the guidance term of the paper.

Nothing here comes from `diver_trt` but the recipe's settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiTPipeline
from numpy.typing import NDArray
from torch import Tensor

from diver_trt.recipe import Recipe


class Reference:
    """A diffusers pipeline that recovers images the slow way."""

    def __init__(self, folder: Path) -> None:
        pipeline: Any = DiTPipeline.from_pretrained(folder)
        self.transformer, self.vae = pipeline.transformer.eval(), pipeline.vae.eval()
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.scaling_factor = self.vae.config.scaling_factor
        self.null = self.transformer.config.num_embeds_ada_norm

    @torch.no_grad()
    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0 * 2 - 1
        latent: Tensor = self.vae.encode(pixels).latent_dist.mode() * self.scaling_factor
        return latent

    @torch.no_grad()
    def decode(self, latent: Tensor) -> NDArray[np.uint8]:
        image = (self.vae.decode(latent / self.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        pixels: NDArray[np.uint8] = (
            (image * 255).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()
        )
        return pixels

    @torch.no_grad()
    def trajectory(
        self, anchor: Tensor, noise: Tensor, labels: Tensor, recipe: Recipe
    ) -> Iterator[Tensor]:
        """Yield the start and then the latent after every step."""
        self.scheduler.set_timesteps(recipe.steps)
        timesteps = self.scheduler.timesteps  # descending: entry K - k is step k
        if recipe.inherit_step is None:
            latent = noise
        else:
            latent = self.scheduler.add_noise(
                anchor, noise, timesteps[recipe.steps - recipe.inherit_step].expand(len(anchor))
            )
        yield latent
        for k in range(recipe.start_step, 0, -1):
            t = timesteps[recipe.steps - k]
            by_class, by_null = (
                self.transformer(latent, timestep=t.expand(len(latent)), class_labels=label).sample
                for label in (labels, torch.full_like(labels, self.null))
            )
            c = latent.shape[1]
            eps = by_class[:, :c].clone()
            guided = slice(None, recipe.cfg_channels or 3)
            eps[:, guided] = (
                by_null[:, :c][:, guided] + recipe.cfg_scale * (eps - by_null[:, :c])[:, guided]
            )
            following = self.scheduler.step(eps, t, latent).prev_sample
            high, low = recipe.window
            if low < k <= high:
                # Each kind as its paper or ours writes it: what is pulled, and where to.
                at_level = self.scheduler.add_noise(anchor, noise, t.expand(len(anchor)))
                clean = self.scheduler.step(eps, t, latent).pred_original_sample
                pulled, target = {
                    "latent": (latent, anchor),
                    "noised": (latent, at_level),
                    "x0": (clean, anchor),
                }[recipe.guide]
                strength = recipe.gamma * self.sigma(k, recipe, by_class[:, c:])
                following = following - strength * (pulled - target)
            latent = following
            yield latent

    def sigma(self, k: int, recipe: Recipe, variance: Tensor) -> Tensor:
        stride = self.scheduler.config.num_train_timesteps // recipe.steps
        t = (k - 1) * stride
        abar = self.scheduler.alphas_cumprod.double()
        if recipe.sigma == "marginal":
            return torch.sqrt(1 - abar[t]).float()
        # The first is 0: clipped to the second.
        posterior = self.scheduler._get_variance(max(t, stride), max(t, stride) - stride)
        if recipe.sigma == "posterior" or variance.shape[1] == 0:
            return torch.sqrt(posterior)
        beta = 1 - abar[t] / (abar[t - stride] if k > 1 else 1.0)
        fraction = (variance + 1) / 2
        return torch.exp((fraction * beta.log().float() + (1 - fraction) * posterior.log()) / 2)
