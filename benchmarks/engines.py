"""Engines of the real size: what TensorRT-RTX's compiler says they take, for GPUs that are not here.

    python benchmarks/real_size.py --folder /tmp/real-size
    python benchmarks/engines.py --folder /tmp/real-size

Compiles the fp16 bundle of DiT-XL/2-256 that the first script leaves behind for SM75 and SM86 in batches of 1, 4 and 8, and, for
comparison, diffusers' transformer exported as it is, at batch 8 with guidance. Prints the tables of `benchmarks/README.md`. Nothing is
run: these are the compiler's own figures.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from diver_trt.bundle import Bundle, Network
from diver_trt.export.onnx_graph import graph_from_network
from diver_trt.files import FileRecord
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.compiler import Compiled, compile_graph
from diver_trt.runtime.backends.tensorrt.memory import RESIDENCIES, plan_memory
from diver_trt.runtime.backends.tensorrt.sidecar import Profile, read_plan
from diver_trt.runtime.backends.tensorrt.target import Target, resolve_target
from diver_trt.tensors import TensorSpec

BATCHES = (1, 4, 8)
SMS = (75, 86)


class Unsplit(nn.Module):
    """diffusers' transformer as it is, in float16: what a plain export of the model gives."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer.half().eval()

    def forward(self, latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        sample: Tensor = self.transformer(latent, timestep=timestep, class_labels=label).sample
        return sample


def compile_unsplit(folder: Path, target: Target, batch: int) -> Compiled:
    """Export the transformer as it is and compile it for a batch of images with guidance."""
    inputs = (
        TensorSpec("latent", "float16", ("n", 4, 32, 32)),
        TensorSpec("timestep", "int64", ("n",)),
        TensorSpec("label", "int64", ("n",)),
    )
    outputs = (TensorSpec("sample", "float16", ("n", 8, 32, 32)),)
    path = folder / "unsplit" / "transformer.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        transformer = DiTTransformer2DModel.from_pretrained(folder / "pipeline" / "transformer")
        graph_from_network(Unsplit(transformer).requires_grad_(False), inputs, outputs, path)
    network = Network(
        name="denoiser",
        graph=FileRecord.of(path),
        weights=None,
        inputs=inputs,
        outputs=outputs,
        parameters=0,
    )
    return compile_graph(path, network, Profile(2 * batch, 2 * batch, 2 * batch), target)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    bundle = Bundle.open(folder / "fp16")

    versions = ", ".join(
        f"{package} {version(package)}" for package in ("tensorrt-rtx", "polygraphy", "torch")
    )
    print(
        f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {versions}; no GPU\n"
    )
    print("| batch | network | weights | activations | in and out | engine file |")
    print("|---:|---|---:|---:|---:|---:|")
    plans = []
    for batch in BATCHES:
        target = resolve_target("rtx", SMS, Profile(batch, batch, batch))
        for sidecar in build_plan(bundle, target):
            memory = sidecar.memory
            figures = (
                memory.weights_bytes,
                memory.activation_bytes,
                memory.io_bytes,
                sidecar.engine.size_bytes,
            )
            print(
                f"| {batch} | {sidecar.network} | {' | '.join(megabytes(size) for size in figures)} |",
                flush=True,
            )
            print(
                f"{sidecar.network} b{batch}: {sidecar.build_seconds:.0f} s, {dict(sidecar.dtypes)}",
                file=sys.stderr,
                flush=True,
            )
        plans.append(read_plan(target.folder(bundle)))

    print("\n| batch | networks | encoder | conditioner | denoiser | decoder | peak |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for plan in plans:
        for residency in RESIDENCIES:
            planned = plan_memory(plan, residency)
            totals = [megabytes(phase.total_bytes) for phase in planned.phases]
            print(
                f"| {planned.batch} | {residency} | {' | '.join(totals)} | **{megabytes(planned.peak_bytes)}** |"
            )

    largest = Profile(BATCHES[-1], BATCHES[-1], BATCHES[-1])
    whole = {
        name: compile_graph(
            bundle.path / bundle.networks[name].graph.name,
            bundle.networks[name],
            largest,
            resolve_target("rtx", SMS, largest),
        )
        for name in ("encoder", "decoder")
    }
    activations = ", ".join(
        f"{name} {megabytes(compiled.memory.activation_bytes)} MB"
        for name, compiled in whole.items()
    )
    print(
        f"\nthe VAE at batch {BATCHES[-1]} instead of one image at a time: activations {activations}."
    )

    target = resolve_target("rtx", SMS[-1:], Profile(8, 8, 8))
    with torch.no_grad():
        unsplit = compile_unsplit(folder, target, 8).memory
    sizes = (unsplit.weights_bytes, unsplit.activation_bytes, unsplit.io_bytes)
    print(
        f"\nun-split transformer, batch 8 with guidance: weights {', activations '.join(megabytes(size) for size in sizes[:2])} MB,",
        end=" ",
    )
    print(f"in and out {megabytes(sizes[2])} MB, together {megabytes(sum(sizes))} MB.")


if __name__ == "__main__":
    main()
