"""Zip files from elsewhere, which `.npz` files and those of `torch.save` are."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from diver_trt.distilled.array_damage import MAX_METADATA_BYTES

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, name length and extra length of a member's local header.

APPNOTE 4.3.7, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""


class _BoundedReader(io.BufferedReader):
    """A file that returns at most `MAX_METADATA_BYTES` per read."""

    def read(self, size: int | None = -1, /) -> bytes:
        # zipfile reads a whole central directory at once, whatever size the file states; a longer
        # one than this is reported as truncated.
        # https://github.com/python/cpython/blob/3.13/Lib/zipfile/__init__.py (_RealGetContents)
        limit = MAX_METADATA_BYTES
        return super().read(limit if size is None or size < 0 else min(size, limit))


@contextmanager
def open_zip(path: Path) -> Iterator[tuple[BinaryIO, zipfile.ZipFile]]:
    """Open a zip file, and the file itself for reading members in place."""
    # Both read the same open file, so offsets and members belong to the same bytes.
    with _BoundedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        yield file, archive


def data_offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where a member's data starts in the file, in bytes."""
    header = read_at(file, info.header_offset, _LOCAL_HEADER.size)
    # The local header has an extra field of its own, often longer than the directory's: torch and
    # numpy pad with it to align the data.
    _, name, extra = _LOCAL_HEADER.unpack(header)
    return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return bytes of a file, fewer if it ends before."""
    file.seek(offset)
    return file.read(size)
