"""A torch module as an ONNX file that ONNX Runtime and TensorRT 10.3 read."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from torch import nn

from diver_trt.errors import ExportError, first_line
from diver_trt.export.int8 import quantise_weights
from diver_trt.tensors import TensorSpec

OPSET = 20
"""What TensorRT 10.3 parses at most, and the default of torch 2.13; the fused Attention node exists
from 23 on.
"""

EMBED_LIMIT_BYTES = 64 * 1024**2
"""Larger weights go to a file beside the graph: a protobuf ends at 2 GB, and external data can be
mapped instead of parsed.
"""


def graph_from_network(
    network: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    path: Path,
    *,
    int8_weights: bool = False,
) -> Path | None:
    """Write a network's ONNX graph and return the file of its external data, if it has one.

    Args:
        network: The module, in eval mode, taking its inputs in order.
        inputs: Its inputs; a named axis becomes dynamic.
        outputs: Its outputs.
        path: The `.onnx` file to write.
        int8_weights: Whether its products and convolutions get eight-bit weights.

    Raises:
        ExportError: If torch cannot export the network, the graph's tensors are not those declared,
            an input is dead, or the graph holds a fused Attention node.
    """
    try:
        model = traced(network, inputs, outputs)
    # torch raises many classes; the first line of each states what could not be traced.
    except Exception as cause:
        raise ExportError(
            f"{path.name}: torch cannot export this network: {first_line(cause)}"
        ) from cause
    _fold_known_shapes(model.graph)
    if int8_weights:
        quantise_weights(model.graph)
    _forget_origins(model)
    size = sum(
        tensor.nbytes
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
    )
    # Named after the graph: a bundle lists no other file for its weights.
    weights = path.with_name(f"{path.name}.data") if size > EMBED_LIMIT_BYTES else None
    onnx_ir.save(model, path, external_data=weights.name if weights else None)
    _check_graph(path, inputs, outputs)
    return weights


def random_inputs(specs: tuple[TensorSpec, ...], size: int, seed: int) -> dict[str, np.ndarray]:
    """Return standard normal values for floating inputs and 0 or 1 for labels, an array each.

    The smallest model has one class and the null class.

    Separate matters: torch.export merges inputs that are one tensor object, and leaves a graph
    input that nothing reads.
    """
    generator = np.random.default_rng(seed)
    return {
        spec.name: (
            generator.integers(0, 2, spec.concrete(size))
            if spec.dtype == "int64"
            else generator.standard_normal(spec.concrete(size)).astype(spec.dtype)
        )
        for spec in specs
    }


def traced(
    network: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> onnx_ir.Model:
    """Return the graph that torch makes of a network, as torch makes it."""
    # Two of each, since torch.export takes a size of 0 or 1 for a constant:
    # https://docs.pytorch.org/docs/main/compile/dynamic_shapes_zero_one_specialization.html
    arrays = random_inputs(inputs, size=2, seed=0)
    # diffusers' Upsample2D takes another (equal) path from 64 images on; the graph has no such
    # limit.
    dynamic = {
        dim: torch.export.Dim(dim, max=63)
        for spec in inputs
        for dim in spec.shape
        if isinstance(dim, str)
    }
    shapes = tuple(
        {axis: dynamic[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in inputs
    )
    with _quiet(), torch.no_grad():
        # Traced here, not by torch.onnx.export: where a dynamic axis cannot hold, that one silently
        # falls back to a static graph.
        program = torch.onnx.export(
            torch.export.export(
                network,
                tuple(torch.from_numpy(array) for array in arrays.values()),
                dynamic_shapes=shapes,
            ),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=shapes,  # the program has them already; here they name the axes
            verbose=False,
        )
    assert program is not None, "the torch.export-based exporter returns a program"
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter logs, warns and prints from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fold_known_shapes(graph: onnx_ir.Graph) -> None:
    """Replace the shape that a Reshape takes from a Shape node by a constant.

    torch exports a group normalisation with the shape of its input read at run time, though all
    sizes but the batch are known; -1 stands for that one.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or (source := node.inputs[1]) is None:
            continue
        shaped = source.producer()
        if shaped is None or shaped.op_type != "Shape" or shaped.inputs[0] is None:
            continue
        known = shaped.inputs[0].shape
        # A Shape with `start` or `end` gives only some of the sizes.
        if known is None or source.shape != [len(known)]:
            continue
        # A Reshape infers one size only.
        if sum(not isinstance(size, int) for size in known) > 1:
            continue
        sizes = np.array([size if isinstance(size, int) else -1 for size in known], np.int64)
        name = f"{node.outputs[0].name}/shape"
        constant = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(sizes, name=name))
        graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        if not source.uses():
            graph.remove(shaped, safe=True)


def _forget_origins(model: onnx_ir.Model) -> None:
    """Drop the stack traces that torch writes on every node.

    They hold this machine's paths, and make up half of a small graph.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def _check_graph(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    try:
        # By path, which alone works for more than 2 GiB: https://onnx.ai/onnx/api/checker.html
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as cause:
        raise ExportError(f"{path.name}: not a valid ONNX graph: {first_line(cause)}") from cause
    model = onnx.load(str(path), load_external_data=False)
    for direction, found, wanted in (
        ("reads", model.graph.input, inputs),
        ("writes", model.graph.output, outputs),
    ):
        declared = tuple(_spec(value) for value in found)
        if declared != wanted:
            raise ExportError(
                f"{path.name} {direction} {', '.join(map(str, declared))}; expected "
                f"{', '.join(map(str, wanted))}"
            )
    if any(node.op_type == "Attention" for node in model.graph.node):
        raise ExportError(
            f"{path.name} holds a fused Attention node, which TensorRT 10 cannot run; export with "
            f"opset {OPSET}"
        )
    if dead := dead_inputs(model):
        raise ExportError(
            f"{path.name}: nothing reads the input {', '.join(dead)}; the traced module ignores it"
        )


def dead_inputs(model: onnx.ModelProto) -> list[str]:
    """Return the graph inputs from which no path leads to an output."""
    writers = {name: node for node in model.graph.node for name in node.output}
    alive: set[str] = set()
    pending = [value.name for value in model.graph.output]
    while pending:
        name = pending.pop()
        if name not in alive:
            alive.add(name)
            if name in writers:
                pending.extend(writers[name].input)
    return [value.name for value in model.graph.input if value.name not in alive]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(
        value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, dims
    )
