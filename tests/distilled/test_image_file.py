"""Image files: what becomes RGB, and what is refused with a reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.distilled.image_file import read_image
from diver_trt.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_lossless_webp_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), PIXELS)


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").mean((0, 1)), (200, 100, 50), atol=2)


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png"), np.repeat(PIXELS[..., :1], 3, axis=2)
    )
    grey.convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (8, 6, 3)
    grey.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) <= {0, 255}


def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path) -> None:
    opaque = np.dstack([PIXELS, np.full((8, 6), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([PIXELS, np.full((8, 6), 254, np.uint8)])).save(path)


def transparent_colour(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P").save(path, transparency=0)


def cmyk(path: Path) -> None:
    Image.new("CMYK", (4, 4)).save(path, format="JPEG")


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)


def sixteen_bit_colours(path: Path, colour_type: int = 2, channels: int = 3) -> None:
    """Write a PNG that Pillow cannot write: 2 x 2 pixels of 16-bit RGB (colour type 2), grey and alpha (4) or RGBA (6)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes(range(2 * 2 * channels)) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], format="PNG")


def truncated(path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:4000])


def garbage(path: Path) -> None:
    path.write_bytes(b"not an image at all")


def empty(path: Path) -> None:
    path.touch()


def large(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


def enormous(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (transparent, "is transparent in places; flatten it"),
        (transparent_colour, "is transparent in places"),
        (cmyk, "holds CMYK colours.*convert it to RGB"),
        (sixteen_bits, "holds 16-bit values; convert it to 8-bit RGB"),
        (sixteen_bit_colours, "holds 16-bit values; convert it to 8-bit RGB"),
        (partial(sixteen_bit_colours, colour_type=4, channels=2), "holds 16-bit values"),
        (partial(sixteen_bit_colours, colour_type=6, channels=4), "holds 16-bit values"),
        (animated, r"is animated \(2 frames\); expected a still image"),
        (truncated, "not an image, or a damaged one"),
        (garbage, "not an image, or a damaged one"),
        (empty, "not an image, or a damaged one"),
        (large, "10000 x 10000 pixels; expected at most"),
        (enormous, "has far too many pixels; expected at most"),
    ],
)
def test_other_images_are_refused_in_words(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(DatasetError, match=rf"a\.png: {message}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png: has vanished"):
        read_image(tmp_path / "a.png")
