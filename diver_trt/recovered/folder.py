"""Writing a recovered dataset so that no interruption loses or half-writes anything.

A file appears under its name only when it is whole: first the image, then its line in the journal,
at the very end the manifest, which replaces the journal. A folder with a journal can be resumed;
one with a manifest is finished. Each of the two is flushed to the disk before the other is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from diver_trt.documents import Document
from diver_trt.errors import OutputError
from diver_trt.files import reported, resolved, sync_file, sync_folder, temporary_of, writing
from diver_trt.lock import LOCK, locked
from diver_trt.manifest import CONTACT_SHEET, MANIFEST, open_recovered
from diver_trt.pixels import Pixels
from diver_trt.records import Companion
from diver_trt.recovered.earlier_run import (
    RecordedInputs,
    inputs_of_entries,
    inputs_of_journal,
    listed_inputs,
    require_same_run,
    with_names_of,
)
from diver_trt.recovered.journal import (
    JOURNAL,
    Entries,
    Journal,
    Verified,
    is_there,
    storable,
    verify,
)
from diver_trt.recovered.leftovers import delete_run, images_without_journal, is_without_record
from diver_trt.recovered.output_names import OutputNames
from diver_trt.structs import dump

SYNC_EVERY = 50
"""Minimum interval between fsyncs, as a multiple of the last one's duration: at most 2 % overhead."""


class DatasetWriter:
    """An output folder that is being written; made by `open_output`.

    Attributes:
        root: The folder.
        head: What decides the images, as the journal and the manifest begin.
        done: Keys of the samples that are on disk, or that were left out.
        lost: How many samples an earlier run recorded whose images are missing or have changed, and
            are made again.
        notes: What else was found of an earlier run, in words.
        finished: Whether an earlier run finished the same dataset.
    """

    def __init__(
        self,
        root: Path,
        head: Mapping[str, Any],
        journal: Journal,
        *,
        lost: int = 0,
        notes: Sequence[str] = (),
        finished: bool = False,
    ) -> None:
        self.root, self.head, self._journal = root, head, journal
        self.lost, self.notes, self.finished = lost, tuple(notes), finished
        self._under_way: list[Path] = []
        self._sync_again = perf_counter()

    @property
    def done(self) -> Mapping[str, int]:
        """Keys of the samples that have a line in the journal."""
        return self._journal.entries

    def totals(self) -> tuple[int, list[dict[str, Any]]]:
        """Return how many samples are done, and the entries of those that came to nothing."""
        if not self.finished:
            return len(self.done), [
                entry for key in self.done if "problem" in (entry := self.entry(key))
            ]
        manifest = open_recovered(self.root).manifest
        return len(manifest.skipped) + len(manifest.samples), dump(manifest.skipped)

    def add(self, name: str, image: Pixels) -> Path:
        """Write one image, [H, W, 3] uint8, as a PNG file and return its path.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.root / name
        with reported(path):
            path.parent.mkdir(exist_ok=True, parents=True)
            with writing(path, lasting=False) as file:
                Image.fromarray(image).save(file, format="PNG")
        self._under_way.append(path)
        return path

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a sample to the journal once its image is written; fsync from time to time.

        Raises:
            OutputError: It cannot be written.
        """
        with reported(self.root / JOURNAL):
            self._journal.append(
                {**entry, "problem": storable(entry["problem"])} if "problem" in entry else entry
            )
        if perf_counter() >= self._sync_again:
            self.sync()

    def sync(self) -> None:
        """Bring the images, their names and the journal from the system's memory to the disk.

        Raises:
            OutputError: They cannot be written there.
        """
        started = perf_counter()
        with reported(self.root):
            for path in self._under_way:
                sync_file(path)
            for folder in {self.root, *(path.parent for path in self._under_way)}:
                sync_folder(folder)
            self._journal.sync()
        self._under_way.clear()
        self._sync_again = perf_counter() + SYNC_EVERY * (perf_counter() - started)

    def entry(self, key: str) -> dict[str, Any]:
        """Return what the journal says of a sample."""
        return self._journal.entry(key)

    def finish(
        self, manifest: Mapping[str, Any], keys: Sequence[str], contact_sheet: Image.Image
    ) -> None:
        """Write the contact sheet and, last, the manifest with the samples in the given order.

        Raises:
            OutputError: One of them cannot be written.
        """
        self.sync()
        with reported(self.root / CONTACT_SHEET), writing(self.root / CONTACT_SHEET) as file:
            contact_sheet.save(file, format="PNG")
        path = self.root / MANIFEST
        head = json.dumps(manifest, indent=1).removesuffix("\n}")
        with reported(path):
            with writing(path) as file:
                file.write(f'{head},\n "samples": ['.encode())
                for number, key in enumerate(keys):
                    file.write(f"{',' if number else ''}\n  {json.dumps(self.entry(key))}".encode())
                file.write(b"\n ]\n}\n")
            (self.root / JOURNAL).unlink()
        self.finished = True


@contextmanager
def open_output(
    root: Path,
    head: Mapping[str, Any],
    *,
    samples: Entries,
    classes: Sequence[Mapping[str, Any]],
    overwrite: bool = False,
) -> Iterator[DatasetWriter]:
    """Lock an output folder: a new or empty one, or one in which the same run stopped or ended.

    Args:
        root: The folder; it is made if need be.
        head: What decides the images. That of an earlier run in the folder must be the same.
        samples: What is known of each sample, by key. Of the record of an earlier run only engines,
            problems and hashes are used.
        classes: The classes, as the manifest lists them.
        overwrite: Whether to delete what an earlier run left there, and begin again.

    Raises:
        OutputError: If the folder holds something else, or an earlier run that differs; if another
            process is writing there; or if it cannot be written.
    """
    made = not root.exists()
    with reported(root, "made"):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root):
            with reported(root):
                names = OutputNames.of(Document(head, str(root), OutputError))
                begun_anew = overwrite and delete_run(root, samples, names)
                run = _Run(root, json.loads(json.dumps(head)), samples, classes, names)
                writer = run.open(begun_anew=begun_anew)
            try:
                yield writer
            finally:
                if not writer.finished:
                    with suppress(OutputError):
                        writer.sync()
                    if not writer.done:
                        _leave_nothing(root)
    finally:
        if made:
            with suppress(OSError):  # if anything is in it
                root.rmdir()


def _leave_nothing(root: Path) -> None:
    """Delete the journal if the folder holds nothing else; otherwise it stays for resuming."""
    with suppress(OSError):
        if all(path.name in (JOURNAL, LOCK) for path in root.iterdir()):
            (root / JOURNAL).unlink()


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that is to write into a folder, and may have written there before."""

    root: Path
    head: dict[str, Any]
    samples: Entries
    classes: Sequence[Mapping[str, Any]]
    names: OutputNames

    def open(self, *, begun_anew: bool) -> DatasetWriter:
        """Resume what is there, or begin."""
        self.names.refuse_links(self.root)
        if not begun_anew:
            if (self.root / MANIFEST).is_file():
                return self._open_finished()
            if (self.root / JOURNAL).is_file():
                return self._open_interrupted()
            if is_without_record(self.root, self.samples, self.names):
                raise OutputError(
                    f"{self.root}: holds images of a run whose {MANIFEST} is missing, so that "
                    "what they were made from is not known. "
                    f"Restore {MANIFEST}, say --overwrite to make the images again, or choose "
                    "another folder"
                )
            _require_free(self.root)
        return self._begin()

    def _begin(
        self, found: Verified | None = None, *, lost: int = 0, notes: Sequence[str] = ()
    ) -> DatasetWriter:
        journal = Journal(self.root)
        kept = found.kept if found else {}
        entries = [kept[key] for key in self.samples if key in kept]
        journal.begin(self.head, entries, listed_inputs(self.samples))
        return DatasetWriter(self.root, self.head, journal, lost=lost, notes=notes)

    def _open_finished(self) -> DatasetWriter:
        """Keep a finished run whose manifest this run would write; else make it resumable."""
        manifest = Document.read(self.root / MANIFEST, OutputError)
        values = [*_listed(manifest, "samples"), *_listed(manifest, "skipped")]
        recorded = RecordedInputs(inputs_of_entries(values), complete=True)
        same_input = self._require_same(manifest.fields, recorded)
        found = verify(self.root, values, self.samples, same_input=same_input)
        notes = self._notes(manifest.fields, found, same_input=same_input)
        if (
            len(found.kept) == len(self.samples)
            and (self.root / CONTACT_SHEET).is_file()
            and (companions := _whole_companions(self.root, manifest, self.names)) is not None
            and _is_same_json(
                manifest.fields, self._manifest(manifest.fields, found.kept, companions)
            )
        ):
            if (self.root / JOURNAL).exists():  # of a run that ended between the manifest and this
                (self.root / JOURNAL).unlink()
            return DatasetWriter(self.root, self.head, Journal(self.root), finished=True)
        lost = len(self.samples) - len(found.kept) - found.retried
        if not (lost or found.retried) and same_input:
            notes.append(
                f"{MANIFEST} or a file beside the images is not as it was written, and is written "
                "again"
            )
        writer = self._begin(found, lost=lost, notes=notes)
        (self.root / MANIFEST).unlink()
        return writer

    def _manifest(
        self,
        found: Mapping[str, Any],
        kept: Mapping[str, dict[str, Any]],
        companions: Sequence[Mapping[str, str]],
    ) -> dict[str, Any]:
        """Return the manifest that this run would write, with the names that an earlier one has."""
        entries = [kept[key] for key in self.samples]
        return {
            **with_names_of(self.head, found),
            "companions": companions,
            "skipped": [entry for entry in entries if "file" not in entry],
            "classes": self.classes,
            "samples": [entry for entry in entries if "file" in entry],
        }

    def _open_interrupted(self) -> DatasetWriter:
        """Resume an interrupted run from what is on disk."""
        journal = Journal(self.root)
        with reported(self.root / JOURNAL, "read"):
            head = journal.head()
            if head is None:
                lost = images_without_journal(self.root, self.samples, self.names)
                return self._begin(lost=lost)
            recorded = inputs_of_journal(head.fields, journal.values())
            same_input = self._require_same(head.fields, recorded)
            found = verify(self.root, journal.values(), self.samples, same_input=same_input)
        notes = self._notes(head.fields, found, same_input=same_input)
        return self._begin(found, lost=found.lost, notes=notes)

    def _require_same(self, found: Mapping[str, Any], recorded: RecordedInputs) -> bool:
        return require_same_run(self.root, found, self.head, recorded, self.samples)

    def _notes(self, head: Mapping[str, Any], found: Verified, *, same_input: bool) -> list[str]:
        notes = []
        if (version := head["tool"]["version"]) != self.head["tool"]["version"]:
            notes.append(f"was begun with version {version}, which makes the same images")
        if not same_input:
            other = " or belong to other shards" if self.head.get("shard") else ""
            notes.append(f"the input differs only in images that were left out{other}")
        if found.retried:
            notes.append(f"{_images(found.retried)} left out before and can be read now")
        if found.ignored:
            count = "1 record is" if found.ignored == 1 else f"{found.ignored} records are"
            notes.append(f"{count} not of an image of this run, and ignored")
        return notes


def _images(count: int) -> str:
    return "1 image was" if count == 1 else f"{count} images were"


def _listed(manifest: Document, part: str) -> list[object]:
    value = manifest.fields.get(part)
    return value if isinstance(value, list) else []


def _whole_companions(
    root: Path, manifest: Document, names: OutputNames
) -> list[dict[str, str]] | None:
    """Return the companion files as a manifest lists them, or None if any is missing or changed."""
    try:
        listed = {
            entry.file: entry.sha256 for entry in manifest.take(tuple[Companion, ...], "companions")
        }
    except OutputError:
        return None
    wanted = {
        *names.companions,
        *([names.soft_labels] if names.soft_labels and (root / names.soft_labels).exists() else []),
    }
    is_whole = listed.keys() == wanted and all(
        is_there(root, name, sha256) for name, sha256 in listed.items()
    )
    as_written = [{"file": name, "sha256": sha256} for name, sha256 in listed.items()]
    return as_written if is_whole else None


def _is_same_json(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether two JSON objects are written alike; unlike `==`, this tells 1 from true."""
    try:
        return json.dumps(found) == json.dumps(expected)
    except RecursionError:
        return False


def require_usable(root: Path) -> None:
    """Refuse a path, before any work, that no run can write into.

    Raises:
        OutputError: If there is a file, or a folder that cannot be listed, or one that is not empty
            and has no file that runs leave.
    """
    with suppress(OSError):
        if any((root / name).is_file() for name in (JOURNAL, MANIFEST, CONTACT_SHEET)):
            return  # `open_output` looks closer
    _require_free(root)


def _require_free(root: Path) -> None:
    try:
        taken = root.exists() and (
            not root.is_dir() or any(not _is_beginning(path) for path in root.iterdir())
        )
    except OSError as cause:
        raise OutputError(f"{root}: cannot be listed ({cause.strerror})") from cause
    if taken:
        raise OutputError(
            f"{root}: already holds something; choose a new or empty folder for the recovered "
            "images"
        )


def require_apart(output: Path, other: Path, what: str) -> None:
    """Refuse an output folder that is, lies in, or contains a folder or file that is read.

    Raises:
        OutputError: If it does.
    """
    written, read = resolved(output), resolved(other)
    if written == read or written in read.parents or read in written.parents:
        raise OutputError(
            f"{output}: overlaps {what} {other}; choose a folder of its own for the recovered "
            "images"
        )


def _is_beginning(path: Path) -> bool:
    """Return whether a file is what a run leaves if killed before its journal was renamed."""
    return path.name in (LOCK, temporary_of(Path(JOURNAL)).name)
