"""FLOPs and bytes against closed forms, and of the digits against a count by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from diver_trt.bench.cost import count
from diver_trt.bench.graph import Graph, read_graph
from diver_trt.bench.shapes import shapes_in
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.errors import BundleError

FLOAT, HALF, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8

Dims = Sequence[int | str]


def model_of(
    nodes: Sequence[Any],
    inputs: dict[str, Dims],
    outputs: dict[str, Dims],
    weights: dict[str, np.ndarray] | None = None,
    declared: dict[str, Dims] | None = None,
    element: int = FLOAT,
) -> Any:
    def infos(values: dict[str, Dims]) -> list[Any]:
        return [helper.make_tensor_value_info(name, element, dims) for name, dims in values.items()]

    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=infos(declared or {}),
    )
    return helper.make_model(graph)


@pytest.fixture
def graph_of(tmp_path: Path) -> Callable[..., Graph]:
    """Write a graph with onnx's own package and read it with ours."""

    def make(*arguments: Any, **options: Any) -> Graph:
        onnx.save(model_of(*arguments, **options), tmp_path / "graph.onnx")
        return read_graph(tmp_path / "graph.onnx")

    return make


def products_graph() -> Any:
    """A graph of the operators that a network's work hangs on, for damage (`tests.fuzzing`)."""
    return model_of(
        [
            helper.make_node("Shape", ["x"], ["size"]),
            helper.make_node("Slice", ["size", "zero", "one"], ["images"]),
            helper.make_node("Concat", ["images", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["split"]),
            helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"], axis=1),
            helper.make_node("MatMul", ["split", "w"], ["wide"]),
            helper.make_node("Transpose", ["wide"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["turned", "kernel"], ["y"], group=2),
        ],
        {"x": ("n", 24)},
        {"y": ("n", 8, 4)},
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([4, -1]),
            "w8": zeros(6, 8, dtype=np.int8),
            "scale": zeros(8),
            "kernel": zeros(8, 4, 1),
        },
    )


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_a_matrix_product_is_two_flops_per_element_and_depth(
    graph_of: Callable[..., Graph],
) -> None:
    graph = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ("n", 3, 4)},
        {"y": ("n", 3, 5)},
        {"w": zeros(4, 5)},
    )
    cost = count(graph, 7)
    assert cost.flops == 2 * (7 * 3 * 5) * 4
    assert cost.least_bytes == 4 * (7 * 3 * 4 + 4 * 5 + 7 * 3 * 5)
    assert cost.operator_bytes == cost.least_bytes
    assert cost.uncounted == {}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_takes_its_depth_from_the_side_that_is_not_kept(
    graph_of: Callable[..., Graph], transposed: int
) -> None:
    graph = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transA=transposed, transB=1)],
        {"x": (6, "n") if transposed else ("n", 6)},
        {"y": ("n", 5)},
        {"w": zeros(5, 6), "b": zeros(5)},
    )
    assert count(graph, 2).flops == 2 * 2 * 5 * 6


def test_a_convolution_sums_over_one_filter_per_value(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=2)],
        {"x": ("n", 6, 8, 8)},
        {"y": ("n", 4, 8, 8)},
        {"w": zeros(4, 3, 3, 3)},
    )
    assert count(graph, 2).flops == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)


def test_a_transposed_convolution_spreads_every_input_value(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])],
        {"x": ("n", 6, 4, 4)},
        {"y": ("n", 5, 8, 8)},
        {"w": zeros(6, 5, 2, 2)},
    )
    assert count(graph, 1).flops == 2 * (6 * 4 * 4) * (5 * 2 * 2)


def test_a_number_that_does_not_end_is_refused(tmp_path: Path) -> None:
    def message(field: int, content: bytes) -> bytes:  # fewer than 128 bytes
        return bytes([field << 3 | 2, len(content)]) + content

    dims, weight, graph = 1, 5, 7  # field numbers of onnx.proto
    path = tmp_path / "graph.onnx"

    def write(number: bytes) -> None:
        path.write_bytes(message(graph, message(weight, message(dims, number))))

    write(b"\x80" * 9 + b"\x01")
    assert read_graph(path).weights[""].shape == (-(2**63),)
    write(b"\x80" * 10 + b"\x01")
    with pytest.raises(BundleError, match="does not end"):
        read_graph(path)


def test_a_fused_attention_is_its_two_products(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [helper.make_node("Attention", ["q", "k", "v"], ["y"])],
        {"q": ("n", 2, 16, 8), "k": ("n", 2, 20, 8), "v": ("n", 2, 20, 6)},
        {"y": ("n", 2, 16, 6)},
    )
    assert count(graph, 3).flops == 2 * (3 * 2 * 16 * 20) * (8 + 6)


def test_elementwise_operators_have_bytes_and_no_flops(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [helper.make_node("Add", ["x", "x"], ["s"]), helper.make_node("Tanh", ["s"], ["y"])],
        {"x": ("n", 10)},
        {"y": ("n", 10)},
        declared={"s": ("n", 10)},
        element=HALF,
    )
    cost = count(graph, 4)
    assert cost.flops == 0
    assert cost.least_bytes == 2 * (40 + 40)
    assert cost.operator_bytes == 2 * (3 * 40 + 2 * 40)


def test_a_weight_of_eight_bits_is_one_byte_and_its_result_is_inferred(
    graph_of: Callable[..., Graph],
) -> None:
    graph = graph_of(
        [
            helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"], axis=1),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": ("n", 64)},
        {"y": ("n", 32)},
        {"w8": zeros(64, 32, dtype=np.int8), "scale": zeros(32)},
    )
    cost = count(graph, 1)
    assert cost.flops == 2 * 32 * 64
    weights = 64 * 32 + 4 * 32
    assert cost.least_bytes == weights + 4 * (64 + 32)
    assert cost.operator_bytes == 64 * 32 + 4 * (64 + 32)
    assert cost.uncounted == {}


def test_an_integer_product_counts_as_a_product(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["x8", "w8", "zero"], ["y32"]),
            helper.make_node("Cast", ["y32"], ["y"], to=FLOAT),
        ],
        {"x": ("n", 64)},
        {"y": ("n", 32)},
        {"w8": zeros(64, 32, dtype=np.int8)},
    )
    cost = count(graph, 3)
    assert cost.flops == 2 * 3 * 32 * 64
    assert cost.uncounted == {}


def test_a_gathered_table_counts_the_rows_that_are_read(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        {"x": ("n",)},
        {"y": ("n", 8)},
        {"table": zeros(1000, 8)},
    )
    assert count(graph, 2).least_bytes == 4 * (2 + 2 * 8 + 2 * 8)


def test_operators_that_are_not_known_are_reported(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [
            helper.make_node("Einsum", ["x", "w"], ["s"], equation="ij,jk->ik"),
            helper.make_node("Einsum", ["s", "w"], ["y"], equation="ij,jk->ik"),
        ],
        {"x": ("n", 4)},
        {"y": ("n", 4)},
        {"w": zeros(4, 4)},
    )
    assert count(graph, 1).uncounted == {"Einsum": 2}


def test_a_product_whose_shape_is_not_known_is_reported(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [
            helper.make_node("Einsum", ["x"], ["s"], equation="ij->ji"),
            helper.make_node("MatMul", ["s", "x"], ["y"]),
        ],
        {"x": ("n", 4)},
        {"y": (4, 4)},
    )
    assert count(graph, 1).uncounted == {"Einsum": 1, "MatMul": 1}


def test_a_shape_that_the_graph_computes_is_followed(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        [
            helper.make_node("Shape", ["x"], ["size"]),
            helper.make_node("Slice", ["size", "zero", "one"], ["count"]),
            helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["x", "target"], ["split"]),
            helper.make_node("Transpose", ["split"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["split", "turned"], ["y"]),
        ],
        {"x": ("n", 24)},
        {"y": ("n", 4, 4)},
        {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([4, -1])},
    )
    shapes = shapes_in(graph, 5)
    assert (shapes["split"], shapes["turned"]) == ((5, 4, 6), (5, 6, 4))
    assert count(graph, 5).flops == 2 * (5 * 4 * 4) * 6


def test_a_graph_whose_operators_do_not_fit_its_tensors_is_refused(
    graph_of: Callable[..., Graph],
) -> None:
    graph = graph_of(
        [helper.make_node("Conv", ["x"], ["y"])], {"x": ("n", 2, 4, 4)}, {"y": ("n", 2, 4, 4)}
    )
    with pytest.raises(BundleError, match="does not fit its tensors"):
        count(graph, 1)


def test_the_digits_denoiser_is_what_its_layers_add_up_to(digits: Bundle) -> None:
    """Six blocks of width 128 with four heads on 16 patches of 2 x 2 x 4, twice per image."""
    tokens, width, blocks, patch, channels = 16, 128, 6, 2 * 2, 4
    embedding = tokens * width * patch * channels
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    mlp = 2 * tokens * width * 4 * width
    final = tokens * width * patch * 2 * channels
    by_hand = 2 * (embedding + blocks * (attention + mlp) + final)
    graph = read_graph(digits.verified("denoiser"))
    for batch in (1, 8):
        cost = count(graph, batch)
        assert cost.flops == 2 * batch * by_hand
        assert cost.uncounted == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_of_the_digits_is_counted_and_every_weight_once(
    digits: Bundle, name: Any
) -> None:
    network = digits.networks[name]
    cost = count(read_graph(digits.verified(name)), 2)
    assert cost.uncounted == {}
    outside = sum(spec.size_bytes(2) for spec in (*network.inputs, *network.outputs))
    table = 4 * 11 * 128 if name == "conditioner" else 0  # of its labels; two rows are read
    weights = 4 * network.parameters - table
    assert weights + outside <= cost.least_bytes <= 1.02 * weights + outside + 4096
    assert cost.operator_bytes > cost.least_bytes


def test_more_images_are_more_flops_on_the_same_weights(digits: Bundle) -> None:
    graph = read_graph(digits.verified("denoiser"))
    one, eight = count(graph, 1), count(graph, 8)
    assert eight.flops == 8 * one.flops
    assert eight.least_bytes < 2 * one.least_bytes
    assert one.times(3).flops == 3 * one.flops


def test_our_reader_finds_what_the_onnx_package_finds(digits: Bundle) -> None:
    for name in NETWORKS:
        path = digits.verified(name)
        ours, theirs = read_graph(path), onnx.load(str(path)).graph
        assert [operator.kind for operator in ours.operators] == [n.op_type for n in theirs.node]
        assert [operator.inputs for operator in ours.operators] == [
            tuple(node.input) for node in theirs.node
        ]
        for tensor in theirs.initializer:
            assert ours.weights[tensor.name].shape == tuple(tensor.dims)
            if tensor.data_type == TensorProto.INT64 and math.prod(tensor.dims) <= 64:
                values = numpy_helper.to_array(tensor).reshape(-1)
                assert ours.integers[tensor.name] == tuple(values.tolist())


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\x05ab"])
def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        read_graph(path)
