"""Checking that a PNG file holds every row that its header states.

The stream is inflated block by block and its rows are counted. The format:
https://www.w3.org/TR/png-3/
"""

# Pillow fills rows that the compressed stream lacks with black, and does not compare the checksums
# of pixel data when it decodes, so a truncated PNG would pass for a whole one.

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_READ_BYTES, _INFLATED_BYTES = 1 << 16, 1 << 20
_MAX_FILTER = 4

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel of each colour type."""

_INDEXED = 3

_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Left, top, horizontal and vertical step of each pass of an interlaced image (PNG 8.1)."""


def require_whole_png(file: BinaryIO) -> bool:
    """Check every chunk's CRC, and that the image data inflates to all rows of the image.

    Args:
        file: A PNG file, which is read from its start to its `IEND` chunk.

    Returns:
        Whether chunks lie between the image data and `IEND`. Only a decoder parses them.

    Raises:
        ValueError: If a chunk is damaged, missing or misplaced, or rows are missing.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("the PNG signature is missing")
    # IHDR first, then chunks up to IEND; the image data is counted as it comes.
    kind, content = _chunk(file)
    if kind != b"IHDR":
        raise ValueError("the PNG header is missing")
    header = b"".join(content)
    # This also checks the header's length, before its colour type is looked up.
    rows = _Rows(_passes(header))
    needs_palette = header[9] == _INDEXED
    previous, follow = kind, False
    while kind != b"IEND":
        kind, content = _chunk(file)
        if kind == b"PLTE":
            needs_palette = False
        if kind == b"IDAT" and needs_palette:
            raise ValueError("the palette is missing before the image data")
        if kind == b"IDAT" and rows.begun and previous != b"IDAT":
            # Pillow reads the first place only.
            raise ValueError("image data in two places")
        # Other chunks are also consumed, since the CRC at their end is compared.
        for block in content:
            if kind == b"IDAT":
                rows.feed(block)
        follow |= rows.begun and kind not in (b"IDAT", b"IEND")
        previous = kind
    rows.require_all()
    return follow


def _chunk(file: BinaryIO) -> tuple[bytes, Iterator[bytes]]:
    """Return the next chunk's kind, and its content in blocks; its CRC is compared at the end."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("the file ends before the image does")
    (length,), kind = struct.unpack(">I", head[:4]), head[4:]
    return kind, _content(file, kind, length)


def _content(file: BinaryIO, kind: bytes, length: int) -> Iterator[bytes]:
    crc = zlib.crc32(kind)
    while length:
        block = file.read(min(_READ_BYTES, length))
        # A chunk may state a length beyond the end of the file.
        if not block:
            raise ValueError("the file ends before the image does")
        crc = zlib.crc32(block, crc)
        length -= len(block)
        yield block
    if file.read(4) != struct.pack(">I", crc):
        raise ValueError(f"wrong checksum in a chunk {kind.decode('latin-1')}")


def _passes(header: bytes) -> list[tuple[int, int]]:
    """Return the rows of each pass, and the bytes per row with its filter type.

    Args:
        header: The content of the image's `IHDR`.
    """
    if len(header) != 13:
        raise ValueError("a PNG header of another length")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _CHANNELS or depth not in (1, 2, 4, 8, 16) or interlaced > 1:
        raise ValueError("a PNG header with unknown values")
    bits = depth * _CHANNELS[colour]
    sizes = [(width, height)]
    if interlaced:
        sizes = [
            (-(-(width - left) // across), -(-(height - top) // down))
            for left, top, across, down in _ADAM7
        ]
    # Small images have passes without pixels, which are not in the stream.
    return [(rows, 1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 < rows]


class _Rows:
    """Inflates image data, counts its bytes and checks each row's filter type.

    Args:
        passes: Rows, and bytes per row, of each pass.
    """

    def __init__(self, passes: list[tuple[int, int]]) -> None:
        self.begun = False
        self._ends: list[tuple[int, int, int]] = []  # start, end and bytes per row of each pass
        self._expected = self._seen = 0
        for rows, stride in passes:
            self._ends.append((self._expected, self._expected + rows * stride, stride))
            self._expected += rows * stride
        self._inflater = zlib.decompressobj()

    def feed(self, block: bytes) -> None:
        """Inflate a block of image data."""
        self.begun = True
        # Data after the last row is not inflated: it may be a decompression bomb.
        while block and self._seen < self._expected and not self._inflater.eof:
            try:
                # At most `_INFLATED_BYTES` at a time: a block may inflate to a thousand times its
                # size.
                values = self._inflater.decompress(block, _INFLATED_BYTES)
            except zlib.error as cause:
                raise ValueError(f"damaged image data ({cause})") from cause
            self._check(values)
            block = self._inflater.unconsumed_tail

    def require_all(self) -> None:
        """Raise a `ValueError` if rows are missing."""
        # zlib may hold output back after it has consumed all input, since each call is limited.
        while self._seen < self._expected and not self._inflater.eof:
            values = self._inflater.decompress(b"", _INFLATED_BYTES)
            if not values:
                break
            self._check(values)
        if self._seen < self._expected:
            raise ValueError("rows are missing at its end")

    def _check(self, values: bytes) -> None:
        start, self._seen = self._seen, self._seen + len(values)
        for first, end, stride in self._ends:
            if start < end and first < self._seen:
                # The first row of this pass that begins in the block; each row begins with its
                # filter type.
                offset = max(first - start, (first - start) % stride)
                types = values[offset : end - start : stride]
                if types and max(types) > _MAX_FILTER:
                    raise ValueError("damaged image data (unknown filter type)")
