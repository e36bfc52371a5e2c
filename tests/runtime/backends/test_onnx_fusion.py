"""Fused nodes compute what the nodes that they replace did, on the provider that runs here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node as node

from diver_trt import packages
from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.models.prompts import Prompts
from diver_trt.runtime.backends.onnx_cuda import UNFIT_OPTIMIZERS, with_fused_nodes
from diver_trt.runtime.backends.onnx_fusion import fused
from tests.models.tiny_stable_diffusion import save_stable_diffusion

IMAGES, TOKENS, CONTEXT, HEADS, HEAD = 2, 5, 3, 2, 4
WIDTH = HEADS * HEAD


def operators(model: bytes | Path) -> Counter[str]:
    loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    return Counter(found.op_type for found in loaded.graph.node)


def outputs(model: bytes | Path, batch: int) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=UNFIT_OPTIMIZERS if isinstance(model, bytes) else None,
    )
    generator = np.random.default_rng(0)
    feeds = {
        value.name: generator.standard_normal(
            [batch if isinstance(size, str) else size for size in value.shape]
        ).astype(np.float32)
        for value in session.get_inputs()
    }
    found: list[np.ndarray[Any, Any]] = session.run(None, feeds)
    return found


def assert_equal_but_rounding(graph: Path, model: bytes) -> None:
    for batch in (1, 3):
        for found, expected in zip(outputs(model, batch), outputs(graph, batch), strict=True):
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("network", "attentions", "norms"), [("denoiser", 6, 13), ("encoder", 1, 0), ("decoder", 1, 0)]
)
def test_the_digits_networks(
    digits: Bundle, network: NetworkName, attentions: int, norms: int
) -> None:
    graph = digits.verified(network)
    model = fused(graph, attention=True)
    assert model is not None
    before, after = operators(graph), operators(model)
    assert after["MultiHeadAttention"] == attentions and after["Softmax"] == 0
    # Each norm takes a Mul and an Add with it.
    assert before["LayerNormalization"] == after["LayerNormalization"]
    assert before["Mul"] - after["Mul"] == norms
    assert before["Add"] - after["Add"] == norms
    assert_equal_but_rounding(graph, model)


def test_a_unet_attends_to_its_prompt(export_to: Callable[..., Bundle], tmp_path: Path) -> None:
    save_stable_diffusion(tmp_path / "sd")
    prompts = Prompts(("cat", "dog"), ("a cat", "a dog"), "cartoon")
    graph = export_to(tmp_path / "sd", prompts=prompts).verified("denoiser")
    model = fused(graph, attention=True)
    assert model is not None
    assert operators(model)["MultiHeadAttention"] == operators(graph)["Softmax"] > 0
    assert_equal_but_rounding(graph, model)


def test_float32_attention_is_left_alone(digits: Bundle) -> None:
    """Its fused kernels may round factors to TF32, which a float32 bundle does not promise."""
    model = with_fused_nodes(digits.verified("denoiser"), "fp32")
    assert isinstance(model, bytes)
    assert operators(model)["MultiHeadAttention"] == 0
    half = with_fused_nodes(digits.verified("denoiser"), "fp16")
    assert isinstance(half, bytes)
    assert operators(half)["MultiHeadAttention"] == 6


def test_a_graph_without_such_nodes_is_opened_from_its_file(digits: Bundle) -> None:
    graph = digits.verified("conditioner")
    assert with_fused_nodes(graph, "fp16") == graph


def test_a_missing_package_is_warned_about(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(packages, "import_module", missing)
    graph = digits.verified("denoiser")
    with pytest.warns(RuntimeWarning, match=r"needs onnx-ir.*pip install 'diver-trt\[gpu\]'"):
        assert with_fused_nodes(graph, "fp16") == graph


def saved(
    path: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list[Any]], **constants: Any
) -> Path:
    """Save a graph of float32 tensors: those that no node writes are its inputs."""
    written = {name for made in nodes for name in made.output}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(
        nodes,
        "test",
        [value for name, value in values.items() if name not in written],
        [values["out"], *([values["out2"]] if "out2" in values else [])],
        [numpy_helper.from_array(np.array(array), name) for name, array in constants.items()],
        value_info=[value for name, value in values.items() if name in written],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def attention(
    path: Path, axis: int = -1, seen: bool = False, back: tuple[int, ...] = (0, 2, 1, 3)
) -> Path:
    """Save the attention of tokens to a context: two projections, of which one holds two parts."""
    nodes = [
        node("Reshape", ["tokens", "cut"], ["q4"]),
        node("Transpose", ["q4"], ["q"], perm=[0, 2, 1, 3]),
        node("Reshape", ["pairs", "cut2"], ["kv4"]),
        node("Transpose", ["kv4"], ["kv"], perm=[0, 2, 1, 3]),
        node("Split", ["kv"], ["k", "v"], axis=1, num_outputs=2),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=axis),
        node("MatMul", ["weights", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["moved"], perm=list(back)),
        node("Reshape", ["moved", "joined"], ["out"]),
        *([node("Neg", ["weights"], ["out2"])] if seen else []),
    ]
    shapes = {
        "tokens": ["n", TOKENS, WIDTH],
        "pairs": ["n", CONTEXT, 2 * WIDTH],
        "out": ["n", TOKENS, WIDTH],
        **({"out2": ["n", HEADS, TOKENS, CONTEXT]} if seen else {}),
    }
    return saved(
        path / "attention.onnx",
        nodes,
        shapes,
        cut=[0, TOKENS, HEADS, HEAD],
        cut2=[0, CONTEXT, 2 * HEADS, HEAD],
        joined=[0, TOKENS, WIDTH],
    )


def test_attention_to_a_context(tmp_path: Path) -> None:
    graph = attention(tmp_path)
    model = fused(graph, attention=True)
    assert model is not None
    assert operators(model) == {"Split": 1, "MultiHeadAttention": 1}
    assert_equal_but_rounding(graph, model)


@pytest.mark.parametrize(
    "other",
    [{"axis": 2}, {"seen": True}, {"back": (0, 1, 2, 3)}],
    ids=lambda other: next(iter(other)),
)
def test_what_only_looks_like_attention_stays(tmp_path: Path, other: dict[str, Any]) -> None:
    """A softmax over another axis, weights that something else reads, heads not moved back."""
    assert fused(attention(tmp_path, **other), attention=True) is None


def norm(path: Path, scale: list[Any], ones: float = 1.0, seen: bool = False) -> Path:
    nodes = [
        node("LayerNormalization", ["x", "ones"], ["normed"], axis=-1, epsilon=1e-3),
        node("Mul", ["scale", "normed"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["out"]),
        *([node("Neg", ["scaled"], ["out2"])] if seen else []),
    ]
    shape = ["n", TOKENS, WIDTH]
    shapes = {"x": shape, "scale": scale, "shift": scale, "out": shape}
    if seen:
        shapes["out2"] = shape
    return saved(path / "norm.onnx", nodes, shapes, ones=np.full(WIDTH, ones, np.float32))


def test_a_norm_with_the_weights_of_each_image(tmp_path: Path) -> None:
    graph = norm(tmp_path, ["n", 1, WIDTH])
    model = fused(graph, attention=False)
    assert model is not None
    assert operators(model) == {"LayerNormalization": 1}
    assert_equal_but_rounding(graph, model)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": [WIDTH]},
        {"scale": ["n", 1, 1]},
        {"scale": ["n", 1, WIDTH], "ones": 2.0},
        {"scale": ["n", 1, WIDTH], "seen": True},
    ],
    ids=["of the model", "of a token", "own weights", "read elsewhere"],
)
def test_other_norms_stay(tmp_path: Path, other: dict[str, Any]) -> None:
    assert fused(norm(tmp_path, **other), attention=False) is None
