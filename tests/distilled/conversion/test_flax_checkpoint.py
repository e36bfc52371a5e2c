"""FRePo's published files: flax training states in msgpack, which only `convert` reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.conversion.flax_checkpoint import open_flax_checkpoint
from diver_trt.errors import DatasetError, MissingExtraError
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, as_woof, assert_holds, known_images
from tests.distilled.whitened import convert, converted_facts


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return methods.frepo_checkpoint(tmp_path, known_images(20, 32), CLASSES)


def extension(shape: Any, dtype: str, values: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, values)))


@pytest.mark.parametrize("named", [".", "checkpoint_500000"])
def test_a_checkpoint_is_converted_and_then_read(
    checkpoint: Path, imagenet: Bundle, named: str
) -> None:
    convert(checkpoint.parent / named, checkpoint.with_name("set.npz"))
    dataset = as_woof(checkpoint.with_name("set.npz"), imagenet)
    assert dataset.origin.format.name == "frepo"
    assert_holds(dataset, known_images(20, 32), CLASSES, imagenet_subsets()["imagewoof@frepo"])


@pytest.mark.parametrize("name", ["checkpoint_0.4567", "ipc10_llTrue"])
def test_a_checkpoint_may_be_named_by_its_metric_or_freely(
    checkpoint: Path, imagenet: Bundle, name: str
) -> None:
    path = checkpoint.rename(checkpoint.with_name(name))
    convert(path, path.with_name("set.npz"))
    assert as_woof(path.with_name("set.npz"), imagenet).origin.format.name == "frepo"


def test_the_last_checkpoint_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parent / "checkpoint_90000").write_bytes(checkpoint.read_bytes())
    facts = converted_facts(checkpoint.parent, tmp_path / "set.npz")
    assert Path(facts["source"]).name == "checkpoint_500000"


@pytest.mark.parametrize("named", [".", "checkpoint_500000"])
def test_a_recovery_refuses_a_checkpoint_and_names_the_command_without_loading_msgpack(
    checkpoint: Path, imagenet: Bundle, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(DatasetError) as refusal:
        as_woof(checkpoint.parent / named, imagenet)
    assert str(refusal.value) == (
        f"{checkpoint}: is a flax checkpoint, which is converted before it is recovered. Run "
        f"`diver-trt convert {checkpoint} checkpoint_500000.npz --zca-reference IMAGES`, with "
        "FRePo's own data/zca/*.npz or its training images as IMAGES (without --zca-reference if "
        "it is not whitened)."
    )


def test_rows_are_read_from_the_file(checkpoint: Path) -> None:
    found = open_flax_checkpoint(checkpoint)
    state = msgpack.unpackb(checkpoint.read_bytes())
    for name, stored in (("x_proto", found["image"]), ("y_proto", found["label"])):
        shape, dtype, values = msgpack.unpackb(state["params"][name].data)
        expected = np.frombuffer(values, dtype).reshape(shape)
        assert stored.shape == expected.shape
        np.testing.assert_array_equal(stored[3], expected[3])
        np.testing.assert_array_equal(stored[5:9], expected[5:9])


def test_every_cut_is_noticed(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for end in [*range(200), *range(200, len(whole), 9973), len(whole) - 1]:
        checkpoint.write_bytes(whole[:end])
        try:
            open_flax_checkpoint(checkpoint)
        except DatasetError as error:
            assert "expected" in str(error)
        else:
            pytest.fail(f"{end} of {len(whole)} bytes were taken for a whole checkpoint")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "lacks x_proto or y_proto in its params"),
        ({"x_proto": 3, "y_proto": 3}, "not a flax checkpoint, or a damaged one"),
        (
            {"x_proto": extension([2**40, 32, 32, 3], "float32", b"1234"), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        (
            {"x_proto": extension([-1, -1], "float32", b"1234"), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        (
            {"x_proto": extension([0, 3], "float32", b""), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        (
            {"x_proto": extension([1], "object", b"12345678"), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        (
            {"x_proto": extension([1], "float32", b"1234", code=3), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        (
            {"x_proto": extension("ab", "float32", b"1234"), "y_proto": None},
            "not a flax checkpoint, or a damaged one",
        ),
        ({"a" * 300: 1}, "not a flax checkpoint, or a damaged one"),
    ],
)
def test_other_states_are_refused(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb({"step": 1, "params": params}))
    with pytest.raises(DatasetError, match=message):
        open_flax_checkpoint(tmp_path / "checkpoint_1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x93\x01\x02\x03",
        b"\x91" * 5000,
        b"\x81\xa6params\xdf\xff\xff\xff\xff",
        b"\xff" * 99,
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint_1").write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"checkpoint_1: (not a flax checkpoint, or a damaged one|lacks x_proto)"
    ):
        open_flax_checkpoint(tmp_path / "checkpoint_1")


def test_without_msgpack_the_extra_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(
        MissingExtraError, match=r"reading flax checkpoints needs msgpack.*diver-trt\[export\]"
    ):
        open_flax_checkpoint(checkpoint)
