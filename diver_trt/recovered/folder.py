"""Writing a recovered dataset into a folder, so that nothing is lost or half-written whenever it ends.

A file appears under its name only when it is whole: first the image, then its line in the journal, at the very end the manifest, which
takes the journal's place. A folder with a journal can be gone on with; one with a manifest is finished. Where the one takes the other's
place, it is on the disk before the other goes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from time import perf_counter
from typing import Any

from PIL import Image

from diver_trt.documents import Document
from diver_trt.errors import OutputError, printable, shown
from diver_trt.files import reported, sync_file, sync_folder, temporary_of, writing
from diver_trt.lock import LOCK, locked
from diver_trt.pixels import Pixels
from diver_trt.recovered.journal import JOURNAL, Entries, Journal, believed, is_there
from diver_trt.recovered.output_names import OutputNames

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"
MANIFEST_SCHEMA = 2


TOOL = "diver-trt"
ONLY_NAMES = ("source name", "class_map")
"""What two runs of one thing may call differently: what they mean is in the hash of every sample and class."""

SYNC_EVERY = 50
"""How long a recovery goes on before it brings its images to the disk again, in times that this took: so it costs two percent at most."""


class DatasetWriter:
    """An output folder that is being written; made by `open_output`.

    Attributes:
        root: The folder.
        head: What decides the images, as the journal and the manifest begin.
        done: Keys of the samples that are on disk, or that came to nothing.
        lost: How many samples an earlier run listed that are not on disk as it says, and have to be done again.
        finished: Whether an earlier run finished the same thing.
    """

    def __init__(
        self,
        root: Path,
        head: Mapping[str, Any],
        journal: Journal,
        *,
        lost: int = 0,
        finished: bool = False,
    ) -> None:
        self.root, self.head, self._journal, self.lost, self.finished = (
            root,
            head,
            journal,
            lost,
            finished,
        )
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
        manifest = Document.read(self.root / MANIFEST, OutputError)
        skipped = [dict(entry.fields) for entry in manifest.documents("skipped")]
        return len(skipped) + len(list(manifest.documents("samples"))), skipped

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
        """Append a sample to the journal, when its image is on disk; now and then, see to it that what is there outlasts a power failure.

        Raises:
            OutputError: It cannot be written.
        """
        with reported(self.root / JOURNAL):
            self._journal.append(
                {**entry, "problem": printable(entry["problem"])} if "problem" in entry else entry
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
        """Write the contact sheet and, last of all, the manifest with the samples of these keys in their order.

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
    root: Path, head: Mapping[str, Any], *, samples: Entries, overwrite: bool = False
) -> Iterator[DatasetWriter]:
    """Hold an output folder: a new or empty one, one in which the same run stopped, or one in which it finished.

    Args:
        root: The folder; it is made if need be.
        head: What decides the images. Of an earlier run in the folder it must be the same.
        samples: What is known of each sample, by key; of what an earlier run wrote down, only the engines, problems and hashes count.
        overwrite: Whether to delete what an earlier run left there, and begin again.

    Raises:
        OutputError: The folder holds something else, or an earlier run of something else; another process is writing there; or it cannot
            be written.
    """
    made = not root.exists()
    with reported(root, "made"):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root):
            with reported(root):
                names = OutputNames.of(Document(head, str(root), OutputError))
                begun_anew = overwrite and _delete_run(root, names)
                writer = _open(
                    root, json.loads(json.dumps(head)), samples, names, begun_anew=begun_anew
                )
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
    """Take the journal away again from a folder in which nothing else is; if there is more, it stays, so that a run can go on there."""
    with suppress(OSError):
        if all(path.name in (JOURNAL, LOCK) for path in root.iterdir()):
            (root / JOURNAL).unlink()


def _open(
    root: Path, head: dict[str, Any], samples: Entries, names: OutputNames, *, begun_anew: bool
) -> DatasetWriter:
    journal = Journal(root)
    names.refuse_links(root)
    if not begun_anew:
        if (root / MANIFEST).is_file():
            return _open_finished(root, head, samples, names)
        if (root / JOURNAL).is_file():
            return _open_interrupted(root, head, samples, names)
        require_usable(root)
    journal.begin(head)
    return DatasetWriter(root, head, journal)


def _open_finished(
    root: Path, head: dict[str, Any], samples: Entries, names: OutputNames
) -> DatasetWriter:
    """Leave a finished run as it is, if it has everything that belongs to it, or else make an interrupted one of it."""
    journal, manifest = Journal(root), Document.read(root / MANIFEST, OutputError)
    _require_same(root, manifest.fields, head)
    said = [*_listed(manifest, "samples"), *_listed(manifest, "skipped")]
    kept = {entry["key"]: entry for value in said if (entry := believed(root, value, samples))}
    in_order = [kept[key] for key in samples if key in kept]
    expected = [entry for entry in in_order if "file" in entry] + [
        entry for entry in in_order if "file" not in entry
    ]
    lost = len(samples) - len(kept)
    if (
        said == expected
        and not lost
        and _has_companions(root, manifest, names)
        and (root / CONTACT_SHEET).is_file()
    ):
        if (root / JOURNAL).exists():  # of a run that ended between the manifest and this
            (root / JOURNAL).unlink()
        return DatasetWriter(root, head, journal, finished=True)
    journal.begin(head, in_order)
    (root / MANIFEST).unlink()
    return DatasetWriter(root, head, journal, lost=lost)


def _open_interrupted(
    root: Path, head: dict[str, Any], samples: Entries, names: OutputNames
) -> DatasetWriter:
    """Go on with what of an interrupted run is on disk."""
    journal, kept, lost = Journal(root), {}, 0
    with reported(root / JOURNAL, "read"):
        found = journal.head()
        if found is None:
            lost = _images_without_journal(root, samples, names)
        else:
            _require_same(root, found.fields, head)
            for value in journal.said():
                if entry := believed(root, value, samples):
                    kept[entry["key"]] = entry
                else:
                    lost += 1
    journal.begin(head, kept.values())
    return DatasetWriter(root, head, journal, lost=lost)


def _images_without_journal(root: Path, samples: Entries | None, names: OutputNames) -> int:
    """Return how many images a run has left whose journal a power failure took.

    Raises:
        OutputError: The folder holds files that this run would not write, or would not have written yet.
    """
    files = (
        None
        if samples is None
        else {entry["file"] for entry in samples.values() if "file" in entry}
    )
    there = [name for name in map(_whole_name, _files(root)) if name not in (JOURNAL, LOCK)]
    images = {name for name in there if (names.has_image(name) if files is None else name in files)}
    for name in there:
        if name not in images and not (images and _is_beside(name, names)):
            what = f"{root / JOURNAL}: says nothing, as after a power failure, and beside it lies {shown(repr(name))}"
            raise OutputError(
                f"{what}, which is not of such a run; move it elsewhere to go on, or choose another folder"
            )
    return len(images)


def _listed(manifest: Document, part: str) -> list[object]:
    value = manifest.fields.get(part)
    return value if isinstance(value, list) else []


def _has_companions(root: Path, manifest: Document, names: OutputNames) -> bool:
    """Return whether a manifest lists every file that belongs beside the images, and each is there as it was written."""
    try:
        listed = {
            entry.text("file"): entry.text("sha256") for entry in manifest.documents("companions")
        }
    except OutputError:
        return False
    as_written = [{"file": name, "sha256": sha256} for name, sha256 in listed.items()]
    wanted = {
        *names.companions,
        *([names.soft_labels] if names.soft_labels and (root / names.soft_labels).exists() else []),
    }
    return (
        listed.keys() == wanted
        and _listed(manifest, "companions") == as_written
        and all(is_there(root, name, sha256) for name, sha256 in listed.items())
    )


def _files(root: Path) -> list[str]:
    """Return the path within a folder of every file, and of every link."""
    found = []
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in (*files, *links)]
    return sorted(found)


def _whole_name(name: str) -> str:
    """Return the name that a file gets when it is whole, of one that is still being written."""
    return re.sub(r"(^|/)\.([^/]+)\.partial$", r"\1\2", name)


def _is_beside(name: str, names: OutputNames) -> bool:
    """Return whether a file is of a run, but neither an image nor its journal."""
    return name in (MANIFEST, CONTACT_SHEET, *names.layout.scratch) or names.has_companion(name)


def require_usable(root: Path) -> None:
    """Refuse a path where something is that no run left.

    Raises:
        OutputError: A file is there, or a folder that is not empty, is not ours, or cannot be listed.
    """
    try:
        if root.is_dir() and ((root / JOURNAL).is_file() or (root / MANIFEST).is_file()):
            return
        taken = root.exists() and (
            not root.is_dir() or any(not _is_beginning(path) for path in root.iterdir())
        )
    except OSError as cause:
        raise OutputError(f"{root}: cannot be listed ({cause.strerror})") from cause
    if taken:
        raise OutputError(
            f"{root}: already holds something; choose a new or empty folder for the recovered images"
        )


def _is_beginning(path: Path) -> bool:
    """Return whether a file is all that a run leaves that was killed before its journal had a name."""
    return path.name in (LOCK, temporary_of(Path(JOURNAL)).name)


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where two runs begin otherwise.

    Attributes:
        name: The path of fields down to it, in words: `"recipe gamma"`.
        found: What the one has.
        wanted: What the other has.
    """

    name: str
    found: object
    wanted: object


def first_difference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> FirstDifference | None:
    """Return the first field of `wanted` that `found` has otherwise, or None; what a thing is only called does not count."""
    for name, value in wanted.items():
        path, old = f"{prefix}{name}", found.get(name)
        if path in ONLY_NAMES:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := first_difference(old, value, f"{path} "):
                return inner
        elif old != value:
            return FirstDifference(path.replace("_", " "), old, value)
    return None


def _require_same(root: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun otherwise, naming the first thing that differs."""
    if different := first_difference(found, wanted):
        what = different.name
        raise OutputError(
            f"{root}: holds a run with {what} {_short(different.found)}, and this one has {what} {_short(different.wanted)}; say the same "
            "to go on with it, --overwrite to begin again, or choose another folder"
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _delete_run(root: Path, names: OutputNames) -> bool:
    """Delete what an earlier run of ours wrote, but for its journal, and return whether there was one.

    Of a finished run that is what its manifest lists. Of another one it is what could be its own by name, since a run may have been killed
    between writing a file and its line; where its journal was lost, by the names of the run that is to begin. Whatever moment this ends at,
    a journal says that the folder is ours.

    Raises:
        OutputError: What is there is not of ours, or says that files are its own which are not.
        OSError: Something cannot be deleted.
    """
    if (root / MANIFEST).is_file():
        manifest = Document.read(root / MANIFEST, OutputError)
        names = _names_of_ours(manifest)
        files = [entry.text("file") for entry in manifest.documents("samples")]
        companions = [entry.text("file") for entry in manifest.documents("companions")]
        not_ours = [name for name in files if not names.has_image(name)] + [
            name for name in companions if not names.has_companion(name)
        ]
        if not_ours:
            raise OutputError(
                f"{root / MANIFEST}: lists {shown(repr(not_ours[0]))}, which no such run writes; delete the folder by hand"
            )
        names.refuse_links(root)
        head = {
            name: value
            for name, value in manifest.fields.items()
            if name not in ("samples", "skipped", "companions", "classes")
        }
        Journal(root).begin(head)
        (root / MANIFEST).unlink()
        _delete(
            root, {*files, *companions, CONTACT_SHEET, *names.layout.scratch, MANIFEST}.__contains__
        )
        return True
    if not (root / JOURNAL).is_file():
        return False
    with reported(root / JOURNAL, "read"):
        found = Journal(root).head()
    names = names if found is None else _names_of_ours(found)
    names.refuse_links(root)
    if found is None:
        _images_without_journal(root, None, names)
    _delete(root, lambda name: names.has_image(name) or _is_beside(name, names))
    return True


def _delete(root: Path, is_ours: Callable[[str], bool]) -> None:
    """Delete the files that are ours by name, whole or not, and the folders that are empty then."""
    names = [name for name in _files(root) if name != LOCK and is_ours(_whole_name(name))]
    for name in names:
        (root / name).unlink()
    for folder in sorted(
        {folder for name in names for folder in PurePath(name).parents}, reverse=True
    )[:-1]:
        with suppress(OSError):  # holds something of somebody else
            (root / folder).rmdir()


def _names_of_ours(head: Document) -> OutputNames:
    """Return the names that a run of ours gives to its files.

    Raises:
        OutputError: It is not of ours.
    """
    if head.document("tool").text("name") != TOOL:
        raise OutputError(
            f"{head.where}: is not of diver-trt; delete it by hand, or choose another folder"
        )
    return OutputNames.of(head)
