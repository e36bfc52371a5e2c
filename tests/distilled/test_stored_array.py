"""Files of arrays: read by rows, nothing executed, and no more memory than a file has bytes."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diver_trt.distilled import stored_array
from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.stored_array import StoredArray, load
from diver_trt.errors import DatasetError
from tests.distilled.array_files import VALUES, rewritten, save_npz, save_safetensors, save_torch
from tests.distilled.test_npz_file import npz_that_says


@pytest.mark.parametrize("save", [save_torch, save_npz, save_safetensors])
def test_rows_are_read_from_the_file_one_by_one(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    content: Any = open_stored(save(tmp_path / "file"))
    array = content["a"]
    assert isinstance(array, StoredArray)
    assert (array.shape, array.dtype, len(array)) == (VALUES.shape, VALUES.dtype, 4)
    assert array.nbytes == VALUES.nbytes
    np.testing.assert_array_equal(array[2], VALUES[2])
    np.testing.assert_array_equal(array[1:3], VALUES[1:3])
    np.testing.assert_array_equal(array[3:9], VALUES[3:])
    np.testing.assert_array_equal(array[-1], VALUES[-1])
    with pytest.raises(IndexError):
        array[4]
    with pytest.raises(ValueError, match="found the step 2, expected rows that are neighbours"):
        array[::2]
    np.testing.assert_array_equal(load(array), VALUES)


def test_a_safetensors_header_may_have_null_metadata(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": None, "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    content: Any = open_stored(tmp_path / "a.safetensors")
    assert load(content["a"]).tobytes() == b"abc"


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
    content: Any = open_stored(bomb)
    with pytest.raises(
        DatasetError,
        match=r"would need 2,097,152 bytes of memory, since it cannot be read row by row; expected",
    ):
        content["images"][0]
    deflated = zipfile.ZIP_DEFLATED
    path = rewritten(torch.zeros(1 << 19), tmp_path / "bomb.pt", compression=deflated)
    with pytest.raises(DatasetError, match="is compressed, which"):
        open_stored(path)


def compressed_npz(path: Path) -> Path:
    np.savez_compressed(path, a=VALUES, b=VALUES + 1, c=VALUES + 2, text="idc")
    return path


def scattered_npz(path: Path) -> Path:
    a, b, c = (np.asfortranarray(VALUES + add) for add in range(3))
    np.savez(path, a=a, b=b, c=c)
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
    content: Any = open_stored(save(tmp_path / "a.npz"))
    for _ in range(3):
        assert content["c"][0].flat[0] == 2
        assert content["a"][0].flat[0] == 0
    with pytest.raises(
        DatasetError,
        match=r"would need 1,4\d\d bytes of memory, .* row by row; expected at most 1,060",
    ):
        content["b"][0]


def test_a_read_that_failed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", VALUES.nbytes + 100)
    path = compressed_npz(tmp_path / "a.npz")
    content: Any = open_stored(path)
    path.rename(tmp_path / "away")
    with pytest.raises(DatasetError, match="No such file"):
        content["a"][0]
    (tmp_path / "away").rename(path)
    np.testing.assert_array_equal(content["a"][1], VALUES[1])


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


@pytest.mark.parametrize("save", [save_torch, save_npz, save_safetensors])
def test_damaged_files_end_in_one_line(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    path = save(tmp_path / "file")
    whole = path.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:end])
        with pytest.raises(DatasetError) as raised:
            content: Any = open_stored(path)
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
    ("name", "remedy"),
    [
        ("a.tar.gz", "Unpack the archive, and give what is in it."),
        ("a.ZIP", "Unpack the archive, and give what is in it."),
        ("a.npy", "Save images and labels in one file: numpy.savez(path, images=..., labels=...)."),
        ("a.pkl", "save its tensors with torch.save or numpy.savez."),
    ],
)
def test_the_way_out_of_other_kinds_of_files_is_named(
    tmp_path: Path, name: str, remedy: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=f"{re.escape(remedy)}$"):
        open_stored(tmp_path / name)


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


def test_a_large_array_is_not_loaded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_array, "MAX_LOADED_BYTES", 64)
    content: Any = open_stored(save_npz(tmp_path / "a"))
    row: NDArray[Any] = content["a"][3]
    np.testing.assert_array_equal(row, VALUES[3])
    with pytest.raises(DatasetError, match="would need 480 bytes of memory; expected at most 64"):
        load(content["a"])
