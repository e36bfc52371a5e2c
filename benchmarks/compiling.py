"""Compiling a graph that belongs to no bundle."""

from __future__ import annotations

from pathlib import Path

from diver_trt.bundle import Network
from diver_trt.contract import NetworkName
from diver_trt.files import FileRecord
from diver_trt.runtime.backends.tensorrt.compiler import Compiled, compile_graph
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import Target
from diver_trt.tensors import TensorSpec


def compile_alone(
    path: Path,
    name: NetworkName,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: int,
    target: Target,
) -> Compiled:
    """Compile a graph for one batch size, as the network `name` of a bundle would be.

    Args:
        path: The `.onnx` file.
        name: The network whose place it takes.
        inputs: Its inputs.
        outputs: Its outputs.
        batch: Its batch size.
        target: GPUs and backend.
    """
    # Only a bundle's own build reads the hash of the weights and the number of parameters.
    network = Network(
        name=name,
        graph=FileRecord.of(path),
        weights=None,
        inputs=inputs,
        outputs=outputs,
        parameters=0,
    )
    return compile_graph(path, network, Profile(batch, batch, batch), target)
