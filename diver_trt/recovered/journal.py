"""The journal of a recovery: what it is, and a line for every image that is on disk.

The first line says what decides the images: the bundle, the recipe, the seed, the input. A second run with the same first line goes on
where the first stopped; with another it is refused. A line is appended when its image has its name, so a kill at any moment costs at most
the images of one batch. A power failure costs what was not brought to the disk yet, which hashing the images again finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from diver_trt.documents import Document
from diver_trt.errors import OutputError
from diver_trt.files import MAX_NAME_BYTES, file_sha256, sync_file, writing

JOURNAL = "journal.jsonl"
MAX_LINE_BYTES = 16 * 1024**2

Entries = Mapping[str, Mapping[str, Any]]
"""What is known of each sample before it is recovered, by key: its source, its class, the `file` it goes to."""


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

    def begin(self, head: Mapping[str, Any], entries: Iterable[Mapping[str, Any]] = ()) -> None:
        """Start a journal with the samples that are done already; it outlasts a power failure.

        Raises:
            OSError: It cannot be written.
        """
        self.entries = {}
        with writing(self.path) as file:
            offset = file.write(_line(head))
            for entry in entries:
                self.entries[entry["key"]] = offset
                offset += file.write(_line(entry))

    def head(self) -> Document | None:
        """Return the first line, or None where a power failure left nothing of it, or a part.

        Raises:
            OutputError: It is none of a journal.
            OSError: It cannot be read.
        """
        first = next(_lines(self.path), None)
        if first is None or b"\0" in first:
            return None
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(first), dict):
                return Document(value, str(self.path), OutputError)
        raise OutputError(
            f"{self.path}: is no journal of diver-trt; delete it by hand, or choose another folder"
        )

    def said(self) -> Iterator[object]:
        """Return what the lines after the first say, None for one that is no JSON.

        Raises:
            OSError: It cannot be read.
        """
        for number, line in enumerate(_lines(self.path)):
            value = None
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
            if number:
                yield value

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a sample that is on disk, or that came to nothing.

        Raises:
            OSError: It cannot be written.
        """
        with self.path.open("ab") as file:
            offset = file.tell()
            file.write(_line(entry))
        self.entries[entry["key"]] = offset

    def sync(self) -> None:
        """Let what was appended outlast a power failure.

        Raises:
            OSError: It cannot be written to the disk.
        """
        sync_file(self.path)

    def entry(self, key: str) -> dict[str, Any]:
        """Return what was written of a sample."""
        with self.path.open("rb") as file:
            file.seek(self.entries[key])
            value: dict[str, Any] = json.loads(file.readline())
        return value


def believed(root: Path, said: object, samples: Entries) -> dict[str, Any] | None:
    """Return the entry of a sample as it has to be, or None if what a journal or a manifest says is not true of the folder.

    Taken from what it says are the key, if there is such a sample, the engine, and either the problem or the hash of the sample's own file,
    if that file has it. Everything else is taken from `samples`.
    """
    try:
        entry = Document(said, str(root), OutputError)
        known = samples[entry.text("key")]
        rebuilt = {
            name: value
            for name, value in known.items()
            if name not in ("engine", "file", "sha256", "problem")
        }
        rebuilt |= {"key": entry.text("key"), "engine": entry.text("engine")}
        if "problem" in entry:
            return None if "file" in entry else {**rebuilt, "problem": entry.text("problem")}
        name, sha256 = entry.text("file"), entry.sha256("sha256")
        return (
            {**rebuilt, "file": name, "sha256": sha256}
            if name == known["file"] and is_there(root, name, sha256)
            else None
        )
    except (OutputError, KeyError):
        return None


def is_there(root: Path, name: str, sha256: str) -> bool:
    """Return whether a file in a folder has a hash; one that is a link, or that cannot be read, has not."""
    path = root / name
    try:
        return (
            is_inside(name)
            and path.is_file()
            and not path.is_symlink()
            and file_sha256(path) == sha256
        )
    except OSError:
        return False


def is_inside(name: str) -> bool:
    """Return whether a name that a file gives is one, and stays inside that file's folder."""
    path = Path(name)
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= MAX_NAME_BYTES
        and not path.is_absolute()
        and ".." not in path.parts
    )


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _lines(path: Path) -> Iterator[bytes]:
    """Return the whole lines of a file; the last one may have been cut short."""
    with path.open("rb") as file:
        for line in iter(partial(file.readline, MAX_LINE_BYTES), b""):
            if line.endswith(b"\n"):
                yield line
