"""Stable Diffusion 1.5 at its real size with random weights: one step against diffusers' own code.

    python -m benchmarks.real_sd --folder /tmp/real-sd
    python -m benchmarks.engines /tmp/real-sd/fp16

Writes a diffusers pipeline (4.3 GB), exports it in fp32 and fp16 for ten classes, compares one step
inside the semantic window with `UNet2DConditionModel` and `DDIMScheduler`, and prints parameter
counts and file sizes. Needs 20 GB of memory and some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.real_size import STEP, run_step, sd_vae
from diver_trt.bundle import Bundle
from diver_trt.export.checks import relative_l2
from diver_trt.export.exporter import export_bundle
from diver_trt.method.schedule import Schedule
from diver_trt.models import ModelOptions
from diver_trt.models.prompts import prompts_from_options
from diver_trt.models.stable_diffusion import StableDiffusion, load_model
from diver_trt.recipe import Recipe
from tests.models.tiny_stable_diffusion import CHAIN, CHARACTERS, INDEX, save_tokenizer

CLASSES = "tench,springer,cassette player,chain saw,church,horn,truck,pump,golf ball,parachute"


def make_pipeline(folder: Path) -> Path:
    """Save a pipeline of SD-1.5's configurations with random weights."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    ).save_pretrained(folder / "unet")
    sd_vae(512).save_pretrained(folder / "vae")
    # As many tokens as CLIP's own has.
    save_tokenizer(folder / "tokenizer", unused=49408 - 2 * len(CHARACTERS) - 2)
    CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072)).save_pretrained(
        folder / "text_encoder"
    )
    DDIMScheduler(**CHAIN).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@torch.no_grad()
def step_error(model: StableDiffusion, bundle: Bundle) -> float:
    """Return the relative L2 of one exported step to diffusers' UNet and scheduler."""
    recipe = Recipe(cfg_scale=8.0)
    schedule = Schedule(bundle.process, recipe, bundle.layout)
    scheduler: Any = DDIMScheduler(**CHAIN)
    scheduler.set_timesteps(recipe.steps)
    labels = torch.tensor([3, bundle.null_label])
    (latent, anchor, _), _, found = run_step(bundle, schedule, labels)
    t = scheduler.timesteps[recipe.steps - STEP]
    unet: Any = model.unet
    text = model.table(labels).unflatten(1, (model.tokens, -1))
    by_class, by_null = unet(torch.cat([latent, latent]), t, text).sample.chunk(2)
    guided = by_null + recipe.cfg_scale * (by_class - by_null)
    following = scheduler.step(guided, t, latent).prev_sample
    abar = scheduler.alphas_cumprod.double()
    now, before = abar[int(t)], abar[int(t) - scheduler.config.num_train_timesteps // recipe.steps]
    variance = (1 - now / before) * (1 - before) / (1 - now)
    expected = following - recipe.gamma * variance.sqrt().float() * (latent - anchor)
    return relative_l2(found, expected.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    source = make_pipeline(folder / "pipeline")
    model = load_model(
        str(source), ModelOptions(prompts=prompts_from_options(CLASSES, None, None, None))
    )
    for precision in ("fp32", "fp16"):
        for exported in export_bundle(model, folder / precision, precision):
            network = exported.network
            size = sum(record.size_bytes for record in network.files) / 1e6
            print(
                f"{precision} {network.name}: {network.parameters:,} parameters, {size:,.0f} MB, "
                f"relative L2 to torch fp32 {exported.error:.1e}",
                flush=True,
            )
            gc.collect()
    error = step_error(model, Bundle.open(folder / "fp32"))
    print(f"one step against diffusers' UNet and DDIMScheduler: relative L2 {error:.1e}")


if __name__ == "__main__":
    main()
