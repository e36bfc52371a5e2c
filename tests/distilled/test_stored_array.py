"""Files of arrays: read by rows, nothing executed, and no more memory than a file has bytes."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diver_trt.distilled import npz_file, stored_array
from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.stored_array import InPlaceArray, LazyArray, StoredArray, load
from diver_trt.errors import DatasetError

VALUES = np.arange(4 * 3 * 5 * 2, dtype=np.float32).reshape(4, 3, 5, 2)


def save_torch(path: Path) -> Path:
    torch.save({"a": torch.from_numpy(VALUES)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def save_npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), a=VALUES)
    return path.with_suffix(".npz")


def save_safetensors(path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"a": VALUES}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("save", [save_torch, save_npz, save_safetensors])
def test_rows_are_read_from_the_file_one_by_one(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    content = open_stored(save(tmp_path / "file"))
    assert isinstance(content, dict)
    array = content["a"]
    assert isinstance(array, StoredArray)
    assert (array.shape, array.dtype, len(array), array.nbytes) == (
        VALUES.shape,
        VALUES.dtype,
        4,
        VALUES.nbytes,
    )
    np.testing.assert_array_equal(array[2], VALUES[2])
    np.testing.assert_array_equal(array[1:3], VALUES[1:3])
    np.testing.assert_array_equal(array[3:9], VALUES[3:])
    np.testing.assert_array_equal(load(array), VALUES)


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.origin = "distilled"  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    ("tensor", "by_rows"),
    [
        (torch.from_numpy(VALUES).contiguous(memory_format=torch.channels_last), True),
        (torch.from_numpy(VALUES)[1:], True),
        (torch.from_numpy(VALUES)[::2], True),
        (torch.from_numpy(VALUES)[:, :, 1:4], False),
        (torch.from_numpy(VALUES).permute(3, 0, 1, 2), False),
        (torch.arange(5.0)[:, None, None].expand(5, 3, 4), False),
        (torch.nn.Parameter(torch.from_numpy(VALUES)), True),
        (with_attribute(torch.nn.Parameter(torch.from_numpy(VALUES.copy()))), True),
        (with_attribute(torch.from_numpy(VALUES.copy())), True),
        *(
            (torch.from_numpy(VALUES).to(dtype), True)
            for dtype in (torch.half, torch.double, torch.int8, torch.int16, torch.int32)
        ),
        *(
            (torch.from_numpy(VALUES).to(dtype), True)
            for dtype in (torch.int64, torch.uint8, torch.bool)
        ),
        (torch.zeros(2, 0, 3), True),
    ],
    ids=[
        *(
            "channels last",
            "later rows",
            "every other row",
            "a slice of rows",
            "transposed",
            "expanded",
        ),
        *("a parameter", "a parameter with an attribute", "an attribute"),
        *("half", "double", "int8", "int16", "int32", "int64", "uint8", "bool", "empty"),
    ],
)
def test_tensors_of_any_strides_are_read(
    tmp_path: Path, tensor: torch.Tensor, by_rows: bool, zipped: bool
) -> None:
    torch.save([torch.ones(7), tensor], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    content = open_stored(tmp_path / "a.pt")
    assert isinstance(content, list)
    array = content[1]
    assert isinstance(array, InPlaceArray if by_rows else LazyArray)
    expected = tensor.detach().numpy()
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(load(array), expected)
    np.testing.assert_array_equal(array[1], expected[1])
    np.testing.assert_array_equal(array[0:2], expected[0:2])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_tensors_may_share_their_values(tmp_path: Path, zipped: bool) -> None:
    whole = torch.from_numpy(VALUES.copy())
    torch.save(
        (whole, whole[2:], torch.tensor(0.5)),
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=zipped,
    )
    content = open_stored(tmp_path / "a.pt")
    assert isinstance(content, list)
    np.testing.assert_array_equal(load(content[0]), VALUES)
    np.testing.assert_array_equal(load(content[1]), VALUES[2:])
    assert content[2] == np.float32(0.5)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_plain_data_is_read(tmp_path: Path, protocol: int, zipped: bool) -> None:
    weights = torch.nn.Linear(2, 2).state_dict()
    value = {
        "data": [[torch.from_numpy(VALUES), torch.arange(4)]],
        "state": weights,
        "accs_all_exps": {"ConvNet": [np.float64(0.5), 0.5], 3: {1, 2}, "size": torch.Size([1])},
        "large": 10**400,
        "method": "é" * 300,
        "none": None,
    }
    torch.save(
        value,
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    content = open_stored(tmp_path / "a.pt")
    assert isinstance(content, dict)
    np.testing.assert_array_equal(load(content["data"][0][0]), VALUES)
    np.testing.assert_array_equal(load(content["data"][0][1]), np.arange(4))
    np.testing.assert_array_equal(load(content["state"]["weight"]), weights["weight"].numpy())
    assert content["accs_all_exps"] == {"ConvNet": [None, None], "3": None, "size": None}
    assert str(content["large"]) == hex(10**400)  # too large for an integer array
    assert content["none"] is None
    assert str(content["method"]) == "é" * 100  # cut: names are shorter


@pytest.mark.parametrize(
    "data",
    [
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
def test_later_protocols_claim_no_more_than_they_have(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DatasetError, match=r"damaged|Python objects") as raised:
        open_stored(pickled(tmp_path / "a.pt", data))
    assert str(raised.value).isprintable()


def test_later_protocols_name_what_they_call(tmp_path: Path) -> None:
    torch.save([torch.zeros(3), Touch(tmp_path / "executed")], tmp_path / "a.pt", pickle_protocol=5)
    with pytest.raises(DatasetError, match=r"holds more than tensors \(posix.mkdir\)"):
        open_stored(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_tensors_of_a_big_endian_machine_are_read(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(VALUES.byteswap()), tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as source,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as target,
    ):
        for info in source.infolist():
            target.writestr(
                info, b"big" if info.filename.endswith("/byteorder") else source.read(info)
            )
    array = open_stored(tmp_path / "big.pt")
    assert isinstance(array, StoredArray)
    np.testing.assert_array_equal(load(array), VALUES)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.from_numpy(VALUES), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    array = open_stored(tmp_path / "a.pt")
    assert isinstance(array, StoredArray)
    np.testing.assert_array_equal(load(array), VALUES)


def test_a_negated_view_is_refused_since_its_values_are_not_in_the_file(tmp_path: Path) -> None:
    view = torch.complex(torch.zeros(4), torch.ones(4)).conj().imag
    assert view.is_neg()
    torch.save(view, tmp_path / "a.pt")
    with pytest.raises(DatasetError, match="holds a negated or conjugate view of a tensor"):
        open_stored(tmp_path / "a.pt")


def test_a_safetensors_header_may_have_null_metadata(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": None, "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    content = open_stored(tmp_path / "a.safetensors")
    assert isinstance(content, dict)
    assert load(content["a"]).tobytes() == b"abc"


def test_fortran_order_and_compressed_members_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.asfortranarray(VALUES))
    np.savez_compressed(tmp_path / "c.npz", a=VALUES, text="idc")
    np.savez_compressed(tmp_path / "cf.npz", a=np.asfortranarray(VALUES))
    for name in ("f.npz", "c.npz", "cf.npz"):
        content = open_stored(tmp_path / name)
        assert isinstance(content, dict)
        np.testing.assert_array_equal(load(content["a"]), VALUES)
        np.testing.assert_array_equal(content["a"][2], VALUES[2])
        np.testing.assert_array_equal(content["a"][1:3], VALUES[1:3])
        assert str(content.get("text", "idc")) == "idc"


def test_torchs_old_format_may_have_too_little(tmp_path: Path) -> None:
    torch.save(
        [torch.from_numpy(VALUES), torch.ones(3)],
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    whole = (tmp_path / "old.pt").read_bytes()
    for end in range(1, len(whole), 7):
        (tmp_path / "old.pt").write_bytes(whole[:end])
        with pytest.raises(DatasetError) as raised:
            open_stored(tmp_path / "old.pt")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize(
    "number",
    [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(5), np.int32(5), np.bool_(True)],
    ids=repr,
)
def test_accuracies_of_either_numpy_do_not_stop_a_file(
    tmp_path: Path, module: bytes, number: Any
) -> None:
    value = {
        "data": torch.from_numpy(VALUES),
        "accs_all_exps": {"ConvNet": [number, 0.5], 3: {number}},
        "size": torch.Size([1]),
    }
    path = rewritten(
        value, tmp_path / "res.pt", lambda data: data.replace(b"numpy._core.multiarray", module)
    )
    content = open_stored(path)
    assert isinstance(content, dict)
    np.testing.assert_array_equal(load(content["data"]), VALUES)
    assert content["accs_all_exps"] == {"ConvNet": [None, None], "3": None}


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_never_runs_code(tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"data": Touch(tmp_path / "executed")},
        tmp_path / "evil.pt",
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


def pickled(path: Path, data: bytes) -> Path:
    """Write a file of torch.save with one storage of 24 bytes, "0", and the given pickle."""
    return rewritten(torch.zeros(6), path, lambda _: b"\x80\x02" + data)


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def test_a_pickle_by_hand_is_read_as_one_of_torch(tmp_path: Path) -> None:
    array = open_stored(
        pickled(
            tmp_path / "a.pt",
            REBUILD + b"(" + STORAGE + b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR.",
        )
    )
    assert isinstance(array, StoredArray)
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
    ("data", "message"),
    [
        (
            b"](" + b"}" * 600_000 + b"e.",
            "holds too much beside its tensors; save the tensors alone",
        ),
        (
            b"X" + struct.pack("<I", 1 << 23) + b"a" * (1 << 23) + b".",
            "holds too much beside its tensors; save the tensors alone",
        ),
    ],
)
def test_an_endless_pickle_is_not_read_to_its_end(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        open_stored(pickled(tmp_path / "a.pt", data))


@pytest.mark.parametrize(
    "keys",
    [
        b")" + b"q\x00h\x00\x86" * 60 + b"\x85.",
        b"](" + b")" + b"q\x00h\x00\x86" * 60 + b"e.",
        b"N.",
    ],
)
def test_the_old_format_names_its_values_by_texts(tmp_path: Path, keys: bytes) -> None:
    """A tuple of itself twice, 60 times over, must not be hashed or printed either."""
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {}, [])
    (tmp_path / "a.pt").write_bytes(
        b"".join(pickle.dumps(part, 2) for part in parts) + b"\x80\x02" + keys
    )
    with pytest.raises(DatasetError, match="its tensors have no values"):
        open_stored(tmp_path / "a.pt")


def test_a_call_that_would_allocate_memory_is_ignored(tmp_path: Path) -> None:
    """numpy makes a scalar of as many zeros as its type has."""
    data = (
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0e\x00\x00\x00V9000000000000\x85R\x85R."
    )
    assert open_stored(pickled(tmp_path / "a.pt", data)) is None


def test_object_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([Touch(tmp_path / "executed")], dtype=object))
    with pytest.raises(
        DatasetError, match=r"images.npy holds Python objects, which are never loaded"
    ):
        open_stored(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


def npz_that_says(
    path: Path, shape: tuple[int, ...], data: bytes = b"\0" * 64, **options: Any
) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("images.npy", header.getvalue() + data)
    return path


def test_arrays_that_claim_more_than_they_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"states shape \[1099511627776\], but has"):
        open_stored(npz_that_says(tmp_path / "a.npz", (2**40,)))
    torch.save(torch.zeros(1).expand(2**20, 2**20), tmp_path / "expanded.pt")
    with pytest.raises(
        DatasetError, match=r"a tensor of shape \[1048576, 1048576\] is larger than the file"
    ):
        open_stored(tmp_path / "expanded.pt")


def test_zip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 1 << 20)
    bomb = npz_that_says(
        tmp_path / "bomb.npz", (1 << 19,), b"\0" * (1 << 21), compression=zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 1 << 14
    content = open_stored(bomb)
    assert isinstance(content, dict)
    with pytest.raises(
        DatasetError,
        match=r"would need 2,097,152 bytes of memory, since it cannot be read row by row; expected",
    ):
        content["images"][0]
    torch.save(torch.zeros(1 << 19), tmp_path / "flat.pt")
    with (
        zipfile.ZipFile(tmp_path / "flat.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(DatasetError, match="is compressed, which"):
        open_stored(tmp_path / "bomb.pt")


def compressed_npz(path: Path) -> Path:
    np.savez_compressed(path, a=VALUES, b=VALUES + 1, c=VALUES + 2, text="idc")
    return path


def scattered_npz(path: Path) -> Path:
    np.savez(
        path,
        a=np.asfortranarray(VALUES),
        b=np.asfortranarray(VALUES + 1),
        c=np.asfortranarray(VALUES + 2),
    )
    return path


def scattered_tensors(path: Path) -> Path:
    torch.save(
        {name: torch.from_numpy(VALUES + add).transpose(0, 1) for add, name in enumerate("abc")},
        path.with_suffix(".pt"),
    )
    return path.with_suffix(".pt")


@pytest.mark.parametrize("save", [compressed_npz, scattered_npz, scattered_tensors])
def test_the_arrays_of_a_file_share_one_limit_and_only_used_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 2 * VALUES.nbytes + 100)
    content = open_stored(save(tmp_path / "a.npz"))
    assert isinstance(content, dict)
    for _ in range(3):
        assert content["c"][0].flat[0] == 2
        assert content["a"][0].flat[0] == 0
    with pytest.raises(
        DatasetError,
        match=r"would need 1,4\d\d bytes of memory, .* row by row; expected at most 1,060",
    ):
        content["b"][0]


def test_an_unused_member_is_not_decompressed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 10_000))
    np.savez_compressed(tmp_path / "a.npz", a=noise, b=noise)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data[archive.getinfo("b.npy").header_offset + 100_000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    content = open_stored(tmp_path / "a.npz")
    assert isinstance(content, dict)
    np.testing.assert_array_equal(load(content["a"]), noise)
    with pytest.raises(DatasetError, match=r"b.npy is damaged"):
        load(content["b"])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("last", [False, True])
def test_a_stored_member_of_another_checksum_is_refused(
    tmp_path: Path, order: Any, last: bool
) -> None:
    """Any row of it is refused, as in numpy; the other arrays of the file are read."""
    noise = np.asarray(np.random.default_rng(0).normal(size=(50, 10_000)), order=order)
    np.savez(tmp_path / "a.npz", a=VALUES, b=noise)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(noise.tobytes(order)[:64]) + (noise.nbytes - 1 if last else 0)] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"), np.load(tmp_path / "a.npz") as file:
        file["b"]
    content = open_stored(tmp_path / "a.npz")
    assert isinstance(content, dict)
    np.testing.assert_array_equal(load(content["a"]), VALUES)
    for _ in range(2):
        with pytest.raises(
            DatasetError, match=r"a.npz: b.npy is damaged \(Bad CRC-32 for file 'b.npy'\)"
        ):
            content["b"][20]


def test_a_stored_member_is_compared_with_its_checksum_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", a=VALUES)
    content = open_stored(tmp_path / "a.npz")
    assert isinstance(content, dict)
    np.testing.assert_array_equal(content["a"][1], VALUES[1])
    monkeypatch.setattr(npz_file, "open_zip", lambda _: pytest.fail("read again"))
    np.testing.assert_array_equal(content["a"][2], VALUES[2])


def test_no_message_quotes_a_memory_address(tmp_path: Path) -> None:
    text = b"{'descr': open('a'), 'fortran_order': False, 'shape': (1,)}"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(
            "images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(4)
        )
    with pytest.raises(DatasetError, match=r"not an \.npz file, or a damaged one") as raised:
        open_stored(tmp_path / "a.npz")
    assert "ast.Call object" in str(raised.value)
    assert "0x" not in str(raised.value)


def test_a_long_text_is_not_read_when_a_file_is_opened(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", short="a" * 500, long="a" * 600)
    content = open_stored(tmp_path / "a.npz")
    assert isinstance(content, dict)
    assert isinstance(content["short"], np.ndarray)
    assert isinstance(content["long"], StoredArray)


@pytest.mark.parametrize("stated", [10_000, 9_999, 10_001])
def test_a_member_of_another_length_than_stated_is_refused(tmp_path: Path, stated: int) -> None:
    """The length of a member in the zip's directory is not trusted."""
    npz_that_says(tmp_path / "a.npz", (stated,), bytes(40_000), compression=zipfile.ZIP_DEFLATED)
    data = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        (info,) = archive.infolist()
    length = struct.pack("<I", info.file_size)
    assert data.count(length) == 2
    (tmp_path / "a.npz").write_bytes(
        data.replace(length, struct.pack("<I", info.file_size - 40_000 + 4 * stated))
    )
    content = open_stored(tmp_path / "a.npz")
    assert isinstance(content, dict)
    if stated == 10_000:
        assert not load(content["images"]).any()
    else:
        with pytest.raises(DatasetError, match=r"images.npy is damaged"):
            load(content["images"])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(tmp_path: Path, method: int) -> None:
    """Python decompresses such members as a whole, however little is requested."""
    with pytest.raises(
        DatasetError, match=r"images.npy is compressed in an unusual way; save it with numpy.savez"
    ):
        open_stored(npz_that_says(tmp_path / "a.npz", (16,), compression=method))


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "images.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b" " * 100_000
        )
    with pytest.raises(DatasetError, match=r"a damaged one .*expected 2147483648 bytes got 16372"):
        open_stored(tmp_path / "a.npz")


def test_a_directory_or_a_header_longer_than_any_real_one_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(70):
            archive.writestr(f"{number:02}" + "a" * 65_000, b"")
    with pytest.raises(DatasetError, match="Truncated central directory"):
        open_stored(tmp_path / "a.npz")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 5 << 20) + b" " * (5 << 20))
    with pytest.raises(
        DatasetError, match="has a header of 5,242,880 bytes; expected at most 4,194,304"
    ):
        open_stored(tmp_path / "a.safetensors")


def rewritten(value: Any, path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Save a value with torch, and change the pickle in the file."""
    torch.save(value, path.with_suffix(".tmp"))
    with zipfile.ZipFile(path.with_suffix(".tmp")) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(info, change(data) if info.filename.endswith("data.pkl") else data)
    return path


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    """The pickle states 60 rows where the storage has 6; torch on the meta device ignores that."""
    path = rewritten(
        torch.zeros(6, 3),
        tmp_path / "a.pt",
        lambda data: data.replace(b"K\x06K\x03", b"K\x3cK\x03"),
    )
    with pytest.raises(DatasetError, match=r"lies outside its own storage|damaged"):
        open_stored(path)


@pytest.mark.parametrize("save", [save_torch, save_npz, save_safetensors])
def test_damaged_files_end_in_one_line(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    path = save(tmp_path / "file")
    whole = path.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:end])
        with pytest.raises(DatasetError) as raised:
            content = open_stored(path)
            assert isinstance(content, dict)
            load(content["a"])
        assert "\n" not in str(raised.value)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for save in (save_torch, save_npz, save_safetensors):
        path = save(tmp_path / "file")
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            changed = whole.copy()
            changed[generator.integers(0, len(whole), 4)] = generator.integers(0, 256, 4)
            path.write_bytes(changed.tobytes())
            try:
                content = open_stored(path)
                for array in content.values() if isinstance(content, dict) else []:
                    if isinstance(array, (StoredArray, np.ndarray)):
                        load(array)
            except DatasetError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("alignment", [b"0", b"-8", b"", b"x", b"9999999"])
def test_the_offsets_of_tensors_come_from_the_zip_alone(tmp_path: Path, alignment: bytes) -> None:
    """torch 2.13 derives it from the alignment that a file states.

    There, an alignment of 0 ends the process, and a file that was zipped again is misread.
    """
    torch.save([torch.zeros(2, 3), torch.from_numpy(VALUES)], tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as source,
        zipfile.ZipFile(tmp_path / "a.pt", "w") as target,
    ):
        for info in source.infolist():
            target.writestr(
                info.filename,
                alignment if info.filename.endswith(".storage_alignment") else source.read(info),
            )
    content = open_stored(tmp_path / "a.pt")
    assert isinstance(content, list)
    np.testing.assert_array_equal(load(content[1]), VALUES)


def test_structures_without_end_are_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    doubling: list[Any] = []
    for _ in range(30):
        doubling = [doubling, doubling]
    for name, value in (("circle", circle), ("doubling", doubling)):
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(DatasetError, match="nested too deeply or endlessly"):
            open_stored(tmp_path / f"{name}.pt")


def test_one_name_for_two_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("labels", "labels.npy"):
            data = io.BytesIO()
            np.save(data, np.arange(3))
            archive.writestr(name, data.getvalue())
    with pytest.raises(DatasetError, match="holds an array twice under one name"):
        open_stored(tmp_path / "a.npz")
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("a/data.pkl", b"\x80\x02N.")
    with pytest.raises(DatasetError, match="holds two records under one name"):
        open_stored(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), "torch._utils._rebuild_tensor_v3"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "torch.BFloat16Storage"),
        (torch.zeros(2, 2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    ],
)
def test_tensors_that_are_not_plain_arrays_are_refused(
    tmp_path: Path, tensor: torch.Tensor, name: str
) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    with pytest.raises(
        DatasetError,
        match=rf"holds a tensor of an unusual kind \({name}\); save it as a dense one of float32",
    ):
        open_stored(tmp_path / "a.pt")


def test_other_files_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.pt").touch()
    with pytest.raises(
        DatasetError, match=r"is not a file of tensors; expected .pt, .pth, .npz, .safetensors"
    ):
        open_stored(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match="is empty"):
        open_stored(tmp_path / "a.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("fifo.pt", "zero.npz"):
        with pytest.raises(DatasetError, match=rf"{name}: is not a regular file"):
            open_stored(tmp_path / name)
    with pytest.raises(DatasetError, match="cannot be read"):
        open_stored(tmp_path / "missing.npz")
    np.savez(tmp_path / "b.npz", a=VALUES)
    (tmp_path / "b.npz").rename(tmp_path / "b.pt")
    with pytest.raises(DatasetError, match=r"is a zip file, but not one of torch.save"):
        open_stored(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"P6 4 4 255 ")
    with pytest.raises(DatasetError, match=r"not a file of torch.save, or a damaged one"):
        open_stored(tmp_path / "c.pt")


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from diver_trt.distilled.array_file import open_stored\n"
        "from diver_trt.distilled.stored_array import load\n"
        f"print(load(open_stored(Path({str(save_torch(tmp_path / 'a'))!r}))['a']).sum())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) == VALUES.sum()


def test_a_large_array_is_not_loaded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 64)
    content = open_stored(save_npz(tmp_path / "a"))
    assert isinstance(content, dict)
    row: NDArray[Any] = content["a"][3]
    np.testing.assert_array_equal(row, VALUES[3])
    with pytest.raises(DatasetError, match="would need 480 bytes of memory; expected at most 64"):
        load(content["a"])
