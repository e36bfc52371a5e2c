"""An ONNX graph's operators, weights and declared shapes, read without the onnx package.

Devices do not have that package. This walks the same wire format as `diver_trt.external_data`
(protobuf.dev/programming-guides/encoding) along the fields of onnx.proto that a count of the work
needs. Weights are described and never read, so a graph with gigabytes of them is read at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diver_trt.errors import BundleError, shown
from diver_trt.external_data import BYTES, VARINT, Buffer, GraphError, fields_of, mapped, varint
from diver_trt.tensors import Dim

Span = tuple[int, int]

# onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS = 1, 3, 5, 8
_TENSOR_DIMS, _TENSOR_ELEMENT, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TYPE_ELEMENT, _TYPE_SHAPE = 1, 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_PARAM = 1, 1, 2

_BITS = {
    element: bits
    for bits, elements in {
        64: (7, 11, 13),  # int64, float64, uint64
        32: (1, 6, 12),  # float32, int32, uint32
        16: (4, 5, 10, 16),  # uint16, int16, float16, bfloat16
        8: (2, 3, 9, 17, 18, 19, 20),  # uint8, int8, bool, and four kinds of float8
        4: (21, 22, 23),  # uint4, int4, float4
    }.items()
    for element in elements
}
"""Bits of a value by its number in onnx.proto's TensorProto.DataType."""

_INT64 = 7
_MAX_SHAPE_VALUES = 64
"""Tensors of at most so many whole numbers are read: they may be shapes, axes or indices."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a graph.

    Attributes:
        bits: Bits of one element, or None if the graph does not state its type.
        shape: Its sizes; a text is an expression of the dynamic axis, such as `"2*n"`.
    """

    bits: int | None
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of a graph.

    Attributes:
        kind: The operator's name, such as `"MatMul"`.
        inputs: Names of what it reads; an empty one stands for an input that is left out.
        outputs: Names of what it writes.
        attributes: Its attributes that are whole numbers or lists of them.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Graph:
    """What a graph computes, and on tensors of which shapes.

    Attributes:
        operators: Its nodes, in the order in which they run.
        weights: Its initializers by name.
        integers: The values of those that may be a shape, an axis or an index.
        inputs: Its inputs by name.
        outputs: Its outputs by name.
        declared: Every other tensor whose shape the graph states.
    """

    operators: list[Operator] = field(default_factory=list)
    weights: dict[str, Value] = field(default_factory=dict)
    integers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    declared: dict[str, Value] = field(default_factory=dict)


def read_graph(path: Path) -> Graph:
    """Return the graph of an ONNX file.

    Args:
        path: The `.onnx` file, as `Bundle.verified` returns it.

    Raises:
        BundleError: If it is not an ONNX graph.
        OSError: If it cannot be read.
    """
    graph = Graph()
    try:
        with mapped(path) as data:
            if not data:
                raise GraphError("it is empty")
            for span in _spans(data, (0, len(data)), _MODEL_GRAPH):
                _read_into(graph, data, span)
    except GraphError as cause:
        raise BundleError(
            f"{path}: is not an ONNX graph ({shown(str(cause))}); export the model again"
        ) from cause
    return graph


def _read_into(graph: Graph, data: Buffer, span: Span) -> None:
    values = {
        _GRAPH_INPUT: graph.inputs,
        _GRAPH_OUTPUT: graph.outputs,
        _GRAPH_VALUE: graph.declared,
    }
    for number, _, first, last in fields_of(data, *span):
        if number == _GRAPH_NODE:
            operator = _operator(data, (first, last))
            graph.operators.append(operator)
            # A constant is written as a node or as an initializer; to the count both are weights.
            if operator.kind == "Constant":
                for attribute in _spans(data, (first, last), _NODE_ATTRIBUTE):
                    for tensor in _spans(data, attribute, _ATTRIBUTE_TENSOR):
                        _read_weight(graph, data, tensor, operator.outputs[0])
        elif number == _GRAPH_INITIALIZER:
            _read_weight(graph, data, (first, last), _text(data, (first, last), _TENSOR_NAME))
        elif number in values:
            name, value = _value(data, (first, last))
            values[number][name] = value


def _operator(data: Buffer, span: Span) -> Operator:
    attributes = {}
    for attribute in _spans(data, span, _NODE_ATTRIBUTE):
        integers = [
            value
            for number in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS)
            for value in _integers(data, attribute, number)
        ]
        if integers:
            attributes[_text(data, attribute, _ATTRIBUTE_NAME)] = tuple(integers)
    return Operator(
        _text(data, span, _NODE_OPERATOR),
        tuple(_texts(data, span, _NODE_INPUT)),
        tuple(_texts(data, span, _NODE_OUTPUT)),
        attributes,
    )


def _read_weight(graph: Graph, data: Buffer, span: Span, name: str) -> None:
    dims = tuple(_integers(data, span, _TENSOR_DIMS))
    element = next(_integers(data, span, _TENSOR_ELEMENT), 0)
    graph.weights[name] = Value(_BITS.get(element), dims)
    if element == _INT64 and math.prod(dims) <= _MAX_SHAPE_VALUES:
        # Values are in `raw_data` or in `int64_data`, never in both (onnx.proto, TensorProto).
        raw = b"".join(data[first:last] for first, last in _spans(data, span, _TENSOR_RAW))
        stored = struct.unpack(f"<{len(raw) // 8}q", raw) if len(raw) % 8 == 0 else ()
        graph.integers[name] = stored or tuple(_integers(data, span, _TENSOR_INT64))


def _value(data: Buffer, span: Span) -> tuple[str, Value]:
    element, dims = 0, []
    for kind in _spans(data, span, _VALUE_TYPE):
        for tensor in _spans(data, kind, _TYPE_TENSOR):
            element = next(_integers(data, tensor, _TYPE_ELEMENT), 0)
            for shape in _spans(data, tensor, _TYPE_SHAPE):
                dims = [_dim(data, dim) for dim in _spans(data, shape, _SHAPE_DIM)]
    return _text(data, span, _VALUE_NAME), Value(_BITS.get(element), tuple(dims))


def _dim(data: Buffer, span: Span) -> Dim:
    size = next(_integers(data, span, _DIM_VALUE), None)
    # "?" is not an expression of the dynamic axis, so that the shape stays unknown.
    return _text(data, span, _DIM_PARAM) or "?" if size is None else size


def _spans(data: Buffer, span: Span, wanted: int) -> Iterator[Span]:
    """Yield where each value of a repeated field lies."""
    for number, kind, first, last in fields_of(data, *span):
        if number == wanted and kind == BYTES:
            yield first, last


def _texts(data: Buffer, span: Span, wanted: int) -> Iterator[str]:
    for first, last in _spans(data, span, wanted):
        # A hostile graph's names need not be UTF-8.
        yield data[first:last].decode("utf-8", "backslashreplace")


def _text(data: Buffer, span: Span, wanted: int) -> str:
    return next(_texts(data, span, wanted), "")


def _integers(data: Buffer, span: Span, wanted: int) -> Iterator[int]:
    """Yield the whole numbers of a field, whether each is written alone or all are packed."""
    for number, kind, first, last in fields_of(data, *span):
        if number == wanted and kind in (VARINT, BYTES):
            # Writers may pack repeated numbers or not, and readers have to take both:
            # https://protobuf.dev/programming-guides/encoding/#packed
            while first < last:
                value, first = varint(data, first, last)
                # Negative numbers are written in two's complement of 64 bits.
                yield value - (1 << 64) if value >> 63 else value
