"""The inputs and outputs that an ONNX graph declares, read without the onnx package.

Devices do not have that package. The declaration is not taken from a runtime either: if it
contradicts the shapes that the nodes produce, ONNX Runtime 1.32 reports the latter. This module
walks the same wire format as `external_data`, as strictly.
"""

from __future__ import annotations

from pathlib import Path

from diver_trt.external_data import BYTES, VARINT, Buffer, GraphError, fields_of, mapped, varint
from diver_trt.tensors import Dim

Declared = tuple[str, str, tuple[Dim | None, ...]]
"""Name, element type and shape; a text or None stands for a size that the graph leaves open."""

Span = tuple[int, int]

# Field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIM = 1
_DIM_VALUE, _DIM_PARAM = 1, 2

# TensorProto.DataType.
_DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


def declared_tensors(path: Path) -> tuple[list[Declared], list[Declared]]:
    """Return the inputs and the outputs that a graph declares, in its order.

    Args:
        path: The `.onnx` file.

    Raises:
        GraphError: If it is not an ONNX graph, or can be read in more than one way.
        OSError: If it cannot be read.
    """
    inputs: list[Declared] = []
    outputs: list[Declared] = []
    with mapped(path) as data:
        # Parsers merge a repeated graph, so the tensors of every occurrence count.
        for graph in _messages(data, (0, len(data)), _MODEL_GRAPH):
            for number, tensors in ((_GRAPH_INPUT, inputs), (_GRAPH_OUTPUT, outputs)):
                tensors += [_declared(data, span) for span in _messages(data, graph, number)]
    return inputs, outputs


def _declared(data: Buffer, value: Span) -> Declared:
    name = _text(data, value, _VALUE_NAME)
    kind = _only(data, value, _VALUE_TYPE, BYTES)
    tensor = kind and _only(data, kind, _TYPE_TENSOR, BYTES)
    if not tensor:
        # A sequence, a map or an optional value: described, so that the caller can name it.
        return name, "no tensor", ()
    element, shape = (
        _number(data, tensor, _TENSOR_ELEMENT),
        _only(data, tensor, _TENSOR_SHAPE, BYTES),
    )
    dtype = _DTYPES.get(element or 0, f"type {element or 0}")
    # Without a shape, the number of axes is open; a scalar has a shape without sizes.
    if shape is None:
        return name, f"{dtype} of no shape", ()
    return name, dtype, tuple(_dim(data, dim) for dim in _messages(data, shape, _SHAPE_DIM))


def _dim(data: Buffer, dim: Span) -> Dim | None:
    size, name = _number(data, dim, _DIM_VALUE), _text(data, dim, _DIM_PARAM)
    if size is not None and name:
        raise GraphError("a size has both a value and a name")
    return size if size is not None else name or None


def _messages(data: Buffer, span: Span, wanted: int) -> list[Span]:
    """Return the span of each value of a repeated field."""
    found = []
    for number, kind, first, last in fields_of(data, *span):
        if number == wanted:
            if kind != BYTES:
                raise GraphError(f"field {number} is not a message")
            found.append((first, last))
    return found


def _only(data: Buffer, span: Span, wanted: int, expected: int) -> Span | None:
    """Return the span of the value of a field that may occur only once, or None without one."""
    # If a field occurs twice, protobuf takes the last scalar but merges messages, and other readers
    # may differ: https://protobuf.dev/programming-guides/encoding/#last-one-wins
    found = None
    for number, kind, first, last in fields_of(data, *span):
        if number == wanted:
            if kind != expected or found is not None:
                raise GraphError(f"field {number} of a tensor's description is ambiguous")
            found = (first, last)
    return found


def _text(data: Buffer, span: Span, wanted: int) -> str:
    found = _only(data, span, wanted, BYTES)
    return data[found[0] : found[1]].decode("utf-8", "backslashreplace") if found else ""


def _number(data: Buffer, span: Span, wanted: int) -> int | None:
    found = _only(data, span, wanted, VARINT)
    return varint(data, *found)[0] if found else None
