"""A graph reads only the file that its bundle lists, even if its runtime would read others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from diver_trt.bundle import Bundle
from diver_trt.errors import BundleError
from diver_trt.external_data import GraphError, external_locations
from diver_trt.files import FileRecord
from diver_trt.runtime.backends.onnx import OnnxSession
from diver_trt.runtime.backends.onnx_package import import_onnxruntime
from tests.cli.command import fails, run

SECRET = np.arange(16, dtype=np.float32)


def outside(location: str, name: str = "w", **more: str) -> TensorProto:
    """A tensor that is stored in another file."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(*nodes: onnx.NodeProto, **fields: Any) -> GraphProto:
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy"]
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Add", ["x", "w"], ["y"])], "g", io[:1], io[1:]
    )
    for key, values in fields.items():
        getattr(graph, key).extend(values)
    return graph


def model_of(graph: GraphProto, **options: Any) -> ModelProto:
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **options
    )


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def with_attribute(**fields: Any) -> onnx.NodeProto:
    node = helper.make_node("Some", ["x"], ["w"])
    node.attribute.append(AttributeProto(name="a", **fields))
    return node


def sparse(location: str) -> Any:
    return onnx.SparseTensorProto(values=outside(location), indices=TensorProto(), dims=[16])


EMPTY = GraphProto(name="empty")
WHERE: dict[str, Callable[[str], ModelProto]] = {
    "initializer": lambda at: model_of(graph_of(initializer=[outside(at)])),
    "constant": lambda at: model_of(graph_of(constant(outside(at)))),
    "attribute of several": lambda at: model_of(
        graph_of(with_attribute(tensors=[TensorProto(), outside(at)]))
    ),
    "sparse initializer": lambda at: model_of(graph_of(sparse_initializer=[sparse(at)])),
    "sparse indices": lambda at: model_of(
        graph_of(sparse_initializer=[onnx.SparseTensorProto(indices=outside(at))])
    ),
    "sparse attribute": lambda at: model_of(graph_of(with_attribute(sparse_tensor=sparse(at)))),
    "sparse attributes": lambda at: model_of(graph_of(with_attribute(sparse_tensors=[sparse(at)]))),
    "subgraph": lambda at: model_of(
        graph_of(with_attribute(g=graph_of(with_attribute(g=graph_of(initializer=[outside(at)])))))
    ),
    "subgraphs": lambda at: model_of(
        graph_of(with_attribute(graphs=[EMPTY, graph_of(constant(outside(at)))]))
    ),
    "function": lambda at: model_of(
        graph_of(),
        functions=[onnx.FunctionProto(name="f", domain="d", node=[constant(outside(at))])],
    ),
    "default of a function": lambda at: model_of(
        graph_of(),
        functions=[
            onnx.FunctionProto(name="f", attribute_proto=[AttributeProto(name="a", t=outside(at))])
        ],
    ),
    "training": lambda at: ModelProto(
        training_info=[onnx.TrainingInfoProto(initialization=graph_of(initializer=[outside(at)]))]
    ),
    "training step": lambda at: ModelProto(
        training_info=[onnx.TrainingInfoProto(algorithm=graph_of(initializer=[outside(at)]))]
    ),
}


@pytest.mark.parametrize("make", WHERE.values(), ids=WHERE)
def test_a_location_is_found_wherever_a_tensor_may_be(
    tmp_path: Path, make: Callable[[str], ModelProto]
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(make("../secret").SerializeToString())
    assert external_locations(path) == {"../secret"}


def test_every_way_to_a_tensor_in_onnxs_own_schema_is_walked() -> None:
    """onnx.proto of the installed package, so that a new field fails this test."""
    from diver_trt.external_data import _MESSAGES

    schema = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name
    leads = {"TensorProto"}
    fields = {
        name: {
            field.number: field.message_type.name for field in message.fields if field.message_type
        }
        for name, message in schema.items()
    }
    while grown := {name for name, found in fields.items() if leads & set(found.values())} - leads:
        leads |= grown
    expected = {
        name: {number: target for number, target in fields[name].items() if target in leads}
        for name in leads
    }
    expected["TensorProto"] = {13: "StringStringEntryProto"}
    plain = {"StringStringEntryProto": "Entry"}
    named = {
        name.removesuffix("Proto"): {
            number: plain.get(target, target.removesuffix("Proto"))
            for number, target in found.items()
        }
        for name, found in expected.items()
    }
    assert named == _MESSAGES


def test_the_exporters_own_graphs_are_read_as_onnx_reads_them(
    digits: Bundle, tmp_path: Path
) -> None:
    for network in digits.networks.values():
        assert external_locations(digits.path / network.graph.name) == set()
    model = onnx.load(str(digits.path / "decoder.onnx"))
    onnx.save(
        model,
        str(tmp_path / "a.onnx"),
        save_as_external_data=True,
        location="a.onnx.data",
        size_threshold=0,
    )
    assert external_locations(tmp_path / "a.onnx") == {"a.onnx.data"}


def test_a_graph_that_readers_understand_differently_is_refused(tmp_path: Path) -> None:
    def entry(*fields: bytes) -> bytes:
        inside = b"".join(fields)
        tensor = bytes([13 << 3 | 2, len(inside)]) + inside
        graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
        return bytes([7 << 3 | 2, len(graph)]) + graph

    key, good, bad = b"\x0a\x08location", b"\x12\x04good", b"\x12\x03bad"
    assert read(tmp_path, entry(key, good)) == {"good"}
    for data, reason in (
        (entry(key, good, bad), "more than one key and one value"),
        (entry(key, key, good), "more than one key and one value"),
        (entry(key, b"\x10\x01"), "more than one key and one value"),
        (entry(key), "a file without a name"),
        (
            entry(b"\x0a\x04path", good),
            r"b'path', expected one of location, offset, length, checksum",
        ),
        (b"\x38\x01", "field 7 of a Model is not a message"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x3a\x05ab", "starts an invalid field"),
        (b"\x02\x00", "starts an invalid field"),
        (b"\xff" * 11, "a number that does not end"),
        (b"\x3a\xff", "a number that does not end"),
    ):
        with pytest.raises(GraphError, match=reason):
            read(tmp_path, data)


def read(folder: Path, data: bytes) -> set[str]:
    (folder / "a.onnx").write_bytes(data)
    return external_locations(folder / "a.onnx")


def test_deep_graphs_take_no_stack(tmp_path: Path) -> None:
    data = WHERE["initializer"]("deep").graph.SerializeToString()

    def wrapped(number: int, inside: bytes) -> bytes:
        size, rest = b"", len(inside)
        while rest > 127:
            size, rest = size + bytes([rest & 127 | 128]), rest >> 7
        return bytes([number << 3 | 2]) + size + bytes([rest]) + inside

    for _ in range(3000):
        data = wrapped(1, wrapped(5, wrapped(6, data)))
    assert read(tmp_path, wrapped(7, data)) == {"deep"}


def test_damaged_graphs_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    """If onnx itself can still read a damaged graph, every location that it finds is found."""
    whole = WHERE["subgraph"]("../secret").SerializeToString()
    generator = random.Random(0)
    read_by_both = 0
    for _ in range(6000):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            found = read(
                tmp_path,
                bytes(data[: generator.choice([len(data), generator.randrange(len(data))])]),
            )
        except GraphError as error:
            assert "\n" not in str(error)
            continue
        try:
            model = onnx.load_from_string((tmp_path / "a.onnx").read_bytes())
        # Protobuf's DecodeError, which each of its implementations has in another place.
        except Exception:
            continue
        read_by_both += 1
        tensors = [
            tensor
            for tensor in onnx.external_data_helper._get_all_tensors(model)
            if tensor.external_data
        ]
        seen = {
            entry.value
            for tensor in tensors
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert seen <= found
    assert read_by_both > 300


def hostile(digits: Bundle, folder: Path, location: str, *, listed: bytes | None = None) -> Bundle:
    """The digits with a decoder that adds a tensor from another file, and a matching manifest."""
    shutil.copytree(digits.path, folder)
    model = onnx.load(str(folder / "decoder.onnx"))
    initializer = next(
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )
    tensor = outside(location, initializer.name)
    tensor.ClearField("dims")
    tensor.dims.extend(initializer.dims)
    initializer.CopyFrom(tensor)
    onnx.save(model, str(folder / "decoder.onnx"))
    decoder = replace(digits.networks["decoder"], graph=FileRecord.of(folder / "decoder.onnx"))
    if listed:
        (folder / location).write_bytes(listed)
        decoder = replace(decoder, weights=FileRecord.of(folder / location))
    replace(digits, path=folder, networks={**digits.networks, "decoder": decoder}).write()
    return Bundle.open(folder)


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime and TensorRT's compiler must not see the graph at all."""

    def never(*_: object, **__: object) -> None:
        pytest.fail("the graph was handed on")

    monkeypatch.setattr(onnxruntime, "InferenceSession", never)
    monkeypatch.setattr("diver_trt.runtime.backends.tensorrt.builder.compile_graph", never)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "{outside}/secret",
        "link",
        "unlisted",
        "sub/unlisted",
        "sub/../../secret",
        "./unlisted",
        "encoder.onnx",
    ],
)
@pytest.mark.parametrize("reader", ["open", "build", "inspect"])
def test_a_hostile_graph_is_refused_before_anything_opens_it(
    digits: Bundle, tmp_path: Path, location: str, reader: str
) -> None:
    location = location.format(outside=tmp_path)
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    bundle = hostile(digits, tmp_path / "bundle", location)
    (bundle.path / "link").symlink_to("../secret")
    (bundle.path / "unlisted").write_bytes(SECRET.tobytes())
    (bundle.path / "sub").mkdir()
    shutil.copy(bundle.path / "unlisted", bundle.path / "sub")
    expected = (
        rf"decoder\.onnx: reads '{location}', but bundle\.json lists no such file for it; "
        "export the model again"
    )
    if reader == "inspect":
        message = f"reads '{location}', but bundle.json lists no such file for it"
        assert message in fails(run("inspect", bundle.path))
        return
    with pytest.raises(BundleError, match=expected):
        if reader == "open":
            OnnxSession(bundle, 1).open("decoder")
        else:
            built(bundle)


def built(bundle: Bundle) -> None:
    from diver_trt.runtime.backends.tensorrt import builder as engine_builder
    from diver_trt.runtime.backends.tensorrt.sidecar import Profile
    from diver_trt.runtime.backends.tensorrt.target import Target
    from tests.stand_in import MACHINE

    target = Target(
        backend="rtx", machine=MACHINE, compute_capabilities=("sm86",), batches=Profile(1, 1, 1)
    )
    engine_builder._build_engine(bundle, "decoder", target, bundle.path, lambda *_: None)


@pytest.mark.usefixtures("no_session")
def test_listed_weights_must_not_be_a_link_out_of_the_bundle(
    digits: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(bytes(10**6))
    bundle = hostile(digits, tmp_path / "bundle", "decoder.onnx.data", listed=bytes(10**6))
    (bundle.path / "decoder.onnx.data").unlink()
    (bundle.path / "decoder.onnx.data").symlink_to("../secret")
    for use in (lambda: OnnxSession(bundle, 1).open("decoder"), lambda: built(bundle)):
        with pytest.raises(
            BundleError,
            match=r"decoder\.onnx\.data: is a link out of the bundle; copy what it points to",
        ):
            use()


def test_listed_weights_in_the_folder_are_read(digits: Bundle, tmp_path: Path) -> None:
    bundle = hostile(digits, tmp_path / "bundle", "decoder.onnx.data", listed=bytes(10**6))
    OnnxSession(bundle, 1).open("decoder").close()
    (bundle.path / "decoder.onnx.data").rename(bundle.path / "real")
    (bundle.path / "decoder.onnx.data").symlink_to("real")
    OnnxSession(bundle, 1).open("decoder").close()


def test_onnx_runtime_itself_reads_unlisted_files(tmp_path: Path) -> None:
    """The reason for the check: it silently reads a file of the folder that nothing lists."""
    (tmp_path / "unlisted").write_bytes(SECRET.tobytes())
    (tmp_path / "a.onnx").write_bytes(WHERE["initializer"]("unlisted").SerializeToString())
    session = import_onnxruntime().InferenceSession(
        tmp_path / "a.onnx", providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {"x": np.zeros(16, np.float32)})[0], SECRET)
