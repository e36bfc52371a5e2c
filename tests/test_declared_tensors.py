"""A graph's declarations are read as the onnx package reads them, and refused if ambiguous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS
from diver_trt.declared_tensors import declared_tensors
from diver_trt.external_data import GraphError


def test_every_graph_of_a_bundle_declares_what_its_manifest_says(digits: Bundle) -> None:
    for name in NETWORKS:
        network = digits.networks[name]
        inputs, outputs = declared_tensors(digits.path / network.graph.name)
        assert inputs == [(spec.name, spec.dtype, spec.shape) for spec in network.inputs]
        assert outputs == [(spec.name, spec.dtype, spec.shape) for spec in network.outputs]


def graph(*values: Any) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", list(values), []))


def test_types_sizes_and_names_of_all_kinds(tmp_path: Path) -> None:
    kinds = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "int64": TensorProto.INT64,
        "bool": TensorProto.BOOL,
        "type 16": TensorProto.BFLOAT16,
    }
    values = [
        helper.make_tensor_value_info(name, kind, [2**40, "n", None, 0])
        for name, kind in kinds.items()
    ]
    values += [
        helper.make_tensor_value_info("none", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("scalar", TensorProto.FLOAT, []),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("negative", TensorProto.FLOAT, [-1]),
        onnx.ValueInfoProto(),
    ]
    onnx.save(graph(*values), tmp_path / "a.onnx")
    inputs, outputs = declared_tensors(tmp_path / "a.onnx")
    assert outputs == []
    assert inputs == [
        *((name, name, (2**40, "n", None, 0)) for name in kinds),
        ("none", "float32 of no shape", ()),
        ("scalar", "float32", ()),
        ("list", "no tensor", ()),
        ("negative", "float32", (2**64 - 1,)),
        ("", "no tensor", ()),
    ]


@pytest.mark.parametrize("field", ["dim", "shape", "type", "element"])
def test_an_ambiguous_declaration_is_refused(tmp_path: Path, field: str) -> None:
    """Protobuf takes the last of several values, and merges several messages."""

    def message(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def described(extra: str) -> bytes:
        dim = b"\x08\x03" + (b"\x12\x01n" if extra == "dim" else b"")
        shape = message(2, message(1, dim)) * (2 if extra == "shape" else 1)
        tensor = b"\x08\x01" * (2 if extra == "element" else 1) + shape
        kind = message(2, message(1, tensor)) * (2 if extra == "type" else 1)
        return message(1, b"x") + kind

    whole = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    assert described("nothing") == whole.SerializeToString()
    (tmp_path / "a.onnx").write_bytes(message(7, message(11, described(field))))
    with pytest.raises(GraphError, match=r"ambiguous|both a value and a name"):
        declared_tensors(tmp_path / "a.onnx")


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05", b"\x38\x01", b"\xff" * 20])
def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(GraphError):
        declared_tensors(tmp_path / "a.onnx")
