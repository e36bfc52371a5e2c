"""SiT-XL/2 and REPA's at their real size with random weights: one step against their own equations.

    python -m benchmarks.real_flow --folder /tmp/real-flow
    python -m benchmarks.engines /tmp/real-flow/sit-fp16 --sm 86
    python -m benchmarks.engines /tmp/real-flow/repa-fp16 --sm 86

Writes a checkpoint in each one's own layout (2.7 GB) and Stable Diffusion's VAE, exports them in
fp32, and compares one step inside the semantic window with a network and a sampler written from the
papers. Exports them in fp16 too, for their engines. Needs 16 GB of memory and 12 GB of disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real_size import STEP, run_step, sd_vae
from diver_trt.bundle import Bundle
from diver_trt.export.checks import relative_l2
from diver_trt.export.exporter import export_bundle
from diver_trt.method.schedule import Schedule
from diver_trt.models import BASES, ModelOptions
from diver_trt.recipe import Recipe
from tests.models.original_dit import OriginalDiT

LABELS = torch.tensor([207, 1000])


def network(outputs: int) -> OriginalDiT:
    torch.manual_seed(0)
    made = OriginalDiT(width=1152, heads=16, depth=28, size=32, classes=1000)
    made.out_channels = outputs
    made.final_layer["linear"] = torch.nn.Linear(1152, 2 * 2 * outputs)
    return made.eval().requires_grad_(False)


def expected_step(
    base: str, made: OriginalDiT, latent: Tensor, anchor: Tensor, recipe: Recipe
) -> Tensor:
    """Return the next latent by Euler's method, semantic guidance and the base's own guidance."""
    noise = STEP / recipe.steps
    time = torch.full((2,), 1 - noise if base == "sit" else noise)
    by_class, by_null = made(torch.cat([latent, latent]), time, LABELS)[:, :4].chunk(2)
    guided = by_null + recipe.cfg_scale * (by_class - by_null)
    if base == "sit":
        guided[:, 3:] = by_class[:, 3:]
    to_data = guided if base == "sit" else -guided
    following: Tensor = latent + to_data / recipe.steps - recipe.gamma * noise * (latent - anchor)
    return following


def error(base: str, folder: Path) -> float:
    """Return the relative L2 of one exported step to `expected_step`."""
    made = network(8 if base == "sit" else 4)
    path = folder / f"{base}.pt"
    torch.save({"ema": made.state_dict()}, path)
    loaded = (
        BASES[base].load().load_model(str(path), ModelOptions(vae=str(folder / "vae"), base=base))
    )
    for _ in export_bundle(loaded, folder / base):
        pass
    for exported in export_bundle(loaded, folder / f"{base}-fp16", "fp16"):
        print(f"{base} {exported.network.name}: fp16 against torch fp32 {exported.error:.1e}")
    bundle, recipe = Bundle.open(folder / base), Recipe()
    schedule = Schedule(bundle.process, recipe, bundle.layout)
    (latent, anchor, _), _, found = run_step(bundle, schedule, LABELS)
    with torch.no_grad():
        expected = expected_step(base, made, latent, anchor, recipe).numpy()
    return relative_l2(found, expected)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    sd_vae(256).save_pretrained(folder / "vae")
    for base in ("sit", "repa"):
        print(f"{base}: one step, relative L2 {error(base, folder):.1e}", flush=True)


if __name__ == "__main__":
    main()
