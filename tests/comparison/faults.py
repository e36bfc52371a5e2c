"""Faults planted on purpose: a bundle whose graph is edited, with a manifest that says nothing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from diver_trt.bundle import Bundle, FileRecord


def plant(bundle: Bundle, folder: Path, edits: dict[str, Callable[[Any], None]]) -> Bundle:
    """Copy a bundle, edit some networks' graphs, and write their new hashes into the manifest."""
    shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns("plans"))
    manifest = json.loads((folder / "bundle.json").read_text())
    for name, edit in edits.items():
        path = folder / f"{name}.onnx"
        model = onnx.load(path)
        edit(model.graph)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        record = FileRecord.of(path)
        manifest["networks"][name]["graph"] = {"name": record.name, "size_bytes": record.size_bytes, "sha256": record.sha256}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def scale_weight_beside(bias: str, factor: float) -> Callable[[Any], None]:
    """Multiply the weight of the layer that has this bias."""

    def edit(graph: Any) -> None:
        (add,) = (node for node in graph.node if bias in node.input)
        (product,) = (node for node in graph.node if node.output[0] in add.input)
        assert product.op_type == "MatMul"
        scale_initializer(product.input[1], factor)(graph)

    return edit


def scale_initializer(name: str, factor: float) -> Callable[[Any], None]:
    """Multiply a constant of the graph."""

    def edit(graph: Any) -> None:
        (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))

    return edit


def exchange_predictions(graph: Any) -> None:
    """Let guidance read the null class's prediction for the class's, and the other way round."""
    from diver_trt.comparison.blocks import PREDICTION, find_taps

    prediction = find_taps(graph, "the graph")[PREDICTION]
    by_class, by_null = (node for node in graph.node if prediction in node.input)
    assert by_class.op_type == by_null.op_type == "Slice"
    by_class.input[1:3], by_null.input[1:3] = list(by_null.input[1:3]), list(by_class.input[1:3])  # starts and ends


def exchange_modulations(graph: Any) -> None:
    """Give the class's rows the null class's modulations, and the other way round."""
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "exchanged"))
    for node in graph.node:
        node.input[:] = ["modulation exchanged" if name == "modulation" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Gather", ["modulation", "exchanged"], ["modulation exchanged"], axis=0))
