"""The smallest faults that `diver-trt compare` finds: each weight of the digits enlarged in turn.

    python -m benchmarks.sieve

Each matrix and kernel of the encoder, the denoiser and the decoder is multiplied by a factor, in a
bundle of either precision that ONNX Runtime runs on the CPU, and compared with torch in float32 on
a few distilled digits, under the paper's recipe. A fault is placed if the only printed cause names
its place: in the denoiser a block's attention or MLP, or the first or last layer, otherwise the
network. Prints the table of `benchmarks/README.md`, and below it the weights that pass and those
that are found and not placed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.heading import heading
from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import distilled_inputs
from diver_trt.comparison.lineup import bundle_participant, torch_participant
from diver_trt.comparison.runs import Reference, record
from diver_trt.comparison.verdict import Comparison, compare_engine
from diver_trt.contract import NetworkName, Precision
from diver_trt.digits import default_bundle
from diver_trt.export.exporter import export_bundle
from diver_trt.models import ModelOptions
from diver_trt.models.dit import Dit, load_model
from diver_trt.recipe import Recipe
from tests.comparison.faults import plant, scale_initializer

MODEL = Path(__file__).parent.parent / "examples" / "digits" / "dit-digits"
NETWORKS: tuple[NetworkName, ...] = ("encoder", "denoiser", "decoder")
FACTORS: dict[Precision, tuple[float, ...]] = {
    "fp32": (1.001, 1.01),
    "fp16": (1.01, 1.02, 1.05, 1.1),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for one wrong weight: the levels that failed, and whether its place was named."""

    weight: str
    inside: bool  # the network alone, or its blocks
    steps: bool
    images: bool
    placed: bool

    @property
    def found(self) -> bool:
        return self.inside or self.steps or self.images


def weights_of(path: Path) -> dict[str, str]:
    """Return the constants that a graph multiplies by, by the model's names for them."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Conv") or node.input[1] not in constants:
            continue
        name = node.input[1]
        # The exporter transposes and renames the weight, but not the bias beside it.
        if node.op_type == "MatMul":
            (add,) = (other for other in graph.node if node.output[0] in other.input)
            name = next(name for name in add.input if name in constants).replace("bias", "weight")
        found[name] = node.input[1]
    return found


def place_of(network: NetworkName, weight: str) -> str:
    """Return the text by which a cause names the place of a weight."""
    if network != "denoiser":
        return f"the {network} is a relative"
    weight = weight.removeprefix("predictor.")
    if weight.startswith("blocks."):
        _, block, part, *_ = weight.split(".")
        return f"block {int(block) + 1}, {'MLP' if part == 'mlp' else part}"
    return {"patch_projection": "patch embedding", "final_projection": "final layer"}[
        weight.split(".")[0]
    ]


def judge(network: NetworkName, weight: str, comparison: Comparison) -> Outcome:
    failed = {check.subject for check in comparison.checks if not check.passed}
    cause = comparison.causes[0] if len(comparison.causes) == 1 else ""
    return Outcome(
        weight=weight,
        inside=bool(failed & {f"{network} alone", "block by block"}),
        steps=bool(failed & {"every step alone", "what steps change"}),
        images="final images" in failed,
        placed=place_of(network, weight) in cause,
    )


def sift(
    bundle: Bundle, network: NetworkName, factor: float, hold: Callable[[Bundle], Comparison]
) -> list[Outcome]:
    """Multiply every weight of a network by a factor, one at a time."""
    outcomes = []
    for weight, constant in weights_of(bundle.path / f"{network}.onnx").items():
        with tempfile.TemporaryDirectory() as folder:
            wrong = plant(
                bundle, Path(folder) / "planted", {network: scale_initializer(constant, factor)}
            )
            outcomes.append(judge(network, weight, hold(wrong)))
    return outcomes


def show(
    network: NetworkName, precision: Precision, factor: float, outcomes: list[Outcome]
) -> None:
    counts = [
        len(outcomes),
        *(
            sum(getattr(one, what) for one in outcomes)
            for what in ("found", "inside", "steps", "images", "placed")
        ),
    ]
    print(f"| {precision} | {network} | {factor:g} | {' | '.join(map(str, counts))} |", flush=True)


def comparing(model: Dit, samples: int) -> Callable[[Bundle], Comparison]:
    """Return a function that compares a bundle with the model."""
    digits, recipe = Bundle.open(default_bundle()), Recipe()
    inputs = distilled_inputs(digits, samples)
    participant = torch_participant(model, digits, samples, "fp32")
    reference = Reference(participant, record(participant, inputs, recipe), participant.probe())
    return lambda bundle: compare_engine(
        reference, bundle_participant("onnx", "onnx", bundle, samples), inputs, recipe
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2)
    options: Any = parser.parse_args()
    packages = ("torch", "diffusers", "onnxruntime", "numpy")
    measured_with = heading(*packages, threads=torch.get_num_threads())
    print(f"{measured_with}; {options.samples} digits\n")
    model = load_model(str(MODEL), ModelOptions(timestep_frequencies="diffusers"))
    hold = comparing(model, options.samples)
    missed = []
    print(
        "| precision | network | factor | weights | found | by network or blocks | by steps "
        "| by images | placed |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for precision, factors in FACTORS.items():
            path = Path(folder) / precision
            for _ in export_bundle(model, path, precision):
                pass
            for network in NETWORKS:
                for factor in factors:
                    started = time.monotonic()
                    outcomes = sift(Bundle.open(path), network, factor, hold)
                    show(network, precision, factor, outcomes)
                    print(
                        f"{network}: {time.monotonic() - started:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                    passing = [one.weight for one in outcomes if not one.found]
                    misplaced = [one.weight for one in outcomes if one.found and not one.placed]
                    for what, weights in (
                        ("passing", passing),
                        ("found and not placed", misplaced),
                    ):
                        missed += (
                            [f"{precision} {network}, {factor:g}, {what}: {', '.join(weights)}"]
                            if weights
                            else []
                        )
    print("", *missed, sep="\n")


if __name__ == "__main__":
    main()
