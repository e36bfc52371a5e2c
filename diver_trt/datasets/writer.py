"""Writing a recovered dataset into a folder, so that nothing is lost or half-written whenever it ends.

A file appears under its name only when it is whole: first the image, then its line in the journal, at the very end the manifest, which
takes the journal's place. A folder with a journal can be gone on with; one with a manifest is finished. Where the one takes the other's
place, it is on the disk before the other goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diver_trt.datasets.class_map import wnid_of
from diver_trt.datasets.folder_lock import locked
from diver_trt.datasets.journal import JOURNAL, Entries, Journal, believed, is_inside, is_there
from diver_trt.datasets.layout import COMPANIONS, IMAGE_FOLDERS, OutputNames
from diver_trt.datasets.whole_file import reported, temporary_of, writing
from diver_trt.documents import Document
from diver_trt.errors import OutputError, printable
from diver_trt.pixels import Pixels

if TYPE_CHECKING:
    from diver_trt.datasets.dataset import Dataset, Sample
    from diver_trt.datasets.image_source import Checked

MANIFEST = "manifest.json"
CONTACT_SHEET = "contact_sheet.png"
MANIFEST_SCHEMA = 2


TOOL = "diver-trt"
ONLY_NAMES = ("source name", "class_map")
"""What two runs of one thing may call differently: what they mean is in the hash of every sample and class."""


class DatasetWriter:
    """An output folder that is being written; made by `open_output`.

    Attributes:
        root: The folder.
        head: What decides the images, as the journal and the manifest begin.
        done: Keys of the samples that are on disk, or that came to nothing.
        lost: How many samples an earlier run listed that are not on disk as it says, and have to be done again.
        finished: Whether an earlier run finished the same thing.
    """

    def __init__(self, root: Path, head: Mapping[str, Any], journal: Journal, *, lost: int = 0, finished: bool = False) -> None:
        self.root, self.head, self._journal, self.lost, self.finished = root, head, journal, lost, finished

    @property
    def done(self) -> Mapping[str, int]:
        """Keys of the samples that have a line in the journal."""
        return self._journal.entries

    def totals(self) -> tuple[int, list[dict[str, Any]]]:
        """Return how many samples are done, and the entries of those that came to nothing."""
        if not self.finished:
            return len(self.done), [entry for key in self.done if "problem" in (entry := self.entry(key))]
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
        return path

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a sample to the journal, when its image is on disk.

        Raises:
            OutputError: It cannot be written.
        """
        with reported(self.root / JOURNAL):
            self._journal.append({**entry, "problem": printable(entry["problem"])} if "problem" in entry else entry)

    def entry(self, key: str) -> dict[str, Any]:
        """Return what the journal says of a sample."""
        return self._journal.entry(key)

    def finish(self, manifest: Mapping[str, Any], keys: Sequence[str], contact_sheet: Image.Image) -> None:
        """Write the contact sheet and, last of all, the manifest with the samples of these keys in their order.

        Raises:
            OutputError: One of them cannot be written.
        """
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


def sample_entries(
    dataset: Dataset, samples: Iterable[Sample], checked: Sequence[Checked], files: Mapping[str, str], num_classes: int
) -> dict[str, dict[str, Any]]:
    """Return what is known of samples before they are recovered, for `open_output`.

    Args:
        dataset: The distilled images.
        samples: Those of them that are to be recovered.
        checked: What a look at each image of the dataset found.
        files: Where each goes, by key.
        num_classes: Of the model.
    """
    return {
        sample.key: {
            "key": sample.key,
            "source": dataset.images.name(sample.position),
            "source_sha256": checked[sample.position].sha256,
            "index": sample.index,
            "label": sample.label,
            "wnid": wnid_of(sample.label, num_classes),
            "file": files[sample.key],
        }
        for sample in samples
    }


@contextmanager
def open_output(root: Path, head: Mapping[str, Any], *, samples: Entries | None = None, overwrite: bool = False) -> Iterator[DatasetWriter]:
    """Hold an output folder: a new or empty one, one in which the same run stopped, or one in which it finished.

    Args:
        root: The folder; it is made if need be.
        head: What decides the images. Of an earlier run in the folder it must be the same.
        samples: What is known of each sample; of what an earlier run wrote down, only the engines, problems and hashes count then. None
            takes its word for the rest too.
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
                ours = overwrite and _delete_run(root)
                writer = _open(root, json.loads(json.dumps(head)), samples, names, ours=ours)
            try:
                yield writer
            finally:
                if not (writer.done or writer.finished):
                    _leave_nothing(root)
    finally:
        if made:
            with suppress(OSError):  # if anything is in it
                root.rmdir()


def _leave_nothing(root: Path) -> None:
    """Take the journal away again from a folder in which nothing else is; if there is more, it stays, so that a run can go on there."""
    with suppress(OSError):
        if all(path.name == JOURNAL for path in root.iterdir()):
            (root / JOURNAL).unlink()


def _open(root: Path, head: dict[str, Any], samples: Entries | None, names: OutputNames, *, ours: bool) -> DatasetWriter:
    journal = Journal(root)
    if (root / MANIFEST).is_file():
        return _open_finished(root, head, samples, names)
    if (root / JOURNAL).is_file():
        return _open_interrupted(root, head, samples)
    if not ours:
        require_usable(root)
    journal.begin(head)
    return DatasetWriter(root, head, journal)


def _open_finished(root: Path, head: dict[str, Any], samples: Entries | None, names: OutputNames) -> DatasetWriter:
    """Leave a finished run as it is, if it has everything that belongs to it, or else make an interrupted one of it."""
    journal, manifest = Journal(root), Document.read(root / MANIFEST, OutputError)
    _require_same(root, manifest.fields, head)
    said = [*_listed(manifest, "samples"), *_listed(manifest, "skipped")]
    kept = {entry["key"]: entry for value in said if (entry := believed(root, value, samples))}
    in_order = [kept[key] for key in (kept if samples is None else samples) if key in kept]
    expected = [entry for entry in in_order if "file" in entry] + [entry for entry in in_order if "file" not in entry]
    lost = len(said if samples is None else samples) - len(kept)
    if said == expected and not lost and _has_companions(root, manifest, names) and (root / CONTACT_SHEET).is_file():
        if (root / JOURNAL).exists():  # of a run that ended between the manifest and this
            (root / JOURNAL).unlink()
        return DatasetWriter(root, head, journal, finished=True)
    journal.begin(head, in_order)
    (root / MANIFEST).unlink()
    return DatasetWriter(root, head, journal, lost=lost)


def _open_interrupted(root: Path, head: dict[str, Any], samples: Entries | None) -> DatasetWriter:
    """Go on with what of an interrupted run is on disk."""
    journal, kept, lost = Journal(root), {}, 0
    with reported(root / JOURNAL, "read"):
        _require_same(root, journal.head().fields, head)
        for value in journal.said():
            if entry := believed(root, value, samples):
                kept[entry["key"]] = entry
            else:
                lost += 1
    journal.begin(head, kept.values())
    return DatasetWriter(root, head, journal, lost=lost)


def _listed(manifest: Document, part: str) -> list[object]:
    value = manifest.fields.get(part)
    return value if isinstance(value, list) else []


def _has_companions(root: Path, manifest: Document, names: OutputNames) -> bool:
    """Return whether a manifest lists every file that belongs beside the images, and each is there as it was written."""
    try:
        listed = {entry.text("file"): entry.text("sha256") for entry in manifest.documents("companions")}
    except OutputError:
        return False
    as_written = [{"file": name, "sha256": sha256} for name, sha256 in listed.items()]
    wanted = {*names.companions, *([names.soft_labels] if names.soft_labels and (root / names.soft_labels).exists() else [])}
    return (
        listed.keys() == wanted
        and _listed(manifest, "companions") == as_written
        and all(is_there(root, name, sha256) for name, sha256 in listed.items())
    )


def require_usable(root: Path) -> None:
    """Refuse a path where something is that no run left.

    Raises:
        OutputError: A file is there, or a folder that is not empty, is not ours, or cannot be listed.
    """
    try:
        if root.is_dir() and ((root / JOURNAL).is_file() or (root / MANIFEST).is_file()):
            return
        taken = root.exists() and (not root.is_dir() or any(not _is_beginning(path) for path in root.iterdir()))
    except OSError as cause:
        raise OutputError(f"{root}: cannot be listed ({cause.strerror})") from cause
    if taken:
        raise OutputError(f"{root}: already holds something; choose a new or empty folder for the recovered images")


def _is_beginning(path: Path) -> bool:
    """Return whether a file is all that a run leaves that was killed before its journal had a name."""
    return path.name == f".{JOURNAL}.partial"


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


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> FirstDifference | None:
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


def _delete_run(root: Path) -> bool:
    """Delete what an earlier run of ours wrote, and return whether there was one.

    That is what its manifest or journal names, and what has the name of an image or of a file beside them, since a run may have been killed
    between writing a file and naming it. Whatever moment this ends at, a journal says that the folder is ours.
    """
    head = _head_of_run(root)
    if head is None:
        return False
    names = {CONTACT_SHEET, *COMPANIONS}
    if (root / MANIFEST).is_file():
        manifest = Document.read(root / MANIFEST, OutputError)
        names |= {entry.text("file") for part in ("companions", "samples") for entry in manifest.documents(part)}
    else:
        names |= set(Journal(root).files())
    if outside := sorted(name for name in names if not is_inside(name)):
        raise OutputError(f"{root}: names {outside[0]!r} as its own, which is not inside; delete the folder by hand")
    Journal(root).begin(head)
    (root / MANIFEST).unlink(missing_ok=True)
    images = (path for folder in IMAGE_FOLDERS for path in root.glob(f"{folder}/[0-9][0-9][0-9][0-9][0-9].png"))
    paths = {root / name for name in names}.union(images)
    for path in paths | {root / MANIFEST}:
        path.unlink(missing_ok=True)
        temporary_of(path).unlink(missing_ok=True)
    for folder in sorted({path.parent for path in paths} - {root}, reverse=True):
        with suppress(OSError):  # holds something of somebody else
            folder.rmdir()
    (root / JOURNAL).unlink()
    return True


def _head_of_run(root: Path) -> dict[str, Any] | None:
    """Return how a manifest or a journal of ours begins, or None if there is none.

    Raises:
        OutputError: There is one, but not of ours.
    """
    if (root / MANIFEST).is_file():
        path, head = root / MANIFEST, Document.read(root / MANIFEST, OutputError)
    elif (root / JOURNAL).is_file():
        path, head = root / JOURNAL, Journal(root).head()
    else:
        return None
    if head.document("tool").text("name") != TOOL:
        raise OutputError(f"{path}: is not of diver-trt; delete it by hand, or choose another folder")
    return {name: value for name, value in head.fields.items() if name not in ("samples", "skipped", "companions", "classes")}
