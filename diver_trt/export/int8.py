"""Eight-bit weights: int8 initializers, each behind a DequantizeLinear, in place of float ones.

A weight `w` becomes `scale * q` with `q` in [-127, 127] and one scale per output channel, its
largest magnitude over 127 (symmetric, Integer Quantization, arXiv 2004.09602, section 3.1.2). No
data is needed: activations stay what they were. Every engine reads this form. OpenVINO keeps the
integers, and on a processor with VNNI instructions multiplies them by activations that it quantises
as it runs; TensorRT-RTX keeps them in memory; ONNX Runtime multiplies in float32.

Activations with constant scales, calibrated on trajectories, were tried and left out: a step takes
a fifth less time than with OpenVINO's own scales, and the images are 4 dB further from float32's
(benchmarks/README.md).
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from numpy.typing import NDArray

MIN_VALUES = 4096
"""Smaller weights stay as they are: together they are a thousandth of a network, and the first and
last layers among them touch every pixel.
"""

_LARGEST = 127
"""The largest integer; -128 has no counterpart, and a symmetric code leaves it out."""


def quantise_weights(graph: onnx_ir.Graph) -> None:
    """Replace the weights of a graph's products and convolutions by int8 ones, in place.

    Args:
        graph: A graph whose weights are initializers, float32 or float16.
    """
    quantised: dict[tuple[str, int], onnx_ir.Value] = {}
    # A list, since the loop inserts nodes.
    for node in list(graph):
        axis = output_axis(node)
        weight = node.inputs[1] if axis is not None else None
        if axis is None or weight is None or weight.const_value is None:
            continue
        values = weight.const_value.numpy()
        if values.size < MIN_VALUES:
            continue
        name = str(weight.name)
        # Once for all nodes that read a weight along one axis; another axis has other scales.
        if (name, axis) not in quantised:
            quantised[name, axis] = _dequantised(graph, node, name, values, axis)
        node.replace_input_with(1, quantised[name, axis])
        # It stays if a node reads it in float.
        if not weight.uses():
            del graph.initializers[name]


def output_axis(node: onnx_ir.Node) -> int | None:
    """Return the axis of a node's weight that counts output channels, or None without a weight."""
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case "MatMul":
            weight = node.inputs[1]
            # A weight of more axes is a batch of matrices, whose outputs span several axes.
            return 1 if weight is not None and weight.shape and len(weight.shape) == 2 else None
    return None


def _dequantised(
    graph: onnx_ir.Graph, before: onnx_ir.Node, name: str, values: NDArray[np.generic], axis: int
) -> onnx_ir.Value:
    """Add a weight in eight bits to a graph, and return the value that dequantises it."""
    integers, scale = quantise(values, axis)
    # A weight that is read along two axes is stored twice, under different names.
    stem = f"{name}/axis{axis}" if f"{name}/int8" in graph.initializers else name
    constants = []
    for suffix, array in (("int8", integers), ("scale", scale)):
        tensor = onnx_ir.tensor(array, name=f"{stem}/{suffix}")
        constants.append(onnx_ir.Value(name=tensor.name, const_value=tensor))
        graph.register_initializer(constants[-1])
    node = onnx_ir.node("DequantizeLinear", inputs=constants, attributes={"axis": axis})
    (output,) = node.outputs
    output.name = f"{stem}/dequantised"
    graph.insert_before(before, node)
    return output


def quantise(
    values: NDArray[np.generic], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.generic]]:
    """Return int8 integers and the scale of each index of `axis`, in the type of `values`.

    Args:
        values: A weight, floating, of any rank.
        axis: The axis that has a scale for each index.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values.astype(np.float32)).max(axis=others, keepdims=True)
    # A channel of zeros has no scale of its own, and any gives zeros.
    exact = np.where(largest > 0, largest / _LARGEST, 1)
    # In the weight's type: DequantizeLinear writes the type of its scale
    # (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html).
    scale = exact.astype(values.dtype)
    # Rounded up: float16 rounds the scales of very small weights to 0, or so far down that the
    # largest weights would be clipped.
    scale = np.where(scale < exact, np.nextafter(scale, np.inf, dtype=values.dtype), scale)
    # Divided by the scale as it is stored, so that its own rounding is not an error of the product.
    integers = np.rint(values.astype(np.float32) / scale.astype(np.float32))
    return np.clip(integers, -_LARGEST, _LARGEST).astype(np.int8), scale.reshape(-1)
