"""The journal of a recovery: what the run is, and a line for every image that is on disk.

The first line holds what decides the images (the bundle, the recipe, the seed, the input) and lists
the distilled images. A later run with the same first line resumes; one that differs is refused. A
line is appended after its image has been renamed to its final name, so a kill at any moment costs
at most the images of one batch. After a power loss the images are hashed again, and those that
were not flushed to the disk are made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from diver_trt.documents import Document
from diver_trt.errors import OutputError, printable
from diver_trt.files import file_sha256, is_inside, sync_file, writing
from diver_trt.manifest import JOURNAL
from diver_trt.structs import Sha256

# Also the most that is read at once from a file of this name that is not a journal.
MAX_LINE_BYTES = 16 * 1024**2
MAX_TEXT = 4096
"""Characters of one text in a journal or a manifest.

A longer one is cut, so that every reader accepts it (`MANIFEST_LIMITS`).
"""

Entries = Mapping[str, Mapping[str, Any]]
"""What is known of each sample before it is recovered, by key: its source, its class, the `file` it
is written to, and the `problem` of a source that cannot be read.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The fields of an entry that a later run uses; the others follow from its own input.

    Attributes:
        engine: The engine, or None where the source could not be read.
        file: The image, or None if the sample was left out.
        sha256: Hash of the image.
        problem: Why the sample was left out.
    """

    engine: str | None = None
    file: str | None = None
    sha256: Sha256 | None = None
    problem: str | None = None

    @property
    def left_out(self) -> bool:
        """Whether the sample was left out."""
        return self.problem is not None and self.file is None


class Journal:
    """A journal on disk.

    Args:
        root: The output folder.

    Attributes:
        entries: Where the line of each sample is in the file, by key.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / JOURNAL
        self.entries: dict[str, int] = {}

    def begin(
        self,
        head: Mapping[str, Any],
        entries: Iterable[Mapping[str, Any]] = (),
        inputs: Iterable[Sequence[Any]] = (),
    ) -> None:
        """Start a journal with the samples that are done already, and flush it to the disk.

        Args:
            head: What decides the images.
            entries: The samples that are done.
            inputs: The distilled images, from `listed_inputs`. They are left out where the line
                would be too long to be read again.

        Raises:
            OSError: If it cannot be written.
        """
        self.entries = {}
        # Until this file is whole and on disk, an earlier journal stays the one that counts.
        with writing(self.path) as file:
            offset = _write_head(file, head, inputs)
            for entry in entries:
                self.entries[entry["key"]] = offset
                offset += file.write(_line(entry))

    def head(self) -> Document | None:
        """Return the first line, or None if a power loss left it empty or truncated.

        Raises:
            OutputError: If it is not the first line of a journal.
            OSError: If it cannot be read.
        """
        first = next(_lines(self.path), None)
        # Some file systems fill a file with zeros whose data did not reach the disk.
        if first is None or b"\0" in first:
            return None
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(first), dict):
                return Document(value, str(self.path), OutputError)
        raise OutputError(
            f"{self.path}: is not a journal of diver-trt; delete it by hand, or choose another "
            "folder"
        )

    def values(self) -> Iterator[object]:
        """Return the value of each line after the first, None for one that is not JSON.

        Raises:
            OSError: If it cannot be read.
        """
        for line in islice(_lines(self.path), 1, None):
            value = None
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
            yield value

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a sample that is on disk, or that was left out.

        Raises:
            OSError: If it cannot be written.
        """
        # Not flushed to the disk here: `DatasetWriter.sync` does that, after the images.
        with self.path.open("ab") as file:
            offset = file.tell()
            file.write(_line(entry))
        self.entries[entry["key"]] = offset

    def sync(self) -> None:
        """Flush what was appended to the disk.

        Raises:
            OSError: If it cannot be written there.
        """
        sync_file(self.path)

    def entry(self, key: str) -> dict[str, Any]:
        """Return what was written of a sample."""
        with self.path.open("rb") as file:
            # From the disk: entries take more memory than all else that is kept of an image.
            file.seek(self.entries[key])
            value: dict[str, Any] = json.loads(file.readline())
        return value


@dataclass(frozen=True, slots=True)
class Verified:
    """What an earlier run recorded, compared with its folder and with the samples of this run.

    Attributes:
        kept: The entry of each sample that need not be done again, by key, with the fields that a
            new run would write.
        lost: How many samples are recorded whose image is missing or is not the recorded one.
        retried: How many samples were left out because their source could not be read, and can be
            read now.
        ignored: How many records are not of a sample.
    """

    kept: dict[str, dict[str, Any]]
    lost: int
    retried: int
    ignored: int


def verify(
    root: Path, recorded: Iterable[object], samples: Entries, *, same_input: bool
) -> Verified:
    """Compare what an earlier run recorded with its folder.

    Of a record the key, the engine, and either the problem or the hash of the image are used.
    Everything else follows from `samples`.

    Args:
        root: The output folder.
        recorded: A value from a journal or a manifest for each sample.
        samples: What is known of each sample.
        same_input: Whether the run had the same input. If not, an image is kept only where its own
            source is recorded to be the same.
    """
    kept: dict[str, dict[str, Any]] = {}
    # Sets, since a damaged journal may have several lines of one image.
    named, retried, ignored = set[str](), set[str](), 0
    for value in recorded:
        try:
            entry = Document(value, str(root), OutputError)
            key = entry.take(str, "key")
            known = samples[key]
        except (OutputError, KeyError):
            ignored += 1
            continue
        named.add(key)
        same = same_input or _has_same_source(entry.fields, known)
        with suppress(OutputError):  # a damaged record: its image is made again
            outcome = entry.load(Outcome)
            if _can_be_retried(outcome, known, same):
                retried.add(key)
            # What was left out has no image that another source could contradict.
            elif (same or outcome.problem) and (found := _verified(root, outcome, known)):
                kept[key] = found
    # A later line of the same image may have held.
    retried -= kept.keys()
    lost = len(named - kept.keys() - retried)
    return Verified(kept, lost, len(retried), ignored)


def _has_same_source(recorded: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Return whether two entries are of the same image, class and soft label."""
    names = ("source_sha256", "soft_label_sha256", "label")
    return all(recorded.get(name) == known.get(name) for name in names)


def _can_be_retried(outcome: Outcome, known: Mapping[str, Any], same: bool) -> bool:
    """Return whether a sample's source was unreadable or different before and is readable now."""
    # What the model could not recover (its entry has an engine) fails again, so it is not retried
    # by every run.
    return outcome.left_out and "problem" not in known and (outcome.engine is None or not same)


def _verified(root: Path, outcome: Outcome, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the verified entry of a sample, or None if what was recorded does not hold."""
    # Unreadable now: only the record that it was left out can hold, without a file.
    if "problem" in known:
        kept = {name: value for name, value in known.items() if name != "file"}
        return kept if outcome.left_out else None
    if outcome.engine is None:
        return None
    decided = ("engine", "file", "sha256")
    rebuilt = {name: value for name, value in known.items() if name not in decided}
    rebuilt["engine"] = outcome.engine
    if outcome.problem is not None:
        return {**rebuilt, "problem": outcome.problem} if outcome.left_out else None
    name, sha256 = outcome.file, outcome.sha256
    if name is None or name != known["file"] or sha256 is None:
        return None
    return {**rebuilt, "file": name, "sha256": sha256} if is_there(root, name, sha256) else None


def is_there(root: Path, name: str, sha256: str) -> bool:
    """Return whether a regular, readable file in a folder has the given hash."""
    path = root / name
    try:
        return (
            # A symlink does not count: an image is made again in its place, its target untouched.
            is_inside(name)
            and path.is_file()
            and not path.is_symlink()
            and file_sha256(path) == sha256
        )
    except OSError:
        return False


def storable(value: Any) -> Any:
    """Return a JSON value whose strings are printable and at most `MAX_TEXT` characters.

    Every reader of journals and manifests accepts them.
    """
    # File names may hold line breaks, escape sequences and bytes that are not UTF-8.
    if isinstance(value, str):
        text = printable(value)
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    if isinstance(value, Mapping):
        return {name: storable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(inner) for inner in value]
    return value


def _line(value: Mapping[str, Any]) -> bytes:
    # json.dumps escapes line breaks within texts, so a line is a value.
    return json.dumps(value).encode() + b"\n"


def _write_head(file: BinaryIO, head: Mapping[str, Any], inputs: Iterable[Sequence[Any]]) -> int:
    """Write the first line, without the distilled images if it would be too long to be read again.

    Returns:
        Where the next line begins.
    """
    # The object is left open: the list is its last field.
    file.write(json.dumps(head).removesuffix("}").encode())
    # Image by image: a list of them all takes several times the memory of its text.
    before = ', "inputs": ['
    for value in inputs:
        file.write(f"{before}{json.dumps(value)}".encode())
        before = ", "
    file.write(b"]}\n" if before == ", " else b"}\n")
    if file.tell() >= MAX_LINE_BYTES:
        file.seek(0)
        file.truncate()
        file.write(_line(head))
    return file.tell()


def _lines(path: Path) -> Iterator[bytes]:
    """Return the whole lines of a file; the last one may have been cut short."""
    with path.open("rb") as file:
        for line in iter(partial(file.readline, MAX_LINE_BYTES), b""):
            if line.endswith(b"\n"):
                yield line
