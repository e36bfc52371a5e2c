"""PNG files of every shape are whole if their rows are; damage that Pillow ignores is found."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from diver_trt.distilled.png_stream import _ADAM7, _Rows, require_whole_png

GREY = np.random.default_rng(0).integers(0, 256, (13, 21), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    data: bytes,
    *,
    interlaced: bool = False,
    size: tuple[int, int] = (21, 13),
    depth: int = 8,
    colour: int = 0,
    split: int = 1 << 30,
    before: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A PNG file with this compressed data, in chunks of `split` bytes, and chunks around them."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, int(interlaced))
    blocks = [data[i : i + split] for i in range(0, len(data), split)]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + b"".join(chunk(b"IDAT", block) for block in blocks)
        + behind
        + chunk(b"IEND", b"")
    )


def rows(image: np.ndarray, filter_type: int = 0) -> bytes:
    return b"".join(bytes([filter_type]) + row.tobytes() for row in image)


def interlaced_rows(image: np.ndarray) -> bytes:
    passes = (image[top::down, left::across] for left, top, across, down in _ADAM7)
    return b"".join(rows(part) for part in passes if part.size)


PLAIN = zlib.compress(rows(GREY))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8), (21, 13), (5, 1), (1, 9)])
def test_interlaced_images_of_all_sizes_are_whole_until_a_byte_is_missing(
    size: tuple[int, int],
) -> None:
    image = GREY[: size[1], : size[0]]
    data = interlaced_rows(image)
    file = png(zlib.compress(data), interlaced=True, size=size)
    with Image.open(BytesIO(file)) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), image)
    require_whole_png(BytesIO(file))
    with pytest.raises(ValueError, match="rows are missing"):
        require_whole_png(BytesIO(png(zlib.compress(data[:-1]), interlaced=True, size=size)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("side", [1, 7, 200])
def test_images_that_pillow_writes_are_whole(mode: str, side: int) -> None:
    file = BytesIO()
    Image.new("RGBA", (side, side + 1), (9, 99, 199, 255)).convert(
        "L" if mode == "I;16" else mode
    ).convert(mode).save(file, format="PNG")
    require_whole_png(file)


def test_data_in_many_chunks_and_beyond_the_last_row_is_whole() -> None:
    require_whole_png(BytesIO(png(PLAIN, split=3)))
    require_whole_png(BytesIO(png(zlib.compress(rows(GREY) + b"\0" * 99))))


def test_data_after_the_last_row_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB follow a small image, and could be a terabyte."""
    deflater = zlib.compressobj(1)
    bomb = deflater.compress(rows(GREY)) + deflater.compress(bytes(64 << 20)) + deflater.flush()
    seen: list[int] = []
    check = _Rows._check

    def counted(self: _Rows, values: bytes) -> None:
        seen.append(len(values))
        check(self, values)

    monkeypatch.setattr(_Rows, "_check", counted)
    require_whole_png(BytesIO(png(bomb)))
    assert sum(seen) <= 1 << 20


def wrong_crc(file: bytes) -> bytes:
    at = file.index(b"IEND") - 5  # in the CRC itself
    return file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (png(zlib.compress(rows(GREY[:10]))), "rows are missing at its end"),
        (png(PLAIN[:60] + bytes(40) + PLAIN[100:]), "damaged image data"),
        (png(PLAIN[:-4] + b"oops"), "damaged image data"),
        (png(PLAIN[:100]), "rows are missing at its end"),
        (png(zlib.compress(rows(GREY[:12]) + rows(GREY[12:], 5))), "unknown filter type"),
        (png(b""), "rows are missing at its end"),
        (png(PLAIN, colour=3), "the palette is missing before the image data"),
        (png(PLAIN, colour=5), "a PNG header with unknown values"),
        (wrong_crc(png(PLAIN)), "wrong checksum in a chunk IDAT"),
        (png(PLAIN)[:-12], "the file ends before the image does"),
        (png(PLAIN)[:90], "the file ends before the image does"),
        (
            png(PLAIN[:100], behind=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", PLAIN[100:])),
            "image data in two places",
        ),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", PLAIN), "the PNG header is missing"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"1"), "a PNG header of another length"),
        (b"GIF89a", "the PNG signature is missing"),
    ],
)
def test_damage_is_found(file: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_whole_png(BytesIO(file))
