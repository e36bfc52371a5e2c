"""Fused nodes for ONNX Runtime on CUDA, which launches at least one kernel for every node.

A bundle's graphs hold standard operators, so that every engine reads them, and TensorRT and
OpenVINO fuse these themselves. ONNX Runtime does not fuse the attention and the adaptive layer
normalisation of a diffusion transformer, so its own nodes replace them here, before it opens a
graph:

- `softmax(Q K^T) V` of several heads becomes a MultiHeadAttention, which keeps the scores on the
  chip (FlashAttention, arXiv 2205.14135).
- Layer normalisation, scale and shift (adaLN; DiT, arXiv 2212.09748, section 3.2) become one
  LayerNormalization whose weights are those of an image.

A step of DiT-XL/2 in fp16 takes 0.8 of its time with both: benchmarks/README.md, "On a GPU". The
operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

LARGEST_HEAD = 256
"""Values of a head that flash attention takes at most; larger ones gain nothing."""

_HEADS_FIRST = [0, 2, 1, 3]
"""[n, T, heads, d] <=> [n, heads, T, d]."""


def fused(graph: Path, *, attention: bool) -> bytes | None:
    """Return a graph with fused nodes as an ONNX model, or None if it has nothing to fuse.

    Args:
        graph: The `.onnx` file. The model refers to the same file of weights by its name.
        attention: Whether to fuse attention, too.
    """
    model = ir.load(graph)
    found = [_fuse_norm(node) for node in model.graph if node.op_type == "LayerNormalization"]
    if attention:
        found += [_fuse_attention(node) for node in model.graph if node.op_type == "Softmax"]
    if not any(found):
        return None
    model.graph.opset_imports["com.microsoft"] = 1
    RemoveUnusedNodesPass()(model)
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def _fuse_norm(norm: ir.Node) -> bool:
    """Replace a LayerNormalization, a Mul and an Add, if scale and shift are [n, 1, D]."""
    tokens, *weights = norm.inputs
    # Weights of its own: torch exports ones for a normalisation that has none.
    ones = weights[0].const_value if len(weights) == 1 and weights[0] is not None else None
    scaled = _only_reader(norm.outputs[0], "Mul")
    shifted = _only_reader(scaled.outputs[0], "Add") if scaled else None
    if tokens is None or ones is None or scaled is None or shifted is None:
        return False
    scale, shift = _other(scaled, norm.outputs[0]), _other(shifted, scaled.outputs[0])
    size = _shape(tokens)
    # ONNX Runtime broadcasts these shapes alone:
    # https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/cpu/nn/layer_norm_helper.h
    if len(size) != 3 or not _shape(scale) == _shape(shift) == (size[0], 1, size[2]):
        return False
    if not np.all(ones.numpy() == 1):
        return False
    attributes = {name: norm.attributes[name] for name in norm.attributes if name != "axis"}
    one = ir.node("LayerNormalization", [tokens, scale, shift], {**attributes, "axis": 2})
    _replace(shifted, [one])
    return True


def _fuse_attention(softmax: ir.Node) -> bool:
    """Replace everything between the projections of an attention: cutting into heads and back."""
    scores = _producer(softmax.inputs[0], "MatMul")
    mixed = _only_reader(softmax.outputs[0], "MatMul")
    moved = _only_reader(mixed.outputs[0], "Transpose") if mixed else None
    joined = _only_reader(moved.outputs[0], "Reshape") if moved else None
    if scores is None or mixed is None or moved is None or joined is None:
        return False
    query, key, value = scores.inputs[0], _permuted(scores.inputs[1], [0, 1, 3, 2]), mixed.inputs[1]
    if mixed.inputs[0] is not softmax.outputs[0] or len(_shape(query)) != 4:
        return False
    _, heads, _, width = _shape(query)
    if not (isinstance(heads, int) and isinstance(width, int) and width <= LARGEST_HEAD):
        return False
    if _axis(softmax, default=-1) not in (-1, 3) or not _is_permuted(moved, _HEADS_FIRST):
        return False
    if _shape(joined.outputs[0])[2:] != (heads * width,):
        return False
    splits: dict[ir.Value, ir.Node] = {}
    tokens = [_tokens(part, heads, width, splits) for part in (query, key, value)]
    if None in tokens:
        return False
    # The scale is 1: the query's projection holds the division by sqrt(d).
    attention = ir.node(
        "MultiHeadAttention", tokens, {"num_heads": heads, "scale": 1.0}, domain="com.microsoft"
    )
    _replace(joined, [*splits.values(), attention])
    return True


def _tokens(
    part: ir.Value | None, heads: int, width: int, splits: dict[ir.Value, ir.Node]
) -> ir.Value | None:
    """Return the tokens [n, T, D] that heads [n, heads, T, d] were cut from, or None.

    Args:
        part: The heads of a query, a key or a value.
        heads: How many there are.
        width: Values of each.
        splits: Nodes that cut a product of several projections, by the product; may get one more.
    """
    split = _producer(part, "Split")
    parts = len(split.outputs) if split else 1
    whole = _producer(_permuted(split.inputs[0] if split else part, _HEADS_FIRST), "Reshape")
    tokens = whole.inputs[0] if whole else None
    if whole is None or tokens is None or len(_shape(tokens)) != 3:
        return None
    # [n, T, parts D] => [n, T, parts heads, d]
    if _shape(whole.outputs[0]) != (*_shape(tokens)[:2], parts * heads, width):
        return None
    if split is None or part is None:
        return tokens
    if _axis(split, default=0) != 1 or any(
        _shape(output)[1:2] != (heads,) for output in split.outputs
    ):
        return None
    if tokens not in splits:
        cut = {"axis": 2, "num_outputs": parts}
        splits[tokens] = ir.node("Split", [tokens], cut, num_outputs=parts)
    return splits[tokens].outputs[split.outputs.index(part)]


def _replace(last: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes in the place of one; what it read and nothing else does is removed at the end."""
    assert last.graph is not None, "a node of the graph"
    ir.convenience.replace_nodes_and_values(
        last.graph, last, [last], nodes, last.outputs, nodes[-1].outputs
    )


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that writes a value, if it is of this operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _only_reader(value: ir.Value, operator: str) -> ir.Node | None:
    """Return the node that reads a value, if it is of this operator and nothing else reads it."""
    readers = value.consumers()
    if len(readers) != 1 or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return readers[0] if readers[0].op_type == operator else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the input of a node of two that is not this value."""
    first, second = node.inputs
    return second if first is value else first


def _permuted(value: ir.Value | None, order: list[int]) -> ir.Value | None:
    """Return what a value is a transpose of, if its axes come in this order."""
    node = _producer(value, "Transpose")
    return node.inputs[0] if node is not None and _is_permuted(node, order) else None


def _is_permuted(node: ir.Node, order: list[int]) -> bool:
    return list(node.attributes["perm"].as_ints()) == order


def _axis(node: ir.Node, *, default: int) -> int:
    axis = node.attributes.get("axis")
    return default if axis is None else axis.as_int()


def _shape(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """Return the sizes that a graph declares for a value; none if it declares none."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)
