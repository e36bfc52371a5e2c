"""The journal of a recovery: what it is, and a line for every image that is on disk.

The first line says what decides the images: the bundle, the recipe, the seed, the input. A second run with the same first line goes on
where the first stopped; with another it is refused. A line is appended when its image has its name, so a kill at any moment costs at most
the images of one batch. What a power failure does to either is found by hashing the images again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diver_trt.bundle import MAX_NAME_BYTES, file_sha256
from diver_trt.datasets.whole_file import replacing
from diver_trt.documents import Document
from diver_trt.errors import OutputError

JOURNAL = "journal.jsonl"


class Journal:
    """A journal on disk.

    Args:
        root: The output folder.

    Attributes:
        entries: Where the line of each sample is in the file, by key.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / JOURNAL
        self.entries: dict[str, int] = {}

    def begin(self, head: Mapping[str, Any]) -> None:
        """Start a new journal.

        Raises:
            OSError: It cannot be written.
        """
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def read(self) -> tuple[dict[str, Any], list[bytes], int]:
        """Read the journal of a run that stopped.

        Returns:
            Its first line; all lines that are true of the folder, that one included; and how many are not, whose samples have to be done
            again.

        Raises:
            OutputError: It is no journal.
            OSError: It cannot be read.
        """
        head, kept, lost = None, [], 0
        for line in _lines(self.path):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if head is None:
                if not isinstance(value, dict):
                    break
                head = value
                kept.append(line)
            elif isinstance(value, dict) and self._holds(value):
                kept.append(line)
            else:
                lost += 1
        if head is None:
            raise OutputError(f"{self.path}: is no journal of diver-trt; delete it by hand, or choose another folder")
        return head, kept, lost

    def resume(self, kept: Sequence[bytes]) -> None:
        """Go on with these lines of what was read.

        Raises:
            OSError: It cannot be written.
        """
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self.entries, offset = {}, 0
        for number, line in enumerate(kept):
            if number:
                self.entries[json.loads(line)["key"]] = offset
            offset += len(line)

    def head(self) -> Document:
        """Return the first line.

        Raises:
            OutputError: It is none of a journal.
        """
        for line in _lines(self.path):
            with suppress(ValueError, RecursionError):
                return Document(json.loads(line), str(self.path), OutputError)
            break
        raise OutputError(f"{self.path}: is no journal of diver-trt; delete it by hand, or choose another folder")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a sample that is on disk, or that came to nothing.

        Raises:
            OSError: It cannot be written.
        """
        with self.path.open("ab") as file:
            offset = file.tell()
            file.write(json.dumps(entry).encode() + b"\n")
        self.entries[entry["key"]] = offset

    def entry(self, key: str) -> dict[str, Any]:
        """Return what was written of a sample."""
        with self.path.open("rb") as file:
            file.seek(self.entries[key])
            value: dict[str, Any] = json.loads(file.readline())
        return value

    def files(self) -> Iterator[str]:
        """Return the names that the journal has for images, whether they are there or not; what is no entry is passed over."""
        for line in _lines(self.path):
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict) and isinstance(value.get("file"), str):
                    yield value["file"]

    def _holds(self, value: dict[str, Any]) -> bool:
        """Return whether an entry is of this folder, and its image is there and is the one that was written."""
        entry = Document(value, str(self.path), OutputError)
        try:
            if "problem" in entry:
                return bool(entry.text("key"))
            name, sha256 = entry.text("file"), entry.text("sha256")
            entry.text("key")
        except OutputError:
            return False
        return is_inside(name) and (self.root / name).is_file() and file_sha256(self.root / name) == sha256


def is_inside(name: str) -> bool:
    """Return whether a name that a file gives is one, and stays inside that file's folder."""
    path = Path(name)
    return name.isprintable() and 0 < len(name.encode()) <= MAX_NAME_BYTES and not path.is_absolute() and ".." not in path.parts


def _lines(path: Path) -> Iterator[bytes]:
    """Return the whole lines of a file; the last one may have been cut short."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
