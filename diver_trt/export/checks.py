"""The exporter's own check: ONNX Runtime against the torch model, at two batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diver_trt.contract import Precision
from diver_trt.errors import ExportError
from diver_trt.export.onnx_graph import random_inputs
from diver_trt.runtime.backends.onnx_package import import_onnxruntime
from diver_trt.tensors import TensorSpec

# At 1 an axis may be dropped or broadcast by mistake; 3 is a batch that the trace did not see.
BATCHES = (1, 3)

TOLERANCES: dict[Precision, float] = {
    # ONNX Runtime's group normalisation: up to 3.1e-5 in the decoder of 512 pixels with random
    # weights (benchmarks/real_sd.py). A wrong weight, axis or coefficient is far above it.
    # `compare` has the same limit for the VAE, and a smaller one for the other networks.
    "fp32": 1e-4,
    # float16 has 11 bits, 5e-4 a rounding, and a network rounds many times on one path.
    "fp16": 1e-2,
    # A weight's rounding is up to 1/254 of its channel's largest, which is some four times the
    # size of most: 1e-2 of a product, and products follow each other.
    "int8": 5e-2,
    "int8-fp16": 5e-2,
}
"""Largest relative L2 distance to the float32 module."""


def check_against_module(
    path: Path,
    reference: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    precision: Precision,
) -> float:
    """Run a graph in ONNX Runtime and its float32 module in torch on the same random inputs.

    Args:
        path: The `.onnx` file.
        reference: The float32 module.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        precision: The graph's; decides the tolerance.

    Returns:
        The largest relative L2 distance found.

    Raises:
        ExportError: If an output has another shape, is not finite, or is further away than
            `TOLERANCES` allows.
    """
    runtime = import_onnxruntime()
    session = runtime.InferenceSession(path, _frugal(runtime), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in BATCHES:
        arrays = random_inputs(inputs, batch, seed=batch)
        found = session.run(None, arrays)
        with torch.no_grad():
            tensors = (torch.from_numpy(array) for array in arrays.values())
            expected = reference(
                # Conditions of an fp16 bundle are float16, and the module's weights are float32.
                *(tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors)
            ).numpy()
        for spec, array in zip(outputs, found, strict=True):
            if array.shape != spec.concrete(batch):
                raise ExportError(
                    f"{path.name}: {spec.name} has shape {list(array.shape)} at batch {batch}, "
                    f"expected {spec}"
                )
            if not np.isfinite(array).all():
                raise ExportError(
                    f"{path.name}: {spec.name} is not finite at batch {batch}; "
                    f"{_overflow(expected, precision)}"
                )
        # Every network of a bundle has one output.
        error = relative_l2(found[0], expected)
        # Not after the loop: max() would drop a NaN, which torch's output may hold.
        if not error <= TOLERANCES[precision]:
            raise ExportError(
                f"{path.name}: ONNX Runtime is a relative {error:.1e} away from torch at batch "
                f"{batch}, expected at most {TOLERANCES[precision]:.0e} for {precision}"
            )
        worst = max(worst, error)
    return worst


def _frugal(runtime: Any) -> Any:
    """Return options that keep weights in their mapped file, and free every value after its use.

    The torch model is in memory too, and a UNet's attention maps take gigabytes.
    """
    options = runtime.SessionOptions()
    # Prepacking copies weights into the layout of a kernel, out of the mapped file.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # An arena keeps freed memory for the next run.
    options.enable_cpu_mem_arena = False
    return options


def _overflow(expected: NDArray[np.generic], precision: Precision) -> str:
    """Return the cause of an overflow: the weights, or the range of the precision."""
    if not np.isfinite(expected).all():
        return "neither is torch's in fp32: the weights are too large. Give other weights."
    return (
        f"torch's is in fp32: the model overflows in {precision}. Export it with --precision fp32."
    )


def relative_l2(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return the L2 norm of the difference over that of `expected`; 0 if both are zero.

    The outputs of an untrained network may be zero.
    """
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    if difference == 0:
        return 0.0
    size = np.linalg.norm(expected.astype(np.float64))
    return float(difference / size) if size else float("inf")
