"""The real size: DiT-XL/2-256 or -512 and the SD VAE with random weights, exported and checked.

    python -m benchmarks.real_size --folder /tmp/real-size
    python -m benchmarks.real_size --folder /tmp/real-size-512 --image-size 512

Writes a diffusers pipeline (3.3 GB) and its fp32 and fp16 bundles (3.0 and 1.5 GB) below the
folder, compares the fp32 conditioner and one denoiser step with diffusers' own module and
scheduler, and prints parameter counts and file sizes as the tables of `benchmarks/README.md`. Needs
16 GB of memory and some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from benchmarks.heading import heading
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, Precision
from diver_trt.export.checks import relative_l2
from diver_trt.export.exporter import export_bundle
from diver_trt.method.schedule import Schedule
from diver_trt.models.dit import load_model, set_timestep_frequencies
from diver_trt.recipe import Recipe

STEP = 30
"""A step inside the semantic window, so that every term of the graph matters."""


def sd_vae(image_size: int) -> AutoencoderKL:
    """Return Stable Diffusion's VAE, which DiT, SiT and REPA use too, with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=image_size,
    )


def make_pipeline(folder: Path, image_size: int) -> Path:
    """Save DiT-XL/2 and the SD VAE with random weights, unless they exist already."""
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    # The class's other defaults are DiT-XL/2's.
    transformer = DiTTransformer2DModel(out_channels=8, sample_size=image_size // 8)
    vae = sd_vae(image_size)
    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False
    )
    with torch.no_grad():
        embedder = transformer.transformer_blocks[0].norm1.emb.state_dict()
        for block in transformer.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(embedder)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(folder)
    return folder


def export(source: Path, target: Path, precision: Precision) -> dict[str, float]:
    """Export a bundle anew; return each network's relative L2 error by the exporter's check."""
    shutil.rmtree(target, ignore_errors=True)
    started = time.monotonic()
    errors: dict[str, float] = {
        exported.network.name: exported.error
        for exported in export_bundle(load_model(str(source)), target, precision)
    }
    print(
        f"exported {precision} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
    )
    return errors


@torch.no_grad()
def compare_with_diffusers(source: Path, bundle: Bundle) -> tuple[float, float]:
    """Return the relative L2 errors of the conditioner and of one step against diffusers' code."""
    pipeline: Any = DiTPipeline.from_pretrained(source)
    transformer, scheduler = pipeline.transformer.eval(), pipeline.scheduler
    set_timestep_frequencies(transformer, "dit")
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[50 - STEP].expand(2)
    labels = torch.tensor([207, 1000])
    schedule = Schedule(bundle.process, Recipe(), bundle.layout)
    (latent, anchor, _), condition, found = run_step(bundle, schedule, labels)
    blocks = transformer.transformer_blocks
    silu = torch.nn.functional.silu
    layers = [block.norm1.linear for block in blocks] + [transformer.proj_out_1]
    embedded = silu(blocks[0].norm1.emb(t, labels, torch.float32))
    modulations = torch.cat([layer(embedded) for layer in layers], dim=1)
    # A condition holds 1 + scale: of a block's six vectors the second and the fifth.
    vectors = modulations.reshape(len(labels), -1, transformer.inner_dim)
    vectors[:, 1::3] += 1
    expected_condition = vectors.flatten(1).numpy()

    row = schedule.table[STEP - 1]
    by_class, by_null = transformer(torch.cat([latent, latent]), t, labels).sample.chunk(2)
    eps, variance = by_class.chunk(2, dim=1)
    guided = by_null[:, :3] + 4.0 * (eps[:, :3] - by_null[:, :3])
    following = scheduler.step(torch.cat([guided, eps[:, 3:]], dim=1), t[0], latent).prev_sample
    fraction = (variance + 1) / 2
    sigma = torch.exp((fraction * row[-1] + (1 - fraction) * row[-2]) / 2)
    expected = following - 0.1 * sigma * (latent - anchor)
    return relative_l2(condition, expected_condition), relative_l2(found, expected.numpy())


def run_step(
    bundle: Bundle, schedule: Schedule, labels: Tensor
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Run step `STEP` of a bundle on random inputs, conditioned on a class and on the null class.

    Returns:
        Latent, anchor and noise, [3, 1, c, h, w]; the condition of each label; and the next latent.
    """
    drawn = torch.randn(3, 1, *bundle.latent_shape, generator=torch.Generator().manual_seed(1))
    time = np.full(len(labels), schedule.times[STEP - 1])
    condition = run(bundle, "conditioner", {"time": time, "label": labels.numpy()})
    inputs = dict(zip(("latent", "anchor", "noise"), drawn.numpy(), strict=True))
    inputs |= {"condition": condition[:, None], "coefficients": schedule.table[STEP - 1]}
    return drawn, condition, run(bundle, "denoiser", inputs)


def run(bundle: Bundle, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        bundle.path / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )
    output: np.ndarray = session.run(None, inputs)[0]
    return output


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=256, choices=(256, 512))
    args = parser.parse_args()
    folder = args.folder

    source = make_pipeline(folder / "pipeline", args.image_size)
    stored = sum(
        p.numel()
        for p in DiTTransformer2DModel.from_pretrained(source / "transformer").parameters()
    )
    errors = {
        precision: export(source, folder / precision, precision) for precision in ("fp32", "fp16")
    }
    bundles = {precision: Bundle.open(folder / precision) for precision in errors}
    conditioner, step = compare_with_diffusers(source, bundles["fp32"])

    packages = ("torch", "diffusers", "onnx", "onnxruntime", "numpy")
    measured_with = heading(*packages, threads=torch.get_num_threads())
    print(f"{measured_with}\n")
    print(f"diffusers stores {stored:,} transformer parameters.\n")
    print(
        "| network | parameters | fp32 file | fp16 file | fp32 against torch "
        "| fp16 against torch fp32 |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name in NETWORKS:
        sizes = [
            sum(record.size_bytes for record in bundle.networks[name].files) / 1e6
            for bundle in bundles.values()
        ]
        cells = [f"{size:,.0f} MB" for size in sizes] + [
            f"{errors[precision][name]:.1e}" for precision in errors
        ]
        print(f"| {name} | {bundles['fp32'].networks[name].parameters:,} | {' | '.join(cells)} |")
    print(
        f"\nfp32 against diffusers' module and DDIMScheduler: conditioner {conditioner:.1e}, "
        f"denoiser step {STEP} {step:.1e} (relative L2)."
    )
    if max(conditioner, step) > 1e-5:
        sys.exit("the fp32 bundle is further than 1e-5 from diffusers")


if __name__ == "__main__":
    main()
