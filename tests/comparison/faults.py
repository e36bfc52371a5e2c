"""Planted faults: bundles with an edited graph and a matching manifest, engines that misread the
step table.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from diver_trt.bundle import Bundle
from diver_trt.comparison.lineup import bundle_participant
from diver_trt.comparison.runs import Participant
from diver_trt.method.step import StepLayout
from diver_trt.runtime.backends.onnx import OnnxSession
from tests.runtime.swapped_graph import list_again

FEW = 3
"""Images that a planted fault is located on."""

Mistake = Callable[[Any, StepLayout], None]
"""Changes a step table, [K, C], as if an engine misread it."""


def plant(bundle: Bundle, folder: Path, edits: dict[str, Callable[[Any], None]]) -> Bundle:
    """Copy a bundle, edit some networks' graphs, and write their new hashes into the manifest."""
    shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns("plans"))
    for name, edit in edits.items():
        path = folder / f"{name}.onnx"
        model = onnx.load(path)
        edit(model.graph)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    list_again(folder, *edits)
    return Bundle.open(folder)


def scale_weight_beside(bias: str, factor: float) -> Callable[[Any], None]:
    """Multiply the weight of the layer that has this bias."""

    def edit(graph: Any) -> None:
        (add,) = (node for node in graph.node if bias in node.input)
        (product,) = (node for node in graph.node if node.output[0] in add.input)
        assert product.op_type == "MatMul"
        scale_initializer(product.input[1], factor)(graph)

    return edit


def scale_block_4(factor: float) -> Callable[[Any], None]:
    """Multiply a weight of block 4's MLP."""
    return scale_weight_beside("predictor.blocks.3.mlp.net.2.bias", factor)


def scale_initializer(name: str, factor: float) -> Callable[[Any], None]:
    """Multiply a constant of the graph."""

    def edit(graph: Any) -> None:
        (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), name))

    return edit


def round_weights(graph: Any) -> None:
    """Round every weight to a float16 number, stored as float32.

    The error is that of an fp16 bundle, and the same on every CPU.
    """
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def exchange_predictions(graph: Any) -> None:
    """Exchange the class's and the null class's predictions in guidance."""
    from diver_trt.comparison.blocks import PREDICTION, find_taps

    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    prediction = find_taps(graph, [str(i) for i in range(len(norms))], "the graph")[PREDICTION]
    by_class, by_null = (node for node in graph.node if prediction in node.input)
    assert by_class.op_type == by_null.op_type == "Gather"
    # The indices of the two halves change places.
    by_class.input[1], by_null.input[1] = by_null.input[1], by_class.input[1]


def exchange_conditions(graph: Any) -> None:
    """Exchange the class's and the null class's conditions."""
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "exchanged"))
    for node in graph.node:
        node.input[:] = [
            "condition exchanged" if name == "condition" else name for name in node.input
        ]
    graph.node.insert(
        0,
        onnx.helper.make_node(
            "Gather", ["condition", "exchanged"], ["condition exchanged"], axis=0
        ),
    )


def judged(precision: str, one: Bundle | Participant) -> Participant:
    """Return a participant that is judged by the limits of a precision and computes in float32.

    The effect of a fault must not depend on how a CPU computes in float16.
    """
    found = bundle_participant("onnx", "onnx", one, FEW) if isinstance(one, Bundle) else one
    return replace(found, precision=precision)


def mistaking(bundle: Bundle, mistake: Mistake) -> Participant:
    """Return a bundle on an engine that uses another step table than it is given."""

    class Mistaken(OnnxSession):
        def open_denoiser(self, table: Any, steps: int) -> Any:
            wrong = table.copy()
            mistake(wrong, self.bundle.layout)
            return super().open_denoiser(wrong, steps)

    return replace(
        bundle_participant("onnx", "onnx", bundle, FEW), open=lambda: Mistaken(bundle, FEW)
    )


def shifted_window(by: int) -> Mistake:
    """Shift the columns of semantic guidance by some rows."""

    def mistake(table: Any, layout: StepLayout) -> None:
        table[:, layout.guidance] = np.roll(table[:, layout.guidance], by, axis=0)

    return mistake


def gammas(last: int, first: int, gamma: float = 0.1) -> Mistake:
    """Set the strength of semantic guidance from step `last` down to step `first`."""

    def mistake(table: Any, layout: StepLayout) -> None:
        table[first - 1 : last, layout.guidance] = gamma, 0, -gamma, 0

    return mistake


def guidance_scale(scale: float) -> Mistake:
    """Use another guidance scale in the first three channels."""

    def mistake(table: Any, layout: StepLayout) -> None:
        table[:, :3] = scale

    return mistake


def longer_steps(table: Any, layout: StepLayout) -> None:
    """Multiply every b of DDIM by 1.02."""
    table[:, layout.b] *= 1.02
