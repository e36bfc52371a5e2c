"""Image files become RGB, or are refused with a reason."""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from diver_trt.distilled.image_file import check_image, image_size, quiet, read_image
from diver_trt.errors import DatasetError
from tests.distilled.test_png_stream import chunk, png, rows

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.ppm"])
def test_lossless_images_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(PIXELS).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_image(tmp_path / name), PIXELS)


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").mean((0, 1)), (200, 100, 50), atol=2)


def test_the_first_picture_of_a_phones_jpeg_is_read(tmp_path: Path) -> None:
    """MPO: a JPEG with a preview, a depth map or a gain map behind it."""
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").mean((0, 1)), (254, 0, 0), atol=2)
    check_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_images_are_read_upright(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(PIXELS).save(tmp_path / name, exif=exif, **lossless)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    assert image_size(tmp_path / name) == expected.shape[1::-1]


def test_an_image_larger_than_a_strip_is_read_whole(tmp_path: Path) -> None:
    """Pixels are converted in strips of a megapixel."""
    pixels = np.random.default_rng(1).integers(0, 256, (1500, 1031, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


def test_postscript_is_never_handed_to_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow starts `gs` on files that hold PostScript, whatever their names."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with pytest.raises(OSError), Image.open(tmp_path / "a.png") as image:
        image.load()
    assert (tmp_path / "started").exists()  # that is what Pillow does if it is not stopped
    (tmp_path / "started").unlink()
    for look in (read_image, check_image, image_size):
        with pytest.raises(DatasetError, match="holds PostScript"):
            look(tmp_path / "a.png")
    assert not (tmp_path / "started").exists()


def test_an_irregular_file_is_refused_at_once(tmp_path: Path) -> None:
    """Opening a FIFO blocks until another process writes to it."""
    os.mkfifo(tmp_path / "a.png")
    for look in (read_image, check_image, image_size):
        with pytest.raises(DatasetError, match=r"a\.png: is not a regular file"):
            look(tmp_path / "a.png")


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    for name in ("grey.png", "grey.pgm"):
        grey.save(tmp_path / name)
        expected = np.repeat(PIXELS[..., :1], 3, axis=2)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)
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
    """Write a 16-bit PNG of 2 x 2 pixels, which Pillow cannot.

    Colour type 2 is RGB, 4 grey and alpha, 6 RGBA.
    """

    data = zlib.compress(rows(np.arange(2 * 2 * channels, dtype=np.uint8)[None].repeat(2, 0)))
    path.write_bytes(png(data, size=(2, 2), depth=16, colour=colour_type))


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], format="PNG")


def of_size(mode: str, width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (width, height)).save(path)


def foreign(kind: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(PIXELS).resize((16, 16)).save(path, format=kind)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


def raw(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def of_pixels(data: bytes, behind: bytes = b"") -> Callable[[Path], None]:
    """A PNG of the size of `PIXELS` with this compressed data, and chunks behind it."""
    return raw(png(data, size=(6, 8), colour=2, behind=behind))


WHOLE = zlib.compress(rows(PIXELS))
ROWS_MISSING = zlib.compress(rows(PIXELS[:3]))
"""Three of eight rows, which Pillow completes with black."""
BROKEN_STREAM = WHOLE[:70] + b"\xff" * 9 + WHOLE[79:]


def chunk_behind(kind: bytes, content: bytes) -> Callable[[Path], None]:
    """A chunk behind the image data, which decoders parse last."""
    return of_pixels(WHOLE, chunk(kind, content))


def colours_missing(path: Path) -> None:
    """Indices up to 47 into a palette of two colours."""
    indices = zlib.compress(rows(np.arange(48, dtype=np.uint8).reshape(8, 6)))
    path.write_bytes(png(indices, size=(6, 8), colour=3, before=chunk(b"PLTE", bytes(6))))


def short(kind: str, missing: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.effect_noise((64, 64), 50).convert("RGB").save(path, format=kind)
        path.write_bytes(path.read_bytes()[:-missing])

    return write


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
        (short("PNG", 200), "not an image, or a damaged one"),
        (raw(b"not an image at all"), "not an image, or a damaged one"),
        (raw(POSTSCRIPT), "holds PostScript, expected PNG, JPEG, WebP"),
        (foreign("GIF"), "holds a GIF image, expected .* Convert it to PNG"),
        (foreign("TIFF"), "holds a TIFF image"),
        (raw(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99)), "holds a JPEG 2000 image"),
        (raw(b"\0\0\0\x20ftypavif" + bytes(99)), "holds an AVIF image"),
        (foreign("ICO"), "holds an icon"),
        (raw(b"\0\0\0\x18ftypheic" + bytes(99)), "holds a HEIC image"),
        (foreign("DDS"), "holds a DDS texture"),
        (foreign("TGA"), "not an image, or a damaged one"),
        (foreign("PCX"), "not an image, or a damaged one"),
        (raw(LFS_POINTER), "holds a Git LFS pointer, .* Fetch the image with `git lfs pull`"),
        (raw(b"P6 2 1 65535\n" + bytes(12)), "holds 16-bit values"),
        (raw(b"P5 2 1 65535\n" + bytes(4)), "holds 16- or 32-bit values"),
        (raw(b"P6 2 1 100\n" + bytes(6)), "is encoded as PPM in a rare way"),
        (raw(b"P3 1 1 255\n1 2 3\n"), "is encoded as PPM in a rare way"),
        (raw(b"P6 9 9 255\n" + bytes(50)), "not an image, or a damaged one"),
        (raw(b"P5 9 9 255\n" + bytes(80)), "not an image, or a damaged one"),
        (raw(b"P4 9 9\n" + bytes(17)), "not an image, or a damaged one"),
        (short("BMP", 9), "not an image, or a damaged one"),
        (
            of_pixels(ROWS_MISSING),
            r"not an image, or a damaged one \(rows are missing at its end\)",
        ),
        (of_pixels(BROKEN_STREAM), r"not an image, or a damaged one \(damaged image data"),
        (chunk_behind(b"gAMA", b""), r"not an image, or a damaged one \(Truncated gAMA chunk"),
        (chunk_behind(b"iCCP", b"x"), r"not an image, or a damaged one \("),
        (chunk_behind(b"tRNS", PIXELS[0, 0].astype(">u2").tobytes()), "is transparent in places"),
        (colours_missing, r"not an image, or a damaged one \(its palette lacks a colour\)"),
        (of_size("L", 1, 65_536), "1 x 65536 pixels; expected at most 65,535 along a side"),
        (short("JPEG", 200), "not an image, or a damaged one"),
        (short("WEBP", 200), "not an image, or a damaged one"),
        (raw(b""), "not an image, or a damaged one"),
        (of_size("1", 10_000, 10_000), "10000 x 10000 pixels; expected at most"),
        (of_size("1", 20_000, 20_000), "has far too many pixels; expected at most"),
    ],
)
def test_other_images_are_refused_in_words(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.png"
    make(path)
    for look in (read_image, check_image):
        with pytest.raises(DatasetError, match=rf"a\.png: {message}") as caught, quiet():
            look(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [b"tEXt", b"tIME"])
def test_usual_chunks_behind_the_pixels_change_nothing(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.png"
    chunk_behind(kind, b"Comment\0made by hand")(path)
    with quiet():
        assert check_image(path) == (hashlib.sha256(path.read_bytes()).hexdigest(), (6, 8))
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png: has vanished"):
        read_image(tmp_path / "a.png")


def test_threads_that_read_at_once_leave_the_filter_of_warnings_as_it_was() -> None:
    """The first to begin is the first to end here, which restored the filter of neither."""
    before = list(warnings.filters)
    first, second = quiet(), quiet()
    with pytest.warns(UserWarning, match="seen"):
        first.__enter__()
        second.__enter__()
        warnings.warn("not seen", stacklevel=1)
        first.__exit__(None, None, None)
        warnings.warn("not seen", stacklevel=1)
        second.__exit__(None, None, None)
        warnings.warn("seen", stacklevel=1)
    assert warnings.filters == before
