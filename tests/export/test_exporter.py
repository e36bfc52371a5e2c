"""Bundles: what the graphs hold, what the exporter notices, and that a failure leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, Precision
from diver_trt.errors import ExportError, OutputError
from diver_trt.export import exporter, onnx_graph
from diver_trt.export.checks import check_against_module
from diver_trt.export.exporter import export_bundle
from diver_trt.export.onnx_graph import graph_from_network
from diver_trt.models.denoiser import build_networks
from diver_trt.models.dit import load_model
from diver_trt.tensors import TensorSpec

pytestmark = pytest.mark.slow


def graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.path / f"{name}.onnx"))


@pytest.fixture(scope="module")
def half(export_to: Callable[..., Bundle], random_pipeline: Path) -> Bundle:
    return export_to(random_pipeline, "fp16")


def test_graphs_are_what_tensorrt_10_3_reads(random_bundle: Bundle) -> None:
    for name in NETWORKS:
        model = graph(random_bundle, name)
        assert next(opset.version for opset in model.opset_import if opset.domain == "") <= 20
        assert {node.domain for node in model.graph.node} <= {""}
        assert "Attention" not in {node.op_type for node in model.graph.node}


def test_a_block_is_28_nodes(random_bundle: Bundle, digits: Bundle) -> None:
    """The random model has two blocks, the digits six, and what is around them is the same."""
    few, many = (len(graph(bundle, "denoiser").graph.node) for bundle in (random_bundle, digits))
    assert many - few == 4 * 28
    assert many == 226


@pytest.mark.parametrize("name", ["encoder", "decoder", "denoiser"])
def test_no_graph_reads_a_shape_or_spells_gelu_out(name: str, random_bundle: Bundle) -> None:
    kinds = {node.op_type for node in graph(random_bundle, name).graph.node}
    assert kinds.isdisjoint({"Shape", "Tanh", "Pow", "Constant", "Identity", "Cast"})


def test_no_path_of_the_exporting_machine_is_left_in_a_graph(random_bundle: Bundle) -> None:
    for name in NETWORKS:
        assert b"site-packages" not in (random_bundle.path / f"{name}.onnx").read_bytes()


def test_the_embedder_is_stored_once(random_bundle: Bundle) -> None:
    width, depth, classes = 24, 2, 7
    embedder = (256 + 1) * width + (width + 1) * width + (classes + 1) * width
    modulations = (6 * depth + 2) * width * (width + 1)
    assert random_bundle.networks["conditioner"].parameters == embedder + modulations
    stored = sum(
        np.prod(tensor.dims, dtype=int)
        for tensor in graph(random_bundle, "conditioner").graph.initializer
    )
    assert stored < embedder + modulations + 1000


@pytest.fixture(scope="module")
def differing(random_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose second block embeds time and label otherwise than the first."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(random_pipeline)
    with torch.no_grad():
        for parameter in pipeline.transformer.transformer_blocks[1].norm1.emb.parameters():
            parameter.mul_(1.5)
    folder = tmp_path_factory.mktemp("models") / "differing"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def external(differing: Path, export_to: Callable[..., Bundle]) -> Bundle:
    """A bundle of it that keeps its weights beside its graphs, as those of large models are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "EMBED_LIMIT_BYTES", 10_000)
        return export_to(differing)


def test_embedders_that_differ_are_each_kept(differing: Path, external: Bundle) -> None:
    """The exporter's own check against torch proves the graph: with one embedder it would fail."""
    model = load_model(str(differing))
    conditioner = build_networks(model, torch.float32)["conditioner"]
    timestep, label = torch.tensor([20, 500]), torch.tensor([1, 7])
    expected = [
        block.norm1.linear(
            torch.nn.functional.silu(block.norm1.emb(timestep, label, torch.float32))
        )
        for block in model.transformer.transformer_blocks
    ]
    # A condition holds 1 + scale: the second and the fifth of a block's six vectors.
    ones = torch.tensor([0.0, 1, 0, 0, 1, 0] * 2).repeat_interleave(24)
    torch.testing.assert_close(
        conditioner(timestep, label)[:, : 12 * 24], torch.cat(expected, dim=1) + ones
    )
    assert external.networks["conditioner"].parameters == sum(
        p.numel() for p in conditioner.parameters()
    )


def test_fp16_weights_are_half_and_the_step_is_not(half: Bundle) -> None:
    model = graph(half, "denoiser")
    kinds = {
        tensor.name: tensor.data_type
        for tensor in model.graph.initializer
        if np.prod(tensor.dims) > 64
    }
    matrices = [kind for name, kind in kinds.items() if "position" not in name]
    assert matrices
    assert set(matrices) == {onnx.TensorProto.FLOAT16}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*model.graph.input, *model.graph.output]
    }
    assert types.pop("condition") == onnx.TensorProto.FLOAT16
    assert set(types.values()) == {onnx.TensorProto.FLOAT}
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    inferred = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert norms
    assert {inferred[node.output[0]] for node in norms} == {onnx.TensorProto.FLOAT}


def test_an_fp16_bundle_is_half_the_size(half: Bundle, random_bundle: Bundle) -> None:
    for name in ("conditioner", "denoiser"):
        assert half.networks[name].parameters == random_bundle.networks[name].parameters
    sizes = [
        sum(record.size_bytes for network in bundle.networks.values() for record in network.files)
        for bundle in (half, random_bundle)
    ]
    # These graphs are so small that their nodes weigh as much as their weights.
    assert sizes[0] < 0.75 * sizes[1]


def test_large_weights_go_beside_the_graph(external: Bundle) -> None:
    for name in NETWORKS:
        weights = external.networks[name].weights
        assert weights is not None
        assert weights.name == f"{name}.onnx.data"
        assert weights.size_bytes > external.networks[name].parameters * 4 * 0.9
        external.verified(name)


class Of(nn.Module):
    """A network that is one function of its inputs `a` and `b`."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name  # `traced_once` distinguishes networks by their repr

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b)


ADDS = Of("adds", lambda a, b: a + b)
SPECS = tuple(TensorSpec(name, "float32", ("n", 3)) for name in "ab")
OUT = (TensorSpec("c", "float32", ("n", 3)),)


def exported(network: nn.Module, folder: Path) -> Path:
    graph_from_network(network, SPECS, OUT, folder / "network.onnx")
    return folder / "network.onnx"


def test_an_input_that_nothing_reads_is_found(tmp_path: Path) -> None:
    exported(ADDS, tmp_path)
    with pytest.raises(ExportError, match="nothing reads the input b"):
        exported(Of("ignores", lambda a, b: a + b.shape[0] * 0), tmp_path)


def test_an_error_of_torch_without_a_message_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(onnx_graph, "traced", fail)
    with pytest.raises(ExportError, match="cannot export this network: AssertionError"):
        exported(ADDS, tmp_path)


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"network\.onnx: torch cannot export this network: "
    ) as caught:
        exported(Of("branches", lambda a, b: a if float(a.sum()) > 0 else b), tmp_path)
    assert "\n" not in str(caught.value)


OVERFLOWS = Of("overflows", lambda a, b: (a + b) * 1e38 * 1e38)
CANCELS = Of("cancels", lambda a, b: (a + b) * 0)


@pytest.mark.parametrize(
    ("network", "module", "precision", "complaint"),
    [
        (
            ADDS,
            Of("subtracts", lambda a, b: a - b),
            "fp32",
            "ONNX Runtime is a relative .* away from torch",
        ),
        (
            ADDS,
            Of("undefined", lambda a, b: (a + b) * torch.nan),
            "fp32",
            "ONNX Runtime is a relative nan away from torch",
        ),
        (ADDS, CANCELS, "fp32", "ONNX Runtime is a relative inf away from torch"),
        (OVERFLOWS, OVERFLOWS, "fp32", "c is not finite at batch 1; neither is torch's in fp32"),
        (OVERFLOWS, ADDS, "fp16", r"c is not finite .* the model overflows in fp16"),
    ],
    ids=["other values", "NaN of torch", "zeros of torch", "overflow of both", "overflow in fp16"],
)
def test_a_graph_that_is_not_its_module_is_found(
    network: Of, module: Of, precision: Precision, complaint: str, tmp_path: Path
) -> None:
    path = exported(network, tmp_path)
    with pytest.raises(ExportError, match=rf"network\.onnx: {complaint}"):
        check_against_module(path, module, SPECS, OUT, precision)


@pytest.mark.parametrize("network", [ADDS, CANCELS], ids=["a sum", "zeros"])
def test_a_graph_that_is_its_module_passes(network: Of, tmp_path: Path) -> None:
    assert check_against_module(exported(network, tmp_path), network, SPECS, OUT, "fp32") == 0


@pytest.mark.usefixtures("traced_once")
def test_nothing_is_left_of_an_export_that_fails(
    random_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> float:
        raise ExportError("as planned")

    monkeypatch.setattr(exporter, "check_against_module", fails)
    with pytest.raises(ExportError, match="as planned"):
        list(export_bundle(load_model(str(random_pipeline)), tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_once")
def test_an_empty_folder_behind_a_symlink_receives_the_bundle(
    random_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    list(export_bundle(load_model(str(random_pipeline)), tmp_path / "link"))
    assert Bundle.open(tmp_path / "link").model_id == Bundle.open(tmp_path / "there").model_id


def test_a_folder_that_holds_something_is_not_overwritten(
    random_pipeline: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="already exists"):
        list(export_bundle(load_model(str(random_pipeline)), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
