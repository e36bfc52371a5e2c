"""What options of ONNX Runtime's CUDA provider and fused nodes do to a network's time and memory.

    python -m benchmarks.cuda_options /tmp/real-size/fp16

Each network runs on buffers that stay on the device, with one option more from row to row; memory
is by how much the device's free memory fell. Prints the table of `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import numpy as np

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.runtime.backends.onnx_cuda import UNFIT_OPTIMIZERS, with_fused_nodes
from diver_trt.runtime.backends.onnx_package import import_onnxruntime, read_weights_from
from diver_trt.runtime.backends.tensorrt.cuda import Cuda, import_cuda

PLAIN = {"use_tf32": "0"}
GRAPH = {**PLAIN, "enable_cuda_graph": "1"}
SAME = {**GRAPH, "arena_extend_strategy": "kSameAsRequested"}
HEURISTIC = {**SAME, "cudnn_conv_algo_search": "HEURISTIC"}
FUSED = "and fused nodes"
CASES: list[tuple[NetworkName, int, str, dict[str, str]]] = [
    ("denoiser", 1, "defaults, without TF32", PLAIN),
    ("denoiser", 1, "CUDA graph", GRAPH),
    ("denoiser", 1, "and memory as requested", SAME),
    ("denoiser", 1, FUSED, SAME),
    ("denoiser", 8, "defaults, without TF32", PLAIN),
    ("denoiser", 8, "CUDA graph", GRAPH),
    ("denoiser", 8, "and memory as requested", SAME),
    ("denoiser", 8, FUSED, SAME),
    ("denoiser", 16, "and memory as requested", SAME),
    ("denoiser", 16, FUSED, SAME),
    ("decoder", 1, "defaults, without TF32", PLAIN),
    ("decoder", 1, "CUDA graph, memory as requested", SAME),
    ("decoder", 1, "and heuristic search", HEURISTIC),
    ("decoder", 1, "and channels last", {**HEURISTIC, "prefer_nhwc": "1"}),
]
WARM_UP, RUNS = 6, 40


def measure(
    runtime: Any,
    bundle: Bundle,
    network: NetworkName,
    batch: int,
    options: dict[str, str],
    fused: bool,
) -> tuple[list[float], list[Any]]:
    """Return the seconds of every run on random inputs, and what holds the device's memory."""
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 3
    read_weights_from(quiet, bundle.path)
    graph = bundle.path / f"{network}.onnx"
    session = runtime.InferenceSession(
        with_fused_nodes(graph, bundle.precision) if fused else graph,
        quiet,
        ["CUDAExecutionProvider"],
        [options],
        disabled_optimizers=UNFIT_OPTIMIZERS if fused else None,
    )
    binding, generator = session.io_binding(), np.random.default_rng(0)
    declared = bundle.networks[network]
    buffers = {
        spec.name: runtime.OrtValue.ortvalue_from_numpy(
            (generator.standard_normal(spec.concrete(batch)) / 2).astype(spec.dtype), "cuda", 0
        )
        for spec in (*declared.inputs, *declared.outputs)
    }
    for spec in declared.inputs:
        binding.bind_ortvalue_input(spec.name, buffers[spec.name])
    for spec in declared.outputs:
        binding.bind_ortvalue_output(spec.name, buffers[spec.name])
    seconds = []
    for _ in range(WARM_UP + RUNS):
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:], [session, binding, buffers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    bundle = Bundle.open(parser.parse_args().bundle)
    runtime, device = import_onnxruntime("gpu"), Cuda(import_cuda())
    runtime.set_default_logger_severity(4)  # cuDNN reports every plan that it rejects as an error
    print("| network | batch | options | median ms | p90 | memory, MB |")
    print("|---|---:|---|---:|---:|---:|")
    for network, batch, title, options in CASES:
        before, _ = device.memory()
        seconds, held = measure(runtime, bundle, network, batch, options, title == FUSED)
        used = (before - device.memory()[0]) / 1e6
        median, late = np.percentile(seconds, (50, 90)) * 1e3
        print(f"| {network} | {batch} | {title} | {median:.2f} | {late:.2f} | {used:,.0f} |")
        del held
        gc.collect()
    device.close()


if __name__ == "__main__":
    main()
