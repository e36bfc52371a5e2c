"""Pickles are interpreted, never run, and take no more memory than plain data needs."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.stored_array import load
from diver_trt.errors import DatasetError
from tests.distilled.array_files import VALUES, Touch, pickled


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("saved", [2, 5])
def test_a_pickle_never_runs_code(tmp_path: Path, zipped: bool, saved: int) -> None:
    torch.save(
        {"data": Touch(tmp_path / "executed")},
        tmp_path / "evil.pt",
        pickle_protocol=saved,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        DatasetError,
        match=r"holds more than tensors \(posix.mkdir\), and nothing else is ever loaded",
    ):
        open_stored(tmp_path / "evil.pt")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Touch(tmp_path / "executed"), protocol))
        with pytest.raises(
            DatasetError,
            match=r"plain.pt: holds (more than tensors \(posix.mkdir\)|Python objects)",
        ):
            open_stored(tmp_path / "plain.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (bytearray(3), r"holds more than tensors \(__builtin__.bytearray\)"),
        (np.zeros(3), r"holds more than tensors \(numpy\._?core.multiarray._reconstruct\)"),
        (torch.nn.Linear(2, 2), r"holds more than tensors \(torch.nn.modules.linear.Linear\)"),
        (Path("a"), r"holds more than tensors \(pathlib.PosixPath\)"),
    ],
)
def test_objects_beside_tensors_are_named(tmp_path: Path, value: Any, message: str) -> None:
    torch.save([torch.zeros(3), value], tmp_path / "a.pt")
    with pytest.raises(
        DatasetError, match=f"{message}, and nothing else is ever loaded; save the tensors alone"
    ):
        open_stored(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("value", [[1, 2], [VALUES], "text", 10**30])
def test_no_refusal_advises_to_load_it_anyway(tmp_path: Path, value: Any, protocol: int) -> None:
    """torch's own messages end in the advice to switch `weights_only` off."""
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(value, protocol))
    torch.save(value, tmp_path / "saved.pt", pickle_protocol=max(2, protocol))
    for name in ("plain.pt", "saved.pt"):
        try:
            open_stored(tmp_path / name)
        except DatasetError as error:
            assert "weights_only" not in str(error)
            assert (
                "not a file of torch.save" in str(error)
                or "Python objects" in str(error)
                or "more than tensors" in str(error)
            )
        else:
            assert (name, value is not VALUES) == ("saved.pt", True)


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def test_a_pickle_by_hand_is_read_as_one_of_torch(tmp_path: Path) -> None:
    data = REBUILD + b"(" + STORAGE + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR."
    array: Any = open_stored(pickled(tmp_path / "a.pt", data))
    np.testing.assert_array_equal(load(array), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"R.",
        b"0.",
        b"N",
        b"Ne.",
        b"h\x07.",
        b"NK\x01\x85R.",
        b"N)R.",
        b"))R.",
        b"}K\x01a.",
        b"]K\x01K\x02s.",
        b"}(K\x01u.",
        b"NQ.",
        b"(K\x01K\x02K\x03tQ.",
        STORAGE.replace(b"storage", b"modules") + b".",
        STORAGE.replace(b"FloatStorage", b"float32") + b".",
        STORAGE.replace(b"ctorch\nFloatStorage\n", b")") + b".",
        STORAGE.replace(b"X\x01\x00\x00\x000", b"K\x00") + b".",
        b"ctorch\nFloatStorage\n)R.",
        b"X\x04\x00\x00\x00exit)R.",
        REBUILD + b")R.",
        REBUILD + b"(NK\x00))\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00K\x02K\x03\x86K\x01\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00K\x02\x85J\xff\xff\xff\xff\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"J\xff\xff\xff\xffK\x02\x85K\x01\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00K\x06\x85K\x02\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x01K\x06\x85K\x01\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00\x88\x85\x88\x85\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00X\x01\x00\x00\x002X\x01\x00\x00\x001\x89}tR.",
        REBUILD + b"(" + STORAGE + b"K\x00(" + b"K\x01" * 40 + b"t(" + b"K\x01" * 40 + b"t\x89}tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n)R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00](h\x00Ne]q\x01(h\x00Nh\x01eR.",
        b"ccollections\nOrderedDict\n]K\x01\x85R.",
        b"ccollections\nOrderedDict\n)\x81.",
        b"(lp0\n.",
        # Later protocols, which claim more than they have.
        b"\x8c\x05torchK\x01\x93.",
        b"K\x01\x8c\x05torch\x93.",
        b"\x93.",
        b"\x94.",
        b"\x90.",
        b"\x91.",
        b"\x95" + b"\xff" * 8 + b".",
        b"\x8d" + struct.pack("<Q", 1 << 62) + b"a.",
        b"\x8e" + struct.pack("<Q", 1 << 62) + b"a.",
        b"\x96" + struct.pack("<Q", 3) + b"abc.",
        b"\x97.",
        b"\x8b" + struct.pack("<i", 1 << 30) + b"a.",
    ],
)
def test_invalid_pickles_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DatasetError, match=r"damaged|Python objects") as raised:
        open_stored(pickled(tmp_path / "a.pt", data))
    assert str(raised.value).isprintable()


def test_keys_that_take_for_ever_to_hash_are_left_out(tmp_path: Path) -> None:
    """A tuple of itself twice, 60 times over, has 2^60 parts."""
    deep = b")" + b"q\x00h\x00\x86" * 60
    content = open_stored(pickled(tmp_path / "a.pt", b"}(" + deep + b"K\x01K\x02K\x03u."))
    assert content == {"2": 3}
    with pytest.raises(DatasetError, match="a damaged one"):
        open_stored(pickled(tmp_path / "b.pt", deep + b")R."))


@pytest.mark.parametrize(
    "data",
    [
        b"](" + b"}" * 600_000 + b"e.",
        b"X" + struct.pack("<I", 1 << 23) + b"a" * (1 << 23) + b".",
    ],
    ids=["instructions", "a text"],
)
def test_an_endless_pickle_is_not_read_to_its_end(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(
        DatasetError, match="holds too much beside its tensors; save the tensors alone"
    ):
        open_stored(pickled(tmp_path / "a.pt", data))


def test_a_call_that_would_allocate_memory_is_ignored(tmp_path: Path) -> None:
    """numpy makes a scalar of as many zeros as its type has."""
    data = (
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0e\x00\x00\x00V9000000000000\x85R\x85R."
    )
    assert open_stored(pickled(tmp_path / "a.pt", data)) is None
