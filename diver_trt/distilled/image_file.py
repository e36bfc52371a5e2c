"""Reading one image file as RGB pixels, and refusing it with a reason."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from diver_trt.distilled.image_kinds import (
    EXPECTED,
    FORMATS,
    HEAD_BYTES,
    LFS_POINTER,
    READ_SUFFIXES,
    kind_of,
)
from diver_trt.distilled.memory_budget import MemoryBudget
from diver_trt.distilled.png_stream import require_whole_png
from diver_trt.distilled.regular_file import open_regular
from diver_trt.errors import DatasetError, shown
from diver_trt.files import stream_sha256
from diver_trt.pixels import Pixels

DECODING_BYTES = 512 * 1024**2
"""Memory that decoding may take at a time, over all threads, in bytes.

The pixels that are returned come on top.
"""

MAX_PIXELS = 64 * 1024**2
MAX_SIDE = 65_535  # the largest of a JPEG
MAX_FILE_BYTES = 4 * MAX_PIXELS  # an uncompressed file of so many pixels in RGBA

_BUDGET = MemoryBudget(DECODING_BYTES)
_BYTES_PER_PIXEL = {"WEBP": 18, "JPEG": 13, "MPO": 13}
"""Peak memory of decoding, in bytes per pixel; 8 for other formats."""
# libwebp keeps two canvases; libjpeg keeps the coefficients of a progressive image.
# tests/distilled/test_memory_budget.py measures them.

_SILENCE_LOCK, _SILENCE = Lock(), ExitStack()
_silent_blocks = 0

_STRIP_PIXELS = 1 << 20
_JPEG_END = b"\xff\xd9"
_EXIF_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)
"""Orientations with rows and columns swapped."""

_REFUSED_MODES = {
    "CMYK": "holds CMYK colours, whose RGB depends on a printing profile; convert it to RGB",
    "YCbCr": "holds YCbCr colours; convert it to RGB",
    "LAB": "holds Lab colours; convert it to RGB",
    "HSV": "holds HSV colours; convert it to RGB",
    "F": "holds 32-bit floating-point values; convert it to 8-bit RGB",
    "I": "holds 16- or 32-bit values; convert it to 8-bit RGB",
}


def read_image(path: Path) -> Pixels:
    """Read an image file as [H, W, 3] uint8, upright.

    Grey, palette and black-and-white images become RGB. A fully opaque alpha channel is dropped. An
    EXIF orientation is applied. Colour profiles are ignored, as trainers do. The first picture of a
    phone's JPEG with several (MPO) is read.

    Raises:
        DatasetError: If the file is not an image of a supported kind, is damaged, animated,
            transparent or too large, or has other than 8-bit colours.
    """
    # Check the whole file, decode it, convert it strip by strip, and turn it upright.
    with quiet(), _decoding(path) as (file, image):
        if image.format == "PNG":
            require_whole_png(file)
        _load(path, image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top, strip in _strips(image):
            pixels[top : top + strip.height] = np.asarray(strip.convert("RGB"))
        return _upright(pixels, image)


def check_image(path: Path) -> tuple[str, tuple[int, int]]:
    """Check an image at a fraction of the cost of `read_image`.

    May be called from several threads, but then inside `quiet()`.

    Returns:
        The file's SHA-256, and its `image_size`.

    Raises:
        DatasetError: If `read_image` would refuse the file.
    """
    with _decoding(path) as (file, image):
        # The rows of a PNG are inflated and counted. A JPEG that was cut short lacks its end
        # marker. Other formats are decoded.
        if image.format == "PNG":
            follow = require_whole_png(file)
            # Palettes and alpha are only known to be complete and opaque after decoding (`_load`).
            opaque = image.mode in ("RGB", "L", "1") and "transparency" not in image.info
            # Pillow parses chunks behind the image data while it decodes, and refuses odd ones.
            plain = opaque and not follow
        else:
            plain = image.format in ("JPEG", "MPO") and _ends_with(file, _JPEG_END)
        if not plain:
            _load(path, image)
        # Of the same open file, so that the hash is that of the bytes that were checked.
        file.seek(0)
        return stream_sha256(file), _upright_size(image)


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height that an image is read with, from its header and EXIF alone.

    Raises:
        DatasetError: If the header is not that of a supported image.
    """
    with quiet(), _header(path) as (image, _):
        return _upright_size(image)


def decoding_bytes(path: Path) -> int:
    """Return the peak memory of `check_image` in bytes, from the image's header.

    May be called from several threads, but then inside `quiet()`.

    Raises:
        DatasetError: If the header is not that of a supported image.
    """
    with _header(path) as (image, file_bytes):
        return _needed(path, image, file_bytes)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings during the block, in any number of threads at a time."""
    # It warns of sizes, which are checked here, and of odd metadata. The filter is process-wide, so
    # the last thread restores what the first one found: each by itself would restore the other's
    # filter (https://docs.python.org/3/library/warnings.html#warnings.catch_warnings).
    global _silent_blocks
    with _SILENCE_LOCK:
        if _silent_blocks == 0:
            _SILENCE.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _silent_blocks += 1
    try:
        yield
    finally:
        with _SILENCE_LOCK:
            _silent_blocks -= 1
            if _silent_blocks == 0:
                _SILENCE.close()


@contextmanager
def _header(path: Path) -> Iterator[tuple[Image.Image, int]]:
    """Open an image without decoding it, and yield it with its file's size in bytes."""
    with (
        _explained(path),
        _regular(path) as (file, size),
        _BUDGET.taking(size),  # opening a WebP reads the whole file
        _opened(path, file) as image,
    ):
        yield image, size


@contextmanager
def _decoding(path: Path) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open an image, and hold the memory for decoding it during the block."""
    with _explained(path), _regular(path) as (file, size), ExitStack() as stack:
        # Opening a WebP reads the whole file, hence the first share of the budget.
        with _BUDGET.taking(size):
            image = stack.enter_context(_opened(path, file))
            needed = _needed(path, image, size)
            # An open WebP holds its file's bytes. It is closed before its share is returned, since
            # waiting for a second share while holding one could deadlock.
            if image.format == "WEBP":
                stack.close()
        with _BUDGET.taking(needed), stack:
            if image.format == "WEBP":
                image = stack.enter_context(_opened(path, file))
            try:
                yield file, image
            finally:
                image.close()  # else its pixels would outlive their share of the budget


@contextmanager
def _regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file of acceptable size."""
    with open_regular(path, "an image file") as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
            raise DatasetError(f"{path}: {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        yield file, size


@contextmanager
def _opened(path: Path, file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image of a supported kind."""
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    # Its own message quotes a memory address, so it is replaced.
    except UnidentifiedImageError as cause:
        file.seek(0)
        raise DatasetError(f"{path}: {_found(path, file.read(HEAD_BYTES))}") from cause
    with image:
        _check(path, image)
        yield image


def _found(path: Path, head: bytes) -> str:
    # By its content first, since the suffix may be wrong.
    if kind := kind_of(head):
        remedy = (
            "Fetch the image with `git lfs pull`" if kind == LFS_POINTER else "Convert it to PNG"
        )
        return f"holds {kind}, expected {EXPECTED}. {remedy}."
    if path.suffix.lower() not in READ_SUFFIXES:
        return f"images of this kind are not read, expected {EXPECTED}. Convert it to PNG."
    return "not an image, or a damaged one"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any failure of the block into one line about the image."""
    try:
        yield
    except DatasetError:
        raise
    # Pillow raises it by itself, before `_check` sees the size:
    # https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.MAX_IMAGE_PIXELS
    except Image.DecompressionBombError as cause:
        raise DatasetError(
            f"{path}: has far too many pixels; expected at most {MAX_PIXELS:,} in all"
        ) from cause
    except FileNotFoundError as cause:
        raise DatasetError(f"{path}: has vanished") from cause
    except PermissionError as cause:
        raise DatasetError(f"{path}: may not be read ({cause.strerror})") from cause
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damage.
    except Exception as cause:
        raise DatasetError(
            f"{path}: not an image, or a damaged one ({shown(str(cause) or repr(cause))})"
        ) from cause


def _check(path: Path, image: Image.Image) -> None:
    """Refuse an image by its header if it would be misread, or would take too much memory."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DatasetError(
            f"{path}: {width} x {height} pixels; expected at most {MAX_PIXELS:,} in all"
        )
    if max(width, height) > MAX_SIDE:
        raise DatasetError(
            f"{path}: {width} x {height} pixels; expected at most {MAX_SIDE:,} along a side"
        )
    # An MPO's further pictures are previews or other views, not frames of an animation.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise DatasetError(f"{path}: is animated ({frames} frames); expected a still image")
    if image.mode in _REFUSED_MODES:
        raise DatasetError(f"{path}: {_REFUSED_MODES[image.mode]}")
    tiles: Sequence[tuple[Any, ...]] = getattr(image, "tile", ())
    # Pillow reads 16-bit colours as 8-bit ones without a warning; only the raw mode shows them:
    # https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes
    deep = any(";16" in str(tile) or (tile[0] == "ppm" and tile[3][-1] > 255) for tile in tiles)
    if deep or image.mode.startswith("I;16"):
        raise DatasetError(f"{path}: holds 16-bit values; convert it to 8-bit RGB")
    # Plain-text PPM, PPM with a maximum below 255 and run-length BMP: their decoders accept files
    # with too few rows.
    if image.format in ("BMP", "PPM") and any(tile[0] != "raw" for tile in tiles):
        raise DatasetError(
            f"{path}: is encoded as {image.format} in a rare way, expected {EXPECTED}. Convert it "
            "to PNG."
        )


def _needed(path: Path, image: Image.Image, file_bytes: int) -> int:
    """Return the peak memory of decoding an image, in bytes."""
    assert image.format is not None
    needed = image.width * image.height * _BYTES_PER_PIXEL.get(image.format, 8)
    if image.format == "WEBP":
        needed += file_bytes
    if needed > DECODING_BYTES:
        raise DatasetError(
            f"{path}: {image.width} x {image.height} pixels take {needed >> 20} MiB to decode from "
            f"{image.format}, expected at most {DECODING_BYTES >> 20} MiB. Convert it to PNG."
        )
    return needed


def _load(path: Path, image: Image.Image) -> None:
    """Decode an image, and refuse one that lacks palette colours or is transparent anywhere."""
    colours = None
    if image.mode == "P" and image.palette is not None:
        # Pillow fills in missing colours without an error. Releases differ in whether the raw mode
        # or the mode is set here.
        colours = len(image.palette.palette) // len(image.palette.rawmode or image.palette.mode)
    image.load()
    if colours is not None and int(np.asarray(image.getextrema()).max()) >= colours:
        raise DatasetError(f"{path}: not an image, or a damaged one (its palette lacks a colour)")
    # "transparency" is a colour or a palette of alpha values without a band of its own.
    if "A" not in image.getbands() and "transparency" not in image.info:
        return
    for _, strip in _strips(image):
        if strip.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise DatasetError(
                f"{path}: is transparent in places; flatten it onto a background first"
            )


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image in strips of full width, with the top of each."""
    # Converting strip by strip avoids a second copy of the whole image.
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """Rotate and flip pixels as the image's EXIF orientation requires."""
    # Not ImageOps.exif_transpose, which would copy the decoded image.
    orientation = _orientation(image)
    if orientation in _SWAPPED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # Pillow would decode a PNG to find EXIF data behind its pixels.
    stated = image.format != "PNG" or "exif" in image.info
    swapped = stated and _orientation(image) in _SWAPPED
    return _shared_size(height, width) if swapped else _shared_size(width, height)


@lru_cache(maxsize=1024)
def _shared_size(width: int, height: int) -> tuple[int, int]:
    # One tuple for all images of a size: a set may have a million.
    return width, height


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # metadata that cannot be parsed is ignored
        return 1


def _ends_with(file: BinaryIO, end: bytes) -> bool:
    file.seek(-len(end), os.SEEK_END)
    return file.read() == end
