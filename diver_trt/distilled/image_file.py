"""One image file as RGB pixels, or the reason why not."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diver_trt.errors import DatasetError, shown
from diver_trt.pixels import Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_SUFFIXES = (".bmp", ".gif", ".ppm", ".tif", ".tiff", ".avif", ".jxl")
"""Images that are not read: naming them beats leaving samples out in silence."""

MAX_PIXELS = 64 * 1024**2
MAX_FILE_BYTES = 4 * MAX_PIXELS

_JPEG_END = b"\xff\xd9"

_REFUSED_MODES = {
    "CMYK": "holds CMYK colours, whose RGB depends on a printing profile; convert it to RGB",
    "YCbCr": "holds YCbCr colours; convert it to RGB",
    "LAB": "holds Lab colours; convert it to RGB",
    "HSV": "holds HSV colours; convert it to RGB",
    "F": "holds 32-bit floating-point values; convert it to 8-bit RGB",
    "I": "holds 32-bit values; convert it to 8-bit RGB",
}


def read_image(path: Path) -> Pixels:
    """Read an image file as [H, W, 3] uint8.

    Grey, palette and black-and-white images become RGB; an alpha channel is dropped where it is opaque throughout.

    Raises:
        DatasetError: The file is no image, is damaged, animated, transparent, too large, or holds other than 8-bit colours.
    """
    with quiet(), _opened(path) as image:
        image.load()
        return np.asarray(_opaque(path, image).convert("RGB"))


def check_image(path: Path) -> str:
    """Find what `read_image` would refuse, at a fraction of its cost, and return the file's SHA-256.

    Of a PNG the checksums are compared, of a JPEG the end is looked for, which one that was cut short lacks; anything else is decoded. May
    be called from several threads, but then inside `quiet()`.

    Raises:
        DatasetError: As `read_image`.
    """
    with _explained(path):
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise DatasetError(f"{path}: {size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
        data = path.read_bytes()
    with _opened(path, BytesIO(data)) as image:
        if (
            image.format == "PNG"
            and image.mode in ("RGB", "L", "1")
            and "transparency" not in image.info
        ):
            image.verify()
        elif image.format != "JPEG" or not data.endswith(_JPEG_END):
            image.load()
            _opaque(path, image)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow, which warns of sizes that are checked here and of odd metadata; for the whole process, so not in a thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path, data: BytesIO | None = None) -> Iterator[Image.Image]:
    """Open an image, if it is of a kind we read."""
    with _explained(path), Image.open(data or path) as image:
        _check(path, image)
        yield image


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with an image into one line."""
    try:
        yield
    except DatasetError:
        raise
    except Image.DecompressionBombError as cause:
        raise DatasetError(
            f"{path}: has far too many pixels; expected at most {MAX_PIXELS:,} in all"
        ) from cause
    except FileNotFoundError as cause:
        raise DatasetError(f"{path}: has vanished") from cause
    except PermissionError as cause:
        raise DatasetError(f"{path}: may not be read ({cause.strerror})") from cause
    except UnidentifiedImageError as cause:  # whose message holds an address in memory
        raise DatasetError(f"{path}: not an image, or a damaged one") from cause
    except Exception as cause:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files
        raise DatasetError(
            f"{path}: not an image, or a damaged one ({shown(str(cause) or repr(cause))})"
        ) from cause


def _check(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DatasetError(
            f"{path}: {image.width} x {image.height} pixels; expected at most {MAX_PIXELS:,} in all"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DatasetError(f"{path}: is animated ({image.n_frames} frames); expected a still image")  # type: ignore[attr-defined]
    if image.mode in _REFUSED_MODES:
        raise DatasetError(f"{path}: {_REFUSED_MODES[image.mode]}")
    cut = any(
        ";16" in str(tile) for tile in getattr(image, "tile", ())
    )  # 16-bit colours, which Pillow would cut to 8 in silence
    if cut or image.mode.startswith("I;16"):
        raise DatasetError(f"{path}: holds 16-bit values; convert it to 8-bit RGB")


def _opaque(path: Path, image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A").getextrema()
        if alpha != (255, 255):
            raise DatasetError(
                f"{path}: is transparent in places; flatten it onto a background first"
            )
        return image.convert("RGBA")
    return image
