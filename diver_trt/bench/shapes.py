"""The shape of every tensor of a graph in one run, with the dynamic axis set to a size.

The exporter's graphs declare most shapes, with expressions such as `2*n` for what depends on the
batch. Those that they leave open are inferred: they hang on shapes that the graph itself computes,
or belong to operators that a later pass added, such as one that quantises weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from diver_trt.bench.graph import Graph, Operator, Value

Shape = tuple[int, ...]

_PRODUCT = re.compile(r"\w+(\s*\*\s*\w+)*")


def shapes_in(graph: Graph, size: int) -> dict[str, Shape]:
    """Return the shape of every tensor that is known, by name.

    Args:
        graph: The graph.
        size: Size of its dynamic axis, images or conditions.
    """
    # A graph of the exporter has one dynamic axis: images, or conditions.
    axes = {
        dim: size for value in graph.inputs.values() for dim in value.shape if isinstance(dim, str)
    }
    shapes: dict[str, Shape] = {}
    for values in (graph.weights, graph.inputs, graph.outputs, graph.declared):
        for name, value in values.items():
            if (shape := _concrete(value, axes)) is not None:
                shapes[name] = shape
    integers = dict(graph.integers)
    for operator in graph.operators:
        _compute_integers(operator, shapes, integers)
        for name in operator.outputs:
            if name in integers:
                shapes.setdefault(name, (len(integers[name]),))
        for position, name in enumerate(operator.outputs):
            if name and name not in shapes:
                shape = _inferred(operator, position, shapes, integers)
                if shape is not None:
                    shapes[name] = shape
    return shapes


def _concrete(value: Value, axes: Mapping[str, int]) -> Shape | None:
    """Return a declared shape in numbers, or None if one of its sizes cannot be evaluated."""
    sizes = [dim if isinstance(dim, int) else _evaluate(dim, axes) for dim in value.shape]
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


def _evaluate(expression: str, axes: Mapping[str, int]) -> int | None:
    """Return the value of a product such as `2*n`, or None for any other expression."""
    if not _PRODUCT.fullmatch(expression):
        return None
    factors = [part.strip() for part in expression.split("*")]
    values = [int(part) if part.isdecimal() else axes.get(part) for part in factors]
    known = [value for value in values if value is not None]
    return math.prod(known) if len(known) == len(values) else None


def _compute_integers(
    operator: Operator, shapes: Mapping[str, Shape], integers: dict[str, Shape]
) -> None:
    """Keep the result of an operator that computes a shape, as far as its inputs are known."""
    if operator.kind == "Shape" and (shape := shapes.get(operator.inputs[0])) is not None:
        (start,) = operator.attributes.get("start", (0,))
        (end,) = operator.attributes.get("end", (len(shape),))
        integers[operator.outputs[0]] = shape[start:end]
    elif operator.kind in _ON_INTEGERS:
        given = [integers.get(name) for name in operator.inputs if name]
        known = [values for values in given if values is not None]
        if len(known) == len(given):
            integers[operator.outputs[0]] = _ON_INTEGERS[operator.kind](known)


def _sliced(inputs: list[Shape]) -> Shape:
    # Inputs are data, starts, ends, axes and steps; a list has one axis only
    # (https://onnx.ai/onnx/operators/onnx__Slice.html).
    values, starts, ends = inputs[:3]
    (step,) = inputs[4] if len(inputs) > 4 else (1,)
    return values[starts[0] : ends[0] : step]


_ON_INTEGERS: dict[str, Callable[[list[Shape]], Shape]] = {
    "Concat": lambda inputs: sum(inputs, ()),
    "Gather": lambda inputs: tuple(inputs[0][index] for index in inputs[1]),
    "Slice": _sliced,
    **dict.fromkeys(
        ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), lambda inputs: inputs[0]
    ),
}
"""Results of operators on lists of whole numbers, of one axis."""


def _inferred(
    operator: Operator, position: int, shapes: Mapping[str, Shape], integers: Mapping[str, Shape]
) -> Shape | None:
    """Return the shape of one output of an operator, or None if it cannot be inferred."""
    inputs = [shapes.get(name) for name in operator.inputs if name]
    known = [shape for shape in inputs if shape is not None]
    if not known or len(known) != len(inputs):
        return None
    if operator.kind == "Reshape":
        target = integers.get(operator.inputs[1])
        return None if target is None else _reshaped(known[0], target)
    if operator.kind == "DynamicQuantizeLinear" and position > 0:
        return ()  # its scale and its zero point
    rule = _RULES.get(operator.kind)
    return rule(operator, known) if rule and position == 0 else None


def _reshaped(shape: Shape, target: Shape) -> Shape:
    """Return the shape that Reshape gives: 0 keeps a size, -1 takes what is left."""
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    if -1 in sizes:
        others = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // max(others, 1)
    return tuple(sizes)


def _first(_: Operator, inputs: list[Shape]) -> Shape:
    return inputs[0]


def _broadcast(_: Operator, inputs: list[Shape]) -> Shape:
    return broadcast(*inputs)


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that elementwise operators give, by NumPy's rules."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    # An axis of 0 beside one of 1 gives 0, which max would miss.
    return tuple(0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True))


def _matrix_product(_: Operator, inputs: list[Shape]) -> Shape:
    left, right = inputs[:2]
    return (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])


def _gemm(operator: Operator, inputs: list[Shape]) -> Shape:
    left, right = inputs[:2]
    rows = left[1] if operator.attributes.get("transA", (0,))[0] else left[0]
    columns = right[0] if operator.attributes.get("transB", (0,))[0] else right[1]
    return rows, columns


def _transposed(operator: Operator, inputs: list[Shape]) -> Shape:
    order = operator.attributes.get("perm", tuple(reversed(range(len(inputs[0])))))
    return tuple(inputs[0][axis] for axis in order)


_SAME = (
    "Cast Clip DequantizeLinear DynamicQuantizeLinear Erf Exp Gelu GroupNormalization Identity "
    "InstanceNormalization LayerNormalization Neg QuantizeLinear RMSNormalization Reciprocal Relu "
    "Sigmoid Softmax Sqrt Swish Tanh"
)
_RULES: dict[str, Callable[[Operator, list[Shape]], Shape]] = {
    **dict.fromkeys(_SAME.split(), _first),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"), _broadcast),
    **dict.fromkeys(("MatMul", "MatMulInteger"), _matrix_product),
    "Gemm": _gemm,
    "Transpose": _transposed,
}
"""Shapes of an operator's first output."""
