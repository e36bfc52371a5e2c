"""The external files that an ONNX graph names, read without the onnx package.

Devices do not have that package.

`bundle.json` pins every file of a bundle by its hash, but the author of a hostile bundle also
writes its `bundle.json`. The graph itself can name any file: a tensor may be stored externally, and
the runtime opens that file. ONNX Runtime 1.32 refuses `../secret`, absolute paths and symlinks that
lead out of the graph's folder, but reads every other file in it. TensorRT-RTX 1.7's parser follows
such symlinks as well, and other releases may behave differently. So the names are read here, and
every file that the bundle does not list is refused before a runtime opens the graph.

This module walks the protobuf wire format (https://protobuf.dev/programming-guides/encoding) along
the fields of onnx.proto that lead to a tensor, and skips all others. It is stricter than protobuf:
a message that two readers could understand differently is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The numbers are onnx.proto's, and a test walks its schema for ways to a tensor that are missing:
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "Tensor": {13: "Entry"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
}
"""Fields that lead to a tensor's external data, by message; `Entry` is onnx.proto's
StringStringEntryProto.
"""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# https://onnx.ai/onnx/repo-docs/ExternalData.html
_KEYS = (b"location", b"offset", b"length", b"checksum")

Buffer = mmap.mmap | bytes


class GraphError(ValueError):
    """A file that is not an ONNX graph, or one that two readers could understand differently."""


def external_locations(path: Path) -> set[str]:
    """Return the names of a graph's external data files, or the empty set if it has none.

    Args:
        path: The `.onnx` file.

    Raises:
        GraphError: If it is not an ONNX graph, or can be read in more than one way.
        OSError: If it cannot be read.
    """
    with mapped(path) as data:
        return {_location(data, *span) for span in _entries(data)} - {""}


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """Yield the bytes of a file, mapped into memory: only what is accessed is read.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:  # mmap refuses an empty file
            yield b""
            return
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as cause:
            # mmap does not know the file's name, and the message needs one.
            raise OSError(cause.errno, cause.strerror, str(path)) from cause
        with data:
            yield data


def _entries(data: Buffer) -> Iterator[tuple[int, int]]:
    """Yield the span of each entry of each tensor's external data."""
    # A list, not recursion: graphs nest in attributes, and a hostile file may nest them deeply.
    pending = [("Model", 0, len(data))]
    while pending:
        message, position, end = pending.pop()
        if message == "Entry":
            yield position, end
            continue
        inner = _MESSAGES[message]
        for number, kind, first, last in fields_of(data, position, end):
            if number in inner:
                if kind != BYTES:
                    raise GraphError(f"field {number} of a {message} is not a message")
                pending.append((inner[number], first, last))


def _location(data: Buffer, position: int, end: int) -> str:
    """Return the file that an entry names, or "" if the entry has another key."""
    fields: dict[int, bytes] = {}
    for number, kind, first, last in fields_of(data, position, end):
        # Of a repeated field protobuf's readers take the last value, others may take the first.
        if number not in (1, 2) or kind != BYTES or number in fields:
            raise GraphError("external data is described by more than one key and one value")
        fields[number] = data[first:last]
    key, value = fields.get(1, b""), fields.get(2, b"")
    if key not in _KEYS:
        raise GraphError(
            f"external data is described by {key[:30]!r}, expected one of "
            f"{', '.join(known.decode() for known in _KEYS)}"
        )
    if key != b"location":
        return ""
    if not value:
        raise GraphError("a tensor is stored in a file without a name")
    # What is not UTF-8 becomes a backslash escape, and no listed name has a backslash.
    return value.decode("utf-8", "backslashreplace")


def fields_of(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of a message: number, wire type, start and end of its value.

    Raises:
        GraphError: If the bytes are not a message.
    """
    while position < end:
        tag, first = varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, last = varint(data, first, end)
        elif kind == BYTES:
            size, first = varint(data, first, end)
            last = first + size
        elif kind in (FIXED64, FIXED32):
            last = first + (8 if kind == FIXED64 else 4)
        else:
            raise GraphError(
                f"byte {position} starts a field of wire type {kind}, which ONNX does not use"
            )
        # 0 is not a field number: https://protobuf.dev/programming-guides/proto3/#assigning
        if number == 0 or last > end:
            raise GraphError(f"byte {position} starts an invalid field")
        yield number, kind, first, last
        position = last


def varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, lowest first, and the position after it.

    Raises:
        GraphError: If it does not end.
    """
    value = 0
    # Ten bytes hold 64 bits; protobuf allows no more.
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise GraphError(f"byte {position} is in a number that does not end")
