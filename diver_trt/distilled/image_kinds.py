"""The kinds of image file that are read, and the names of others.

Only the kinds listed here are opened, whatever the file's name.
"""

from __future__ import annotations

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
"""Pillow's names of the kinds that are opened."""
# Pillow recognises a file by its content and has decoders for about forty kinds, one of which runs
# Ghostscript: https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html#eps
# Each kind here is a still raster of 8-bit values whose truncation is noticed. GIF is missing
# because its decoder may stop early without an error, TIFF because it contains many encodings.

EXPECTED = "PNG, JPEG, WebP, uncompressed BMP or binary 8-bit PPM"

READ_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".webp", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
)

_OTHER_SUFFIXES = (
    *(".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx"),
    *(".jpf", ".jpc", ".tga", ".psd", ".exr", ".hdr", ".qoi", ".pcx", ".sgi", ".ras", ".xbm"),
    *(".xpm", ".dds", ".pfm", ".pam", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf"),
)
"""Suffixes of pictures that are not read."""
# Such a file is refused, not left out: leaving it out would lose a sample.

SUFFIXES = READ_SUFFIXES + _OTHER_SUFFIXES
"""Suffixes, in lower case, by which a file counts as an image of the dataset."""

HEAD_BYTES = 64
"""Bytes of a file that `kind_of` needs."""

LFS_POINTER, MARKUP = "a Git LFS pointer", "a text with markup"

_SIGNATURES = (
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftypavis", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftyphev", "a HEIC image"),
    (4, b"ftypmif1", "a HEIF image"),
    (4, b"ftypmsf1", "a HEIF image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"JXL \r\n", "a JPEG XL image"),
    (4, b"jP  \r\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"qoif", "a QOI image"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"icns", "an icon"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"Pf", "a floating-point PFM image"),
    (0, b"PF", "a floating-point PFM image"),
    (0, b"P7", "a PAM image"),
    (0, b"SIMPLE", "a FITS image"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"%PDF", "a PDF document"),
    (0, b"version https://git-lfs", LFS_POINTER),
)
# An SVG, or the page of a login or an error that was saved under an image's name.
_TAGS = (b"<svg", b"<?xml", b"<!doctype", b"<html")


def kind_of(head: bytes) -> str | None:
    """Return the name of an unsupported kind of file, or None if it is unknown.

    Args:
        head: The file's first `HEAD_BYTES` bytes.
    """
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    # Spaces and a byte order mark may come before the first tag.
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_TAGS):
        return MARKUP
    return None
