"""Soft labels of a teacher, an ONNX graph."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from diver_trt.errors import DatasetError
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.protocols import QUICK
from diver_trt.evaluation.runs import evaluate
from diver_trt.evaluation.teacher import Teacher
from tests.evaluation.linear_teacher import save_linear_teacher


def write_teacher(
    path: Path, favourite: int, classes: int = 10, batch: int | str = "n", side: int = 16
) -> Path:
    """Write a graph that finds one class in every image, whatever it shows."""
    bias = np.zeros(classes, np.float32)
    bias[favourite] = 200.0
    return save_linear_teacher(path, np.zeros((3, classes), np.float32), bias, side, batch)


def test_networks_learn_what_the_teacher_sees(
    train: ImageSet, held_out: ImageSet, tmp_path: Path
) -> None:
    protocol = replace(QUICK, steps=100)
    with pytest.warns(UserWarning, match="the teacher finds the class of 20 of 200 test images"):
        found = evaluate(
            {"real": train},
            held_out,
            architectures=["mlp"],
            protocol=protocol,
            seeds=1,
            teacher=write_teacher(tmp_path / "teacher.onnx", 7),
        )
    # Every test image is taken for a 7, and a tenth of them are.
    assert found.runs[0].correct == 20
    assert found.teacher is not None
    assert "onnxruntime" in {name.removesuffix("-gpu") for name in found.versions}


def test_a_teacher_runs_on_cuda_or_the_cpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT would compile for every size of a batch, and CoreML may compute in float16."""
    listed = [f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "CoreML", "CPU")]
    session, chosen = onnxruntime.InferenceSession, list[list[str]]()

    def opened(graph: bytes, *, providers: list[str]) -> Any:
        chosen.append(providers)
        return session(graph, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    Teacher(write_teacher(tmp_path / "teacher.onnx", 7), 10, 16)
    assert chosen == [["CUDAExecutionProvider", "CPUExecutionProvider"]]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"classes": 9}, r"first output is \[2, 9\] for two images, expected \[2, 10\]"),
        ({"side": 32}, r"has the inputs tensor\(float\).*expected one.*\[n, 3, 16, 16\]"),
        ({"batch": 1}, r"has the inputs.*with a dynamic n"),
    ],
)
def test_another_teacher_is_refused(settings: dict[str, int], problem: str, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "teacher.onnx", 0, **settings)
    with pytest.raises(DatasetError, match=problem):
        Teacher(path, 10, 16)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(b"pickle")
    with pytest.raises(DatasetError, match="cannot be opened as an ONNX graph"):
        Teacher(tmp_path / "teacher.onnx", 10, 16)
    with pytest.raises(DatasetError, match=r"absent.onnx: cannot be read \(No such file"):
        Teacher(tmp_path / "absent.onnx", 10, 16)
    os.mkfifo(tmp_path / "fifo.onnx")
    with pytest.raises(DatasetError, match=r"fifo.onnx: is not a regular file, expected an ONNX"):
        Teacher(tmp_path / "fifo.onnx", 10, 16)


def test_a_teacher_is_refused_for_an_error_without_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(DatasetError, match=r"weights inside \(RuntimeError\)"):
        Teacher(write_teacher(tmp_path / "teacher.onnx", 0), 10, 16)


def ending_in(path: Path, node: onnx.NodeProto, output: onnx.ValueInfoProto) -> Path:
    """Write a teacher whose logits pass through one more node."""
    model = onnx.load(write_teacher(path, 3))
    model.graph.node.append(node)
    del model.graph.output[:]
    model.graph.output.append(output)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("node", "kind", "problem"),
    [
        (helper.make_node("Softmax", ["logits"], ["out"]), TensorProto.FLOAT, "is probabilities"),
        (
            helper.make_node("Cast", ["logits"], ["out"], to=TensorProto.INT64),
            TensorProto.INT64,
            "is int64, expected logits",
        ),
        (helper.make_node("Log", ["zero"], ["out"]), TensorProto.FLOAT, "have NaN or infinity"),
    ],
)
def test_outputs_that_are_not_logits_are_refused(
    node: onnx.NodeProto, kind: int, problem: str, tmp_path: Path
) -> None:
    output = helper.make_tensor_value_info("out", kind, ["n", 10])
    path = ending_in(tmp_path / "teacher.onnx", node, output)
    if "zero" in node.input:
        model = onnx.load(path)
        model.graph.node.insert(3, helper.make_node("Sub", ["logits", "logits"], ["zero"]))
        onnx.save(model, path)
    with pytest.raises(DatasetError, match=problem):
        Teacher(path, 10, 16)


def test_a_sequence_is_not_logits(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["logits"], ["out"])
    output = helper.make_tensor_sequence_value_info("out", TensorProto.FLOAT, ["n", 10])
    with pytest.raises(DatasetError, match="its first output is list, expected logits"):
        Teacher(ending_in(tmp_path / "teacher.onnx", node, output), 10, 16)


def test_a_graph_without_inputs_is_refused(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.zeros((2, 10), np.float32))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["logits"], value=value)],
        "constant",
        [],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 10])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "teacher.onnx")
    with pytest.raises(DatasetError, match="has the inputs none, expected one"):
        Teacher(tmp_path / "teacher.onnx", 10, 16)
