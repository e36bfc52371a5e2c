"""Eight-bit weights: what is rounded, by how much, and that every other constant stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import GraphProbe
from diver_trt.contract import NETWORKS
from diver_trt.export import int8
from diver_trt.export.checks import TOLERANCES, relative_l2
from diver_trt.export.int8 import MIN_VALUES, quantise, quantise_weights
from diver_trt.models.dit import stage_names


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("shape", "axis"), [((6, 40), 0), ((40, 6), 1), ((6, 4, 3, 3), 0)])
def test_a_weight_is_off_by_half_a_scale_at_most(
    shape: tuple[int, ...], axis: int, dtype: type
) -> None:
    values: NDArray[Any] = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    integers, scale = quantise(values, axis)
    assert (integers.dtype.name, integers.shape) == ("int8", shape)
    assert (scale.dtype.name, scale.shape) == (values.dtype.name, (6,))
    along = np.moveaxis(integers, axis, 0).reshape(6, -1)
    # The largest weight of every channel is the largest integer, so no code is wasted.
    assert np.abs(along.astype(int)).max(axis=1).tolist() == [127] * 6
    error = along * scale.astype(np.float64)[:, None] - np.moveaxis(values, axis, 0).reshape(6, -1)
    # A float16 scale is itself off by 2^-11, which counts on 127 steps of it.
    slack = 1.0001 if dtype is np.float32 else 1 + 2 * 127 * 2.0**-11
    assert (np.abs(error) <= slack * scale.astype(np.float64)[:, None] / 2).all()


def test_multiples_of_a_scale_and_channels_of_zeros_are_exact() -> None:
    whole = np.array([[-127, 3, 127], [0, 0, 0], [127, -1, 64]], np.float32)
    values = whole * np.array([[0.5], [1], [2.0]], np.float32)
    integers, scale = quantise(values, 0)
    assert integers.tolist() == whole.tolist()
    assert scale.tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("largest", [1e-4, 1e-5, 1e-6])
def test_weights_too_small_for_a_float16_scale_are_not_clipped(largest: float) -> None:
    values = (np.linspace(-1, 1, 101) * largest).astype(np.float16)[None]
    integers, scale = quantise(values, 0)
    error = integers * scale.astype(np.float64)[:, None] - values.astype(np.float64)
    # Half of the smallest step of float16, or of the scale if that is larger.
    assert np.abs(error).max() <= max(float(scale[0]), 2.0**-24) * 0.51


def test_a_weight_that_is_read_along_two_axes_is_stored_for_each() -> None:
    size = int(MIN_VALUES**0.5)
    ones = onnx_ir.tensor(np.ones((size, size), np.float32), name="w")
    weight = onnx_ir.Value(name="w", shape=ones.shape, const_value=ones)
    x = onnx_ir.Value(name="x", shape=onnx_ir.Shape([1, size]))
    product = onnx_ir.node("MatMul", [x, weight])
    transposed = onnx_ir.node("Gemm", [x, weight], attributes={"transB": 1})
    graph = onnx_ir.Graph([x], [*product.outputs, *transposed.outputs], nodes=[product, transposed])
    graph.register_initializer(weight)
    quantise_weights(graph)
    assert [node.op_type for node in graph].count("DequantizeLinear") == 2
    assert "w" not in graph.initializers


@pytest.mark.parametrize("name", NETWORKS)
def test_every_large_weight_of_a_network_is_behind_a_dequantizelinear(
    name: str, digits: Bundle, tmp_path: Path
) -> None:
    before = onnx.load(digits.path / f"{name}.onnx").graph
    model = onnx_ir.load(digits.path / f"{name}.onnx")
    quantise_weights(model.graph)
    onnx_ir.save(model, tmp_path / "int8.onnx")
    onnx.checker.check_model(str(tmp_path / "int8.onnx"), full_check=True)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    writers = {node.output[0]: node for node in graph.node}
    weighted = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(weighted) == sum(node.op_type in ("MatMul", "Gemm", "Conv") for node in before.node)
    found = [node for node in weighted if node.input[1] in writers]
    dequantised = [writers[node.input[1]] for node in found]
    dequantised = [node for node in dequantised if node.op_type == "DequantizeLinear"]
    assert dequantised
    assert {node.domain for node in graph.node} == {""}
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.initializer}
    for node in dequantised:
        integers, scale = (constants[value] for value in node.input)
        assert len(node.input) == 2  # symmetric: no zero point
        (axis,) = (attribute.i for attribute in node.attribute)
        shape = [1] * integers.ndim
        shape[axis] = -1
        original = originals[node.input[0].removesuffix("/int8")]
        error = np.abs(integers * scale.reshape(shape) - original)
        assert (error <= 0.5001 * scale.reshape(shape)).all()
    # What stays wide is small, or not a weight: biases, norms, the tables of labels and positions.
    for node in weighted:
        if node.input[1] in constants:
            assert constants[node.input[1]].size < MIN_VALUES


def test_an_int8_bundle_is_exported_checked_and_looked_into(
    export_to: Callable[..., Bundle],
    random_pipeline: Path,
    random_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "MIN_VALUES", 64)  # the random model's weights are small
    bundle = export_to(random_pipeline, "int8")
    assert bundle.precision == "int8"
    assert bundle.model.weights_sha256 == random_bundle.model.weights_sha256
    for name, network in bundle.networks.items():
        # The borders are float32 ones, so an engine's buffers are those of an fp32 bundle.
        assert network.inputs == random_bundle.networks[name].inputs
        assert network.outputs == random_bundle.networks[name].outputs
        assert network.graph.size_bytes < random_bundle.networks[name].graph.size_bytes
    latent = np.random.default_rng(1).standard_normal((1, *bundle.latent_shape)).astype(np.float32)
    condition = np.zeros((2, 1, bundle.condition_width), np.float32)
    assert list(GraphProbe(bundle).stages(latent, condition).stream) == stage_names(2)


def denoiser_inputs(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(3)
    shapes = {
        spec.name: spec.concrete(2) if spec.name != "coefficients" else spec.shape
        for spec in bundle.networks["denoiser"].inputs
    }
    return {
        name: (0.3 * generator.standard_normal(shape)).astype(np.float32)  # type: ignore[arg-type]
        for name, shape in shapes.items()
    }


def test_openvino_multiplies_the_integers_themselves(
    eight_bit_digits: Bundle, digits: Bundle
) -> None:
    """By activations that a processor with VNNI rounds too, hence the exporter's tolerance."""
    pytest.importorskip("openvino", reason="OpenVINO is an engine of its own")
    import onnxruntime

    from diver_trt.runtime.backends.openvino import (
        ACTIVATIONS_PER_SCALE,
        OpenVinoSession,
        import_openvino,
    )

    core, compiled = import_openvino().Core, []
    compile_model = core.compile_model

    def keep(self: Any, *arguments: Any) -> Any:
        compiled.append(compile_model(self, *arguments))
        return compiled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "compile_model", keep)
        engine = OpenVinoSession(eight_bit_digits, 2, keep=False).open("denoiser")
    (network,) = compiled
    products = [
        layer.get_rt_info()["runtimePrecision"].astype(str)
        for layer in network.get_runtime_model().get_ordered_ops()
        if layer.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert products == ["i8"] * 25  # four in each of six blocks, and the final projection
    # Of 0, which the engine's other settings would make it, the products are float32 ones.
    assert network.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == ACTIVATIONS_PER_SCALE

    inputs = denoiser_inputs(digits)
    for name, values in inputs.items():
        engine.write(name, values)
    engine.run()
    session = onnxruntime.InferenceSession(
        digits.path / "denoiser.onnx", providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, inputs)
    assert relative_l2(engine.read("next_latent"), expected) < TOLERANCES["int8"]


def test_tensorrt_rtx_stores_the_weights_in_eight_bits(eight_bit_digits: Bundle) -> None:
    """Compiled for real, and not run."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is installed by the extra 'rtx'")
    from diver_trt.runtime.backends.tensorrt.compiler import compile_graph
    from diver_trt.runtime.backends.tensorrt.sidecar import Profile
    from diver_trt.runtime.backends.tensorrt.target import resolve_target

    network = eight_bit_digits.networks["denoiser"]
    batches = Profile(2, 2, 2)
    compiled = compile_graph(
        eight_bit_digits.path / "denoiser.onnx",
        network,
        batches,
        resolve_target("rtx", [86, 120], batches),
    )
    assert 1 < compiled.memory.weights_bytes / network.parameters < 1.2
