"""What eight-bit weights should be multiplied with: floats, or activations of eight bits.

    python -m benchmarks.int8_activations FP32 INT8 [--batch 8,100] [--rounds 15] [--images]

FP32 and INT8 are bundles of one model. A step of the denoiser runs on OpenVINO with the weights
dequantised, with activations quantised as it runs ("dynamic", one scale for so many channels of a
token), and with activations quantised by one constant scale per product ("static"), in turn with
fp32; static on ONNX Runtime too. With `--images` the constants are the largest magnitudes along the
trajectories of the ten distilled digits, and the hundred digits are recovered in each way; without,
they come from one step on random inputs, which is enough to time it.

Only a processor with VNNI instructions quantises dynamically; on others these rows are those of
float activations.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.int8 import difference_cells, recovered
from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import distilled_inputs
from diver_trt.export.int8 import MIN_VALUES, output_axis, quantise_weights
from diver_trt.files import FileRecord
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.openvino import OpenVinoEngine, OpenVinoSession, _Compiler
from diver_trt.runtime.recoverer import Recoverer

Inputs = dict[str, NDArray[Any]]

GROUPS = (32, 64, 128)
EVERY = 3
"""Of a trajectory every third step is observed."""


def products(graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """Return the nodes whose weights an int8 export quantises."""
    found = []
    for node in graph:
        weight = node.inputs[1] if output_axis(node) is not None else None
        if weight is not None and weight.const_value is not None:
            found += [node] if weight.const_value.size >= MIN_VALUES else []
    return found


def static_graph(graph: Path, target: Path, observed: Sequence[Inputs]) -> None:
    """Write a graph with int8 weights and activations that have a constant scale per product."""
    largest = largest_magnitudes(graph, observed, target.parent)
    model = onnx_ir.load(graph)
    quantised: dict[str, onnx_ir.Value] = {}
    for node in products(model.graph):
        value = node.inputs[0]
        assert value is not None and value.name is not None, "a product reads a named value"
        if value.name not in quantised:
            quantised[value.name] = _quantised(model.graph, node, value, largest[value.name])
        node.replace_input_with(0, quantised[value.name])
    quantise_weights(model.graph)
    onnx_ir.save(model, target, external_data=f"{target.name}.data")


def _quantised(
    graph: onnx_ir.Graph, before: onnx_ir.Node, value: onnx_ir.Value, largest: float
) -> onnx_ir.Value:
    constants = []
    for suffix, constant in (("scale", np.float32(largest / 127)), ("zero", np.int8(0))):
        tensor = onnx_ir.tensor(np.array(constant), name=f"{value.name}/{suffix}")
        constants.append(onnx_ir.Value(name=tensor.name, const_value=tensor))
        graph.register_initializer(constants[-1])
    rounded = onnx_ir.node("QuantizeLinear", inputs=[value, *constants])
    restored = onnx_ir.node("DequantizeLinear", inputs=[rounded.outputs[0], *constants])
    rounded.outputs[0].name = f"{value.name}/int8"
    restored.outputs[0].name = f"{value.name}/restored"
    graph.insert_before(before, [rounded, restored])
    return restored.outputs[0]


def largest_magnitudes(graph: Path, observed: Sequence[Inputs], scratch: Path) -> dict[str, float]:
    """Return the largest magnitude of what each product reads, over all observed inputs."""
    model = onnx_ir.load(graph)
    largest: dict[str, float] = {}
    for node in products(model.graph):
        value = node.inputs[0]
        assert value is not None and value.name is not None, "a product reads a named value"
        if value.name not in largest:
            largest[value.name] = 0.0
            model.graph.outputs.append(value)
    path = scratch / "observed.onnx"
    onnx_ir.save(model, path, external_data="observed.onnx.data")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = list(largest)
    for inputs in observed:
        for name, values in zip(names, session.run(names, inputs), strict=True):
            largest[name] = max(largest[name], float(np.abs(values).max()))
    return largest


def trajectories(bundle: Bundle) -> list[Inputs]:
    """Return what the denoiser reads in every third step of recovering the ten digits."""
    inputs, observed = distilled_inputs(bundle, 10), list[Inputs]()
    run = OpenVinoEngine.run

    def observing(engine: OpenVinoEngine) -> None:
        if engine._name == "denoiser":
            buffers = engine._turns[engine._next]
            observed.append({k: v.copy() for k, v in buffers.items() if k != "next_latent"})
        run(engine)

    with (
        mock.patch.object(OpenVinoEngine, "run", observing),
        Recoverer(bundle, Recipe(), engine="openvino", batch=10) as recoverer,
    ):
        for _ in recoverer(inputs.images, inputs.labels, noise=inputs.noise):
            pass
    return observed[::EVERY]


def random_step(bundle: Bundle, batch: int) -> Inputs:
    """Return random inputs of the denoiser."""
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.concrete(batch)).astype(np.float32)
        for spec in bundle.networks["denoiser"].inputs
    }


def static_bundle(int8: Bundle, graph: Path, folder: Path) -> Bundle:
    """Return the int8 bundle with a denoiser whose activations are quantised too."""
    shutil.copytree(int8.path, folder, ignore=shutil.ignore_patterns("bundle.json", "denoiser*"))
    for file in graph.parent.glob(f"{graph.name}*"):
        shutil.copy(file, folder)
    weights = folder / f"{graph.name}.data"
    network = replace(
        int8.networks["denoiser"],
        graph=FileRecord.of(folder / graph.name),
        weights=FileRecord.of(weights) if weights.exists() else None,
    )
    replace(int8, path=folder, networks={**int8.networks, "denoiser": network}).write()
    return Bundle.open(folder)


@contextmanager
def activations_per_scale(channels: int) -> Iterator[None]:
    """Let OpenVINO give so many channels of a token one scale; 0 leaves activations as they are."""
    settings = _Compiler._settings

    def changed(compiler: _Compiler) -> dict[str, Any]:
        return {**settings(compiler), "DYNAMIC_QUANTIZATION_GROUP_SIZE": channels}

    with mock.patch.object(_Compiler, "_settings", changed):
        yield


def openvino_step(bundle: Bundle, inputs: Inputs, channels: int) -> Callable[[], None]:
    """Return a step of the denoiser on OpenVINO, ready to run."""
    batch = len(inputs["latent"])
    with activations_per_scale(channels):
        engine = OpenVinoSession(bundle, batch, keep=False).open("denoiser")
    for name, values in inputs.items():
        engine.write(name, values)
    return engine.run


def onnx_step(bundle: Bundle, inputs: Inputs) -> Callable[[], object]:
    """Return a step of the denoiser on ONNX Runtime, ready to run."""
    graph = bundle.verified("denoiser")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def time_steps(fp32: Bundle, int8: Bundle, static: Bundle, batch: int, rounds: int) -> None:
    inputs = random_step(fp32, batch)
    steps: dict[str, Callable[[], object]] = {
        "openvino fp32": openvino_step(fp32, inputs, 0),
        "openvino, float activations": openvino_step(int8, inputs, 0),
        **{f"openvino, dynamic {n}": openvino_step(int8, inputs, n) for n in GROUPS},
        "openvino, static": openvino_step(static, inputs, 0),
        "onnx fp32": onnx_step(fp32, inputs),
        "onnx, float activations": onnx_step(int8, inputs),
        "onnx, static": onnx_step(static, inputs),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number > 0:  # the first round starts threads and touches pages
                times[name].append(time.perf_counter() - started)
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["openvino fp32"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {batch} | {name} | {1e3 * statistics.median(taken):.1f} ms "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


def compare_images(fp32: Bundle, int8: Bundle, static: Bundle) -> None:
    for engine in ("openvino", "onnx"):
        reference = recovered(fp32, engine)
        ways = [("float activations", int8, 0), ("static", static, 0)]
        if engine == "openvino":
            ways[1:1] = [(f"dynamic {n}", int8, n) for n in GROUPS]
        for name, bundle, channels in ways:
            with activations_per_scale(channels):
                images = recovered(bundle, engine)
            mean, lowest, _ = difference_cells(images, reference)
            print(f"| {engine}, {name} | {mean} | {lowest} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--batch", default="8,100", help="batch sizes, comma-separated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", action="store_true", help="recover the digits in each way")
    arguments = parser.parse_args()
    fp32, int8 = Bundle.open(arguments.fp32), Bundle.open(arguments.int8)
    observed = trajectories(fp32) if arguments.images else [random_step(fp32, 1)]
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "denoiser.onnx"
        static_graph(fp32.path / "denoiser.onnx", graph, observed)
        static = static_bundle(int8, graph, Path(scratch) / "static")
        print("| batch | activations | a step | of OpenVINO's fp32 |\n|---:|---|---:|---:|")
        for batch in map(int, arguments.batch.split(",")):
            time_steps(fp32, int8, static, batch, arguments.rounds)
        if arguments.images:
            print("\n| engine, activations | mean PSNR | worst PSNR |\n|---|---:|---:|")
            compare_images(fp32, int8, static)


if __name__ == "__main__":
    main()
