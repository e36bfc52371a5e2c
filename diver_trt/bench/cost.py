"""The work of a network in one run, counted from its ONNX graph: FLOPs and bytes.

A multiplication and an addition are two FLOPs. Only products count: MatMul, Gemm, Conv, and the
two products of an attention. Everything else (normalisation, softmax, activations, elementwise
arithmetic, copies) does a few operations per value and is counted in bytes.

Two counts of bytes are kept. `least_bytes` is what any implementation has to move: every weight,
input and output once. `operator_bytes` is what an implementation without any fusion moves:
everything that each operator reads and writes. A weight counts in the type that it is stored in,
so one of eight bits behind a DequantizeLinear is one byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diver_trt.bench.graph import Graph, Operator
from diver_trt.bench.shapes import Shape, shapes_in
from diver_trt.errors import BundleError, shown

FLOPS_PER_MULTIPLY_ADD = 2


@dataclass(frozen=True, slots=True)
class Cost:
    """The work of one run, or of several.

    Attributes:
        flops: Floating-point operations of all products; for integer products, as many.
        least_bytes: Bytes of the weights, the inputs and the outputs.
        operator_bytes: Bytes that all operators together read and write if nothing is fused.
        uncounted: Operators that are not in this file's tables, or whose shapes are not known,
            by how often they occur; the other counts do not include their work.
    """

    flops: int
    least_bytes: int
    operator_bytes: int
    uncounted: Mapping[str, int]

    def times(self, runs: int) -> Cost:
        """Return the work of several runs."""
        return Cost(
            self.flops * runs, self.least_bytes * runs, self.operator_bytes * runs, self.uncounted
        )


def count(graph: Graph, size: int) -> Cost:
    """Return the work of one run.

    Args:
        graph: The network's graph.
        size: Size of its dynamic axis, images or conditions.

    Raises:
        BundleError: If an operator does not fit its tensors.
    """
    try:
        return _count(graph, size)
    except (ArithmeticError, LookupError, ValueError) as cause:
        # No engine would run such a graph, but the work is counted before one has seen it.
        raise BundleError(
            f"an operator of the graph does not fit its tensors ({type(cause).__name__}: "
            f"{shown(str(cause))}); export the model again"
        ) from cause


def _count(graph: Graph, size: int) -> Cost:
    shapes, uncounted = shapes_in(graph, size), Counter[str]()
    sizes = _sizes_bytes(graph, shapes)
    flops = moved = 0
    for operator in graph.operators:
        # A stored weight is counted where a product reads it.
        if operator.kind in FREE or _is_stored_weight(operator, graph):
            continue
        tensors = [name for name in (*operator.inputs, *operator.outputs) if name]
        known = all(name in sizes for name in tensors)
        if not known or operator.kind not in {*PRODUCTS, *MOVING}:
            uncounted[operator.kind] += 1
            continue
        if operator.kind in PRODUCTS:
            flops += PRODUCTS[operator.kind](operator, shapes)
        moved += sum(sizes[name] for name in _touched(operator, tensors))
    # Intermediate tensors may stay in caches, so they are not part of the least.
    outside = sum(sizes.get(name, 0) for name in (*graph.inputs, *graph.outputs))
    return Cost(flops, outside + _weight_bytes(graph, sizes), moved, dict(uncounted))


def _sizes_bytes(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Return the bytes of every tensor whose type and shape are known.

    What a DequantizeLinear makes of a weight has the bytes of the stored weight: an engine
    multiplies with that, or converts it in registers.
    """
    values = {**graph.declared, **graph.outputs, **graph.inputs, **graph.weights}
    bits = {name: value.bits for name, value in values.items()}
    sizes: dict[str, int] = {}
    for operator in graph.operators:
        first = bits.get(operator.inputs[0]) if operator.inputs else None
        for name in operator.outputs:
            if bits.get(name) is None:
                bits[name] = _result_bits(operator, first, bits)
    for name, shape in shapes.items():
        if (width := bits.get(name)) is not None:
            # Rounded up: values of four bits are packed by twos.
            sizes[name] = -(-math.prod(shape) * width // 8)
    for operator in graph.operators:
        if _is_stored_weight(operator, graph) and operator.inputs[0] in sizes:
            sizes[operator.outputs[0]] = sizes[operator.inputs[0]]
    return sizes


def _result_bits(
    operator: Operator, first: int | None, bits: Mapping[str, int | None]
) -> int | None:
    """Return the bits of an operator's result where the graph does not state its type."""
    if operator.kind == "DequantizeLinear":
        return bits.get(operator.inputs[1])  # it has its scale's type
    if operator.kind in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return 8
    # Integer products are int32 (https://onnx.ai/onnx/operators/onnx__MatMulInteger.html).
    return 32 if operator.kind in ("MatMulInteger", "ConvInteger") else first


def _is_stored_weight(operator: Operator, graph: Graph) -> bool:
    return operator.kind == "DequantizeLinear" and operator.inputs[0] in graph.weights


def _weight_bytes(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Return the bytes of the weights that a run reads; of a gathered table, its chosen rows."""
    used: set[str] = set()
    gathered = 0
    for operator in graph.operators:
        if operator.kind == "Gather" and operator.inputs[0] in graph.weights:
            gathered += sizes.get(operator.outputs[0], 0)
            used.update(operator.inputs[1:])
        elif operator.kind not in FREE:
            used.update(operator.inputs)
    return gathered + sum(sizes.get(name, 0) for name in used & graph.weights.keys())


def _touched(operator: Operator, tensors: list[str]) -> list[str]:
    """Return the tensors whose bytes an operator moves: a Gather does not read its whole table."""
    return tensors[1:] if operator.kind == "Gather" else tensors


def _matmul(operator: Operator, shapes: Mapping[str, Shape]) -> int:
    # […, m, k] times […, k, n]: each of the results is a sum of k products.
    (result,), depth = operator.outputs, shapes[operator.inputs[0]][-1]
    return FLOPS_PER_MULTIPLY_ADD * math.prod(shapes[result]) * depth


def _gemm(operator: Operator, shapes: Mapping[str, Shape]) -> int:
    left = shapes[operator.inputs[0]]
    depth = left[0] if operator.attributes.get("transA", (0,))[0] else left[1]
    return FLOPS_PER_MULTIPLY_ADD * math.prod(shapes[operator.outputs[0]]) * depth


def _convolution(weight: int) -> Callable[[Operator, Mapping[str, Shape]], int]:
    """Return the count of a convolution whose kernel is the operator's input `weight`."""

    def flops(operator: Operator, shapes: Mapping[str, Shape]) -> int:
        # The kernel is [out, in / groups, height, width]: each output value sums over one filter.
        kernel = shapes[operator.inputs[weight]]
        results = math.prod(shapes[operator.outputs[0]])
        return FLOPS_PER_MULTIPLY_ADD * results * math.prod(kernel[1:])

    return flops


def _transposed_convolution(operator: Operator, shapes: Mapping[str, Shape]) -> int:
    # The kernel is [in, out / groups, height, width]: each input value is spread over one filter.
    values, kernel = (shapes[name] for name in operator.inputs[:2])
    return FLOPS_PER_MULTIPLY_ADD * math.prod(values) * math.prod(kernel[1:])


def _attention(operator: Operator, shapes: Mapping[str, Shape]) -> int:
    # Four axes, [n, heads, tokens, width]: scores of width products, then a sum over all keys.
    query, key, value = (shapes[name] for name in operator.inputs[:3])
    pairs = math.prod(query[:-1]) * key[-2]
    return FLOPS_PER_MULTIPLY_ADD * pairs * (query[-1] + value[-1])


PRODUCTS: dict[str, Callable[[Operator, Mapping[str, Shape]], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
}
"""FLOPs of one run of an operator."""

_MOVING = (
    "Add AveragePool Cast Ceil Clip Concat Cos DequantizeLinear Div DynamicQuantizeLinear "
    "Equal Erf Exp Expand Floor Gather Gelu GlobalAveragePool Greater GroupNormalization "
    "InstanceNormalization LayerNormalization Less Log Max MaxPool Min Mul Neg Pad Pow "
    "QuantizeLinear RMSNormalization Range Reciprocal ReduceMean ReduceSum Relu Resize Round "
    "Sigmoid SimplifiedLayerNormalization Sin Slice Softmax Split Sqrt Sub Swish Tanh Tile "
    "Transpose Where"
)


_FREE = "Constant ConstantOfShape Flatten Identity Reshape Shape Size Squeeze Unsqueeze"
MOVING = frozenset(_MOVING.split())
"""Operators that are counted in bytes only."""

FREE = frozenset(_FREE.split())
"""Operators that describe or rename a tensor without moving it."""
