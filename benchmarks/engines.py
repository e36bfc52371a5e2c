"""Engines of the real size: their memory as TensorRT-RTX's compiler reports it, without a GPU.

    python -m benchmarks.real_size --folder /tmp/real-size
    python -m benchmarks.engines /tmp/real-size/fp16 --unsplit /tmp/real-size/pipeline

Compiles a bundle for SM75 and SM86 in batches of 1, 4 and 8, and, for comparison, diffusers' DiT
exported as it is, at batch 8 with guidance. Prints the tables of `benchmarks/README.md`. Nothing is
run: these are the compiler's own figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from benchmarks.compiling import compile_alone
from benchmarks.heading import heading
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.export.onnx_graph import graph_from_network
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.compiler import Compiled, compile_graph
from diver_trt.runtime.backends.tensorrt.memory import RESIDENCIES, plan_memory
from diver_trt.runtime.backends.tensorrt.plans import Plan, read_plan
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import Target, resolve_target
from diver_trt.tensors import TensorSpec

BATCHES = (1, 4, 8)
SMS = (75, 86)


class Unsplit(nn.Module):
    """diffusers' transformer as it is, in float16, as a plain export of the model has it."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer.half().eval()

    def forward(self, latent: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        sample: Tensor = self.transformer(latent, timestep=timestep, class_labels=label).sample
        return sample


def compile_unsplit(pipeline: Path, target: Target, batch: int) -> Compiled:
    """Export the transformer as it is and compile it for a batch of images with guidance."""
    inputs = (
        TensorSpec("latent", "float16", ("n", 4, 32, 32)),
        TensorSpec("timestep", "int64", ("n",)),
        TensorSpec("label", "int64", ("n",)),
    )
    outputs = (TensorSpec("sample", "float16", ("n", 8, 32, 32)),)
    path = pipeline.parent / "unsplit" / "transformer.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        transformer = DiTTransformer2DModel.from_pretrained(pipeline / "transformer")
        graph_from_network(Unsplit(transformer).requires_grad_(False), inputs, outputs, path)
    # Guidance takes two predictions per image.
    return compile_alone(path, "denoiser", inputs, outputs, 2 * batch, target)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def build_engines(bundle: Bundle, sms: tuple[int, ...]) -> list[Plan]:
    """Build the bundle in every batch, and print the memory of each engine."""
    print("| batch | network | weights | activations | in and out | engine file |")
    print("|---:|---|---:|---:|---:|---:|")
    plans = []
    for batch in BATCHES:
        target = resolve_target("rtx", sms, Profile(batch, batch, batch))
        for sidecar in build_plan(bundle, target):
            memory, name = sidecar.memory, sidecar.network
            figures = (
                memory.weights_bytes,
                memory.activation_bytes,
                memory.io_bytes,
                sidecar.engine.size_bytes,
            )
            cells = " | ".join(megabytes(size) for size in figures)
            print(f"| {batch} | {name} | {cells} |", flush=True)
            print(
                f"{name} b{batch}: {sidecar.build_seconds:.0f} s, {dict(sidecar.dtypes)}",
                file=sys.stderr,
                flush=True,
            )
        plans.append(read_plan(target.folder(bundle)))
    return plans


def print_plans(plans: list[Plan]) -> None:
    print("\n| batch | networks | encoder | conditioner | denoiser | decoder | peak |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for plan in plans:
        for residency in RESIDENCIES:
            planned = plan_memory(plan, residency)
            totals = " | ".join(megabytes(phase.total_bytes) for phase in planned.phases)
            peak = megabytes(planned.peak_bytes)
            print(f"| {planned.batch} | {residency} | {totals} | **{peak}** |")


def print_batched_vae(bundle: Bundle, batch: int, sms: tuple[int, ...]) -> None:
    """Print what the VAE would take if it ran in batches, as it never does."""
    profile = Profile(batch, batch, batch)
    whole = {
        name: compile_graph(
            bundle.path / bundle.networks[name].graph.name,
            bundle.networks[name],
            profile,
            resolve_target("rtx", sms, profile),
        )
        for name in ("encoder", "decoder")
    }
    activations = ", ".join(
        f"{name} {megabytes(compiled.memory.activation_bytes)} MB"
        for name, compiled in whole.items()
    )
    print(f"\nthe VAE at batch {batch} instead of one image at a time: activations {activations}.")


def print_network(bundle: Bundle, name: NetworkName, sms: tuple[int, ...]) -> None:
    """Print the memory of one network of a bundle whose other networks are not of the real size."""
    for batch in BATCHES:
        profile = Profile(batch, batch, batch)
        graph = bundle.path / bundle.networks[name].graph.name
        target = resolve_target("rtx", sms, profile)
        memory = compile_graph(graph, bundle.networks[name], profile, target).memory
        sizes = (memory.weights_bytes, memory.activation_bytes, memory.io_bytes)
        print(
            f"| {batch} | {name} | {' | '.join(map(megabytes, (*sizes, sum(sizes))))} |", flush=True
        )


def print_unsplit(pipeline: Path, batch: int, sms: tuple[int, ...]) -> None:
    target = resolve_target("rtx", sms[-1:], Profile(batch, batch, batch))
    with torch.no_grad():
        memory = compile_unsplit(pipeline, target, batch).memory
    sizes = (memory.weights_bytes, memory.activation_bytes, memory.io_bytes)
    weights, activations, io = map(megabytes, sizes)
    print(
        f"\nun-split transformer, batch {batch} with guidance: weights {weights}, activations "
        f"{activations} MB, in and out {io} MB, together {megabytes(sum(sizes))} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sm", type=int, nargs="+", default=SMS)
    parser.add_argument(
        "--unsplit", type=Path, metavar="PIPELINE", help="the DiT to export as it is"
    )
    parser.add_argument("--only", choices=NETWORKS, help="one network, and no plan")
    args = parser.parse_args()
    bundle, sms = Bundle.open(args.bundle), tuple(args.sm)
    print(f"{heading('tensorrt-rtx', 'polygraphy', 'torch')}; no GPU\n")
    if args.only:
        print_network(bundle, args.only, sms)
        return
    print_plans(build_engines(bundle, sms))
    print_batched_vae(bundle, BATCHES[-1], sms)
    if args.unsplit:
        print_unsplit(args.unsplit, BATCHES[-1], sms)


if __name__ == "__main__":
    main()
