"""Members of .npz files are read in place, and compared with their checksums."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.distilled import npz_file
from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.stored_array import StoredArray, load
from diver_trt.errors import DatasetError
from tests.distilled.array_files import VALUES


def test_fortran_order_and_compressed_members_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=np.asfortranarray(VALUES))
    np.savez_compressed(tmp_path / "c.npz", a=VALUES, text="idc")
    np.savez_compressed(tmp_path / "cf.npz", a=np.asfortranarray(VALUES))
    for name in ("f.npz", "c.npz", "cf.npz"):
        content: Any = open_stored(tmp_path / name)
        np.testing.assert_array_equal(load(content["a"]), VALUES)
        np.testing.assert_array_equal(content["a"][2], VALUES[2])
        np.testing.assert_array_equal(content["a"][1:3], VALUES[1:3])
        assert str(content.get("text", "idc")) == "idc"


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


def test_an_unused_member_is_not_decompressed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 10_000))
    np.savez_compressed(tmp_path / "a.npz", a=noise, b=noise)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data[archive.getinfo("b.npy").header_offset + 100_000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    content: Any = open_stored(tmp_path / "a.npz")
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
    content: Any = open_stored(tmp_path / "a.npz")
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
    content: Any = open_stored(tmp_path / "a.npz")
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
    content: Any = open_stored(tmp_path / "a.npz")
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
    content: Any = open_stored(tmp_path / "a.npz")
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
