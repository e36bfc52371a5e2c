"""Opening an output folder: a new one, or one in which the same run stopped or ended.

A folder with a journal can be resumed; one with a manifest is finished. The module `writer`
describes the order in which a run writes; it makes every state that a kill leaves resumable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.counted import counted_with
from diver_trt.documents import Document
from diver_trt.errors import OutputError
from diver_trt.files import reported
from diver_trt.lock import LOCK, locked
from diver_trt.manifest import CONTACT_SHEET, JOURNAL, MANIFEST
from diver_trt.records import Companion, ConvertedFrom
from diver_trt.recovered.earlier_run import (
    RecordedInputs,
    inputs_of_entries,
    inputs_of_journal,
    listed_inputs,
    require_same_run,
    with_names_of,
)
from diver_trt.recovered.free_folder import require_free
from diver_trt.recovered.journal import Entries, Journal, Verified, is_there, verify
from diver_trt.recovered.leftovers import delete_run, images_without_journal, is_without_record
from diver_trt.recovered.output_names import OutputNames
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.structs import dump


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
        root: The folder; it is created if it does not exist.
        head: What decides the images, in JSON. That of an earlier run in the folder must be the
            same.
        samples: What is known of each sample, by key. From the record of an earlier run only
            engines, problems and hashes are taken.
        classes: The classes, as the manifest lists them.
        overwrite: Whether to delete what an earlier run left there, and begin again.

    Raises:
        OutputError: If the folder holds something else, or an earlier run that differs; if another
            process is writing there; or if it cannot be written.
    """
    # Folders made for a run that fails before its first image are removed again.
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with reported(root, "made"):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root):
            with reported(root):
                names = OutputNames.of(Document(head, str(root), OutputError))
                begun_anew = overwrite and delete_run(root, samples, names)
                writer = _Opening(root, head, samples, classes, names).open(begun_anew=begun_anew)
            # A recovery takes hours, and these are as many as its images.
            del samples
            try:
                yield writer
            finally:
                if not writer.finished:
                    # Whatever ended the block is the error to report, not a disk that fails twice.
                    with suppress(OutputError):
                        writer.sync()
                    if not writer.done:
                        _leave_nothing(root)
    finally:
        with suppress(OSError):  # rmdir fails if anything is in one, and then it stays
            for folder in made:
                folder.rmdir()


def _leave_nothing(root: Path) -> None:
    """Delete the journal if the folder holds nothing else; otherwise it stays for resuming."""
    with suppress(OSError):
        if all(path.name in (JOURNAL, LOCK) for path in root.iterdir()):
            (root / JOURNAL).unlink()


@dataclass(frozen=True, slots=True)
class _Opening:
    """A folder that a run is about to write into, and may have written into before."""

    root: Path
    head: Mapping[str, Any]
    samples: Entries
    classes: Sequence[Mapping[str, Any]]
    names: OutputNames

    def open(self, *, begun_anew: bool) -> DatasetWriter:
        """Resume what is there, or begin."""
        self.names.refuse_links(self.root)
        if not begun_anew:
            # The manifest first: a kill after it was written and before the journal was deleted
            # leaves both.
            if (self.root / MANIFEST).is_file():
                return self._open_finished()
            if (self.root / JOURNAL).is_file():
                return self._open_interrupted()
            if is_without_record(self.root, self.samples, self.names):
                raise OutputError(
                    f"{self.root}: holds images of a run whose {MANIFEST} is missing, so that "
                    f"what they were made from is unknown. Restore {MANIFEST}, add --overwrite "
                    "to make the images again, or choose another folder"
                )
            require_free(self.root)
        return self._begin()

    def _begin(
        self, found: Verified | None = None, *, lost: int = 0, notes: Sequence[str] = ()
    ) -> DatasetWriter:
        journal = Journal(self.root)
        kept = found.kept if found else {}
        # The journal is rewritten, not appended to: its last line may be cut short, and lines whose
        # images are gone would count as lost again in every later run.
        entries = [kept[key] for key in self.samples if key in kept]
        journal.begin(self.head, entries, listed_inputs(self.samples))
        return DatasetWriter(self.root, self.head, journal, lost=lost, notes=notes)

    def _open_finished(self) -> DatasetWriter:
        """Keep a finished run whose manifest this run would write; else make it resumable."""
        manifest = Document.read(self.root / MANIFEST, OutputError)
        values = [*_listed(manifest, "samples"), *_listed(manifest, "skipped")]
        recorded = RecordedInputs(inputs_of_entries(values), complete=True)
        # Before the images are hashed, which takes long.
        same_input = require_same_run(self.root, manifest.fields, self.head, recorded, self.samples)
        found = verify(self.root, values, self.samples, same_input=same_input)
        notes = self._notes(manifest.fields, found, same_input=same_input)
        if (
            len(found.kept) == len(self.samples)
            # The manifest has no hash of the sheet: it only has to be there.
            and (self.root / CONTACT_SHEET).is_file()
            and (companions := self._whole_companions(manifest, found.kept)) is not None
            and _is_same_json(manifest.fields, self._manifest(manifest, found.kept, companions))
        ):
            # A kill came between writing the manifest and deleting the journal. `exists` first: a
            # finished folder may be on a read-only file system, where even this unlink would fail.
            if (self.root / JOURNAL).exists():
                (self.root / JOURNAL).unlink()
            return DatasetWriter(self.root, self.head, Journal(self.root), finished=True)
        lost = len(self.samples) - len(found.kept) - found.retried
        if not (lost or found.retried) and same_input:
            notes.append(
                f"{MANIFEST} or a file beside the images has changed, and is written again"
            )
        # The journal is on disk before the manifest is deleted, so that no kill leaves a folder
        # with neither.
        writer = self._begin(found, lost=lost, notes=notes)
        (self.root / MANIFEST).unlink()
        return writer

    def _manifest(
        self,
        found: Document,
        kept: Mapping[str, dict[str, Any]],
        companions: Sequence[Mapping[str, str]],
    ) -> dict[str, Any]:
        """Return the manifest that this run would write, with the names that an earlier one has."""
        entries = [kept[key] for key in self.samples]
        # `convert` wrote what this run would have written, and where it read the images.
        conversion = {}
        with suppress(OutputError):
            conversion = {"converted_from": dump(found.take(ConvertedFrom, "converted_from"))}
        return {
            **with_names_of(self.head, found.fields),
            **conversion,
            "companions": companions,
            "skipped": [entry for entry in entries if "file" not in entry],
            "classes": self.classes,
            "samples": [entry for entry in entries if "file" in entry],
        }

    def _whole_companions(
        self, manifest: Document, kept: Mapping[str, dict[str, Any]]
    ) -> list[dict[str, str]] | None:
        """Return the companion files as a manifest lists them, or None if any is damaged."""
        try:
            listed = {
                entry.file: entry.sha256
                for entry in manifest.take(tuple[Companion, ...], "companions")
            }
        except OutputError:
            return None
        layout = self.names.layout
        wanted = {*layout.companions_of(sum("file" in entry for entry in kept.values()))}
        # Optional soft labels: the file without its entry is damage, and the entry without its
        # file.
        if layout.soft_labels and (self.root / layout.soft_labels).exists():
            wanted.add(layout.soft_labels)
        is_whole = listed.keys() == wanted and all(
            is_there(self.root, name, sha256) for name, sha256 in listed.items()
        )
        as_written = [{"file": name, "sha256": sha256} for name, sha256 in listed.items()]
        return as_written if is_whole else None

    def _open_interrupted(self) -> DatasetWriter:
        """Resume an interrupted run from what is on disk."""
        journal = Journal(self.root)
        with reported(self.root / JOURNAL, "read"):
            head = journal.head()
            if head is None:  # lost in a power loss: which images are whole is unknown
                lost = images_without_journal(self.root, self.samples, self.names)
                return self._begin(lost=lost)
            recorded = inputs_of_journal(head.fields, journal.values())
            same_input = require_same_run(self.root, head.fields, self.head, recorded, self.samples)
            found = verify(self.root, journal.values(), self.samples, same_input=same_input)
        notes = self._notes(head.fields, found, same_input=same_input)
        return self._begin(found, lost=found.lost, notes=notes)

    def _notes(self, head: Mapping[str, Any], found: Verified, *, same_input: bool) -> list[str]:
        notes = []
        # `require_same_run` has refused versions of other images.
        if (version := head["tool"]["version"]) != self.head["tool"]["version"]:
            notes.append(f"was begun with version {version}, which makes the same images")
        if not same_input:
            other = " or belong to other shards" if self.head.get("shard") else ""
            notes.append(f"the input differs only in images that were left out{other}")
        if found.retried:
            images = counted_with(found.retried, "image", "was")
            notes.append(f"{images} left out before and can be read now")
        if found.ignored:
            records = counted_with(found.ignored, "record", "is")
            notes.append(f"{records} not of an image of this run, and ignored")
        return notes


def _listed(manifest: Document, part: str) -> list[object]:
    value = manifest.fields.get(part)
    return value if isinstance(value, list) else []


def _is_same_json(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether two JSON values are written alike, also in the order of their fields."""
    # `==` takes 1, 1.0 and true for the same.
    try:
        return json.dumps(found) == json.dumps(expected)
    except RecursionError:
        return False
