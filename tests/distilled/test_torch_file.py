"""Files of torch.save are read in place, without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.stored_array import InPlaceArray, LazyArray, load
from diver_trt.errors import DatasetError
from tests.distilled.array_files import VALUES, rewritten, save_torch

DTYPES = {
    name: getattr(torch, name)
    for name in ("half", "double", "int8", "int16", "int32", "int64", "uint8", "bool")
}


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
        *((torch.from_numpy(VALUES).to(dtype), True) for dtype in DTYPES.values()),
        (torch.zeros(2, 0, 3), True),
    ],
    ids=[
        *("channels last", "later rows", "every other row", "a slice of rows", "transposed"),
        *("expanded", "a parameter", "a parameter with an attribute", "an attribute"),
        *(*DTYPES, "empty"),
    ],
)
def test_tensors_of_any_strides_are_read(
    tmp_path: Path, tensor: torch.Tensor, by_rows: bool, zipped: bool
) -> None:
    torch.save([torch.ones(7), tensor], tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    content: Any = open_stored(tmp_path / "a.pt")
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
    content: Any = open_stored(tmp_path / "a.pt")
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
        value, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    content: Any = open_stored(tmp_path / "a.pt")
    np.testing.assert_array_equal(load(content["data"][0][0]), VALUES)
    np.testing.assert_array_equal(load(content["data"][0][1]), np.arange(4))
    np.testing.assert_array_equal(load(content["state"]["weight"]), weights["weight"].numpy())
    assert content["accs_all_exps"] == {"ConvNet": [None, None], "3": None, "size": None}
    assert str(content["large"]) == hex(10**400)  # too large for an integer array
    assert content["none"] is None
    assert str(content["method"]) == "é" * 100  # cut: names are shorter


def test_tensors_of_a_big_endian_machine_are_read(tmp_path: Path) -> None:
    swapped = torch.from_numpy(VALUES.byteswap())
    path = rewritten(swapped, tmp_path / "big.pt", lambda _: b"big", "/byteorder")
    array: Any = open_stored(path)
    np.testing.assert_array_equal(load(array), VALUES)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.from_numpy(VALUES), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    array: Any = open_stored(tmp_path / "a.pt")
    np.testing.assert_array_equal(load(array), VALUES)


def test_a_negated_view_is_refused_since_its_values_are_not_in_the_file(tmp_path: Path) -> None:
    view = torch.complex(torch.zeros(4), torch.ones(4)).conj().imag
    assert view.is_neg()
    torch.save(view, tmp_path / "a.pt")
    with pytest.raises(DatasetError, match="holds a negated or conjugate view of a tensor"):
        open_stored(tmp_path / "a.pt")


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
    content: Any = open_stored(path)
    np.testing.assert_array_equal(load(content["data"]), VALUES)
    assert content["accs_all_exps"] == {"ConvNet": [None, None], "3": None}


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


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    """The pickle states 60 rows where the storage has 6; torch on the meta device ignores that."""
    path = rewritten(
        torch.zeros(6, 3),
        tmp_path / "a.pt",
        lambda data: data.replace(b"K\x06K\x03", b"K\x3cK\x03"),
    )
    with pytest.raises(DatasetError, match=r"lies outside its own storage|damaged"):
        open_stored(path)


@pytest.mark.parametrize("alignment", [b"0", b"-8", b"", b"x", b"9999999"])
def test_the_offsets_of_tensors_come_from_the_zip_alone(tmp_path: Path, alignment: bytes) -> None:
    """torch 2.13 derives it from the alignment that a file states.

    There, an alignment of 0 ends the process, and a file that was zipped again is misread.
    """
    value = [torch.zeros(2, 3), torch.from_numpy(VALUES)]
    path = rewritten(value, tmp_path / "a.pt", lambda _: alignment, ".storage_alignment")
    content: Any = open_stored(path)
    np.testing.assert_array_equal(load(content[1]), VALUES)


def test_a_list_of_numbers_is_read_once_however_often_it_occurs(tmp_path: Path) -> None:
    labels = list(range(1000))
    torch.save({"labels": labels, "again": [labels] * 2000, "mixed": [1, 0.5]}, tmp_path / "a.pt")
    content: Any = open_stored(tmp_path / "a.pt")
    np.testing.assert_array_equal(load(content["labels"]), labels)
    assert {id(one) for one in content["again"]} == {id(content["labels"])}
    assert content["mixed"] == [None, None]


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
