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

from diver_trt.datasets import stored_array
from diver_trt.datasets.stored_array import StoredArray, load, open_stored
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
def test_rows_are_read_from_the_file_one_by_one(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    content = open_stored(save(tmp_path / "file"))
    assert isinstance(content, dict)
    array = content["a"]
    assert isinstance(array, StoredArray)
    assert (array.shape, array.dtype, len(array), array.nbytes) == (VALUES.shape, VALUES.dtype, 4, VALUES.nbytes)
    np.testing.assert_array_equal(array[2], VALUES[2])
    np.testing.assert_array_equal(array[1:3], VALUES[1:3])
    np.testing.assert_array_equal(array[3:9], VALUES[3:])
    np.testing.assert_array_equal(load(array), VALUES)


def as_saved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize(
    ("tensor", "by_rows"),
    [
        (torch.from_numpy(VALUES).contiguous(memory_format=torch.channels_last), True),
        (torch.from_numpy(VALUES)[1:], True),
        (torch.from_numpy(VALUES)[:, :, 1:4], False),
        (torch.from_numpy(VALUES).permute(3, 0, 1, 2), False),
        (torch.nn.Parameter(torch.from_numpy(VALUES)), True),
        (torch.from_numpy(VALUES).half(), True),
    ],
    ids=["channels last", "later rows", "a slice of rows", "transposed", "a parameter", "half"],
)
def test_tensors_are_read_whatever_their_strides(tmp_path: Path, tensor: torch.Tensor, by_rows: bool) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    array = open_stored(tmp_path / "a.pt")
    assert isinstance(array, StoredArray if by_rows else np.ndarray)
    np.testing.assert_array_equal(load(array), tensor.detach().numpy())
    np.testing.assert_array_equal(array[1], tensor.detach().numpy()[1])


def test_a_safetensors_header_may_say_that_it_has_no_metadata(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": None, "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    content = open_stored(tmp_path / "a.safetensors")
    assert isinstance(content, dict)
    assert load(content["a"]).tobytes() == b"abc"


def test_fortran_order_and_compressed_members_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.asfortranarray(VALUES))
    np.savez_compressed(tmp_path / "c.npz", a=VALUES)
    for name in ("f.npz", "c.npz"):
        content = open_stored(tmp_path / name)
        assert isinstance(content, dict)
        np.testing.assert_array_equal(load(content["a"]), VALUES)


def test_torchs_old_format_is_read(tmp_path: Path) -> None:
    torch.save([torch.from_numpy(VALUES)], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = open_stored(tmp_path / "old.pt")
    assert isinstance(content, list)
    np.testing.assert_array_equal(content[0], VALUES)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_accuracies_of_either_numpy_do_not_stop_a_file(tmp_path: Path, module: bytes) -> None:
    torch.save({"data": torch.from_numpy(VALUES), "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "res.pt")
    rewritten = tmp_path / "rewritten.pt"
    with zipfile.ZipFile(tmp_path / "res.pt") as source, zipfile.ZipFile(rewritten, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):
                assert b"multiarray" in data
                data = data.replace(b"numpy._core.multiarray", module)
            target.writestr(info, data)
    content = open_stored(rewritten)
    assert isinstance(content, dict)
    np.testing.assert_array_equal(load(content["data"]), VALUES)


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, zipped: bool) -> None:
    torch.save({"data": Touch(tmp_path / "executed")}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DatasetError, match=r"holds more than tensors \(posix.mkdir\), and nothing else is ever loaded"):
        open_stored(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    with pytest.raises(DatasetError, match=r"plain.pt: "):
        open_stored(tmp_path / "plain.pt")
    assert not (tmp_path / "executed").exists()


def test_object_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([Touch(tmp_path / "executed")], dtype=object))
    with pytest.raises(DatasetError, match=r"images.npy holds Python objects, which are never loaded"):
        open_stored(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()


def npz_that_says(path: Path, shape: tuple[int, ...], data: bytes = b"\0" * 64, **options: Any) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("images.npy", header.getvalue() + data)
    return path


def test_arrays_that_claim_more_than_they_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"says shape \[1099511627776\], but has"):
        open_stored(npz_that_says(tmp_path / "a.npz", (2**40,)))
    torch.save(torch.zeros(1).expand(2**20, 2**20), tmp_path / "expanded.pt")
    with pytest.raises(DatasetError, match=r"a tensor of shape \[1048576, 1048576\] is larger than the file"):
        open_stored(tmp_path / "expanded.pt")


def test_zip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 1 << 20)
    bomb = npz_that_says(tmp_path / "bomb.npz", (1 << 19,), b"\0" * (1 << 21), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 14
    with pytest.raises(DatasetError, match=r"unpacks to 2,097,\d+ bytes; a compressed array is held in memory"):
        open_stored(bomb)
    torch.save(torch.zeros(1 << 19), tmp_path / "flat.pt")
    with zipfile.ZipFile(tmp_path / "flat.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    with pytest.raises(DatasetError, match="is compressed, which"):
        open_stored(tmp_path / "bomb.pt")


def rewritten(value: Any, path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Save a value with torch, and change the pickle in the file."""
    torch.save(value, path.with_suffix(".tmp"))
    with zipfile.ZipFile(path.with_suffix(".tmp")) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(info, change(data) if info.filename.endswith("data.pkl") else data)
    return path


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    """The pickle says 60 rows where the storage has 6; torch on the meta device does not notice."""
    path = rewritten(torch.zeros(6, 3), tmp_path / "a.pt", lambda data: data.replace(b"K\x06K\x03", b"K\x3cK\x03"))
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
def test_an_alignment_that_ends_torch_is_refused(tmp_path: Path, alignment: bytes) -> None:
    """torch 2.13 divides by what this record says: a 0 there is a floating point exception, which no Python code can catch."""
    torch.save([torch.zeros(2, 3), torch.ones(4)], tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as target:
        for info in source.infolist():
            target.writestr(info, alignment if info.filename.endswith(".storage_alignment") else source.read(info))
    with pytest.raises(DatasetError, match="a damaged file"):
        open_stored(tmp_path / "a.pt")


def test_structures_without_end_are_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    doubling: list[Any] = []
    for _ in range(30):
        doubling = [doubling, doubling]
    for name, value in (("circle", circle), ("doubling", doubling)):
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(DatasetError, match="lists in lists without end"):
            open_stored(tmp_path / f"{name}.pt")


def test_one_name_for_two_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("labels", "labels.npy"):
            data = io.BytesIO()
            np.save(data, np.arange(3))
            archive.writestr(name, data.getvalue())
    with pytest.raises(DatasetError, match="holds an array twice under one name"):
        open_stored(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), "holds a tensor of float8_e4m3fn"),
        (torch.zeros(2, 2, dtype=torch.bfloat16), "holds a tensor of bfloat16"),
        (torch.eye(3).to_sparse(), "holds a tensor of float32, torch.sparse_coo"),
    ],
)
def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    with pytest.raises(DatasetError, match=message):
        open_stored(tmp_path / "a.pt")


def test_other_files_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.pt").touch()
    with pytest.raises(DatasetError, match=r"is no file of tensors; expected .pt, .pth, .npz, .safetensors"):
        open_stored(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match="is empty"):
        open_stored(tmp_path / "a.pt")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_stored(tmp_path / "missing.npz")


def test_without_torch_a_line_says_how_to_convert(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\nfrom diver_trt.datasets.stored_array import open_stored\n"
        f"open_stored(Path({str(save_torch(tmp_path / 'images_best'))!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "reading .pt files needs torch, which is not installed" in result.stderr
    assert "`diver-trt convert images_best.pt images_best.npz`" in result.stderr


def test_a_large_array_is_not_loaded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 64)
    content = open_stored(save_npz(tmp_path / "a"))
    assert isinstance(content, dict)
    row: NDArray[Any] = content["a"][3]
    np.testing.assert_array_equal(row, VALUES[3])
    with pytest.raises(DatasetError, match="would need 480 bytes of memory; expected at most 64"):
        load(content["a"])
