"""Files that earlier runs left in an output folder: recognising them, and deleting them.

A file is ours only if a run of ours gives it that name. Everything else in the folder belongs to
the user, and is neither deleted nor overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from diver_trt.documents import Document
from diver_trt.errors import OutputError, shown
from diver_trt.files import files_in, reported
from diver_trt.lock import LOCK
from diver_trt.manifest import CONTACT_SHEET, JOURNAL, MANIFEST, TOOL
from diver_trt.recovered.gallery.files import is_gallery_file
from diver_trt.recovered.journal import Entries, Journal
from diver_trt.recovered.output_names import OutputNames, whole_name


def images_without_journal(root: Path, samples: Entries | None, names: OutputNames) -> int:
    """Return how many images a run left whose journal was lost in a power loss.

    Args:
        root: The output folder.
        samples: The samples of the run, or None to take every image by its name.
        names: The names that the run gives.

    Raises:
        OutputError: If the folder holds files that this run would not write, or would not have
            written yet.
    """
    images, others = _images_and_others(root, samples, names)
    for name in others:
        # A file that a run writes only after its images makes the folder ours only beside them.
        if not (images and _is_beside(root, name, names)):
            raise OutputError(
                f"{root / JOURNAL}: empty, as after a power loss, and beside it is "
                f"{shown(repr(name))}, which no run writes; move it elsewhere to resume, or "
                "choose another folder"
            )
    return len(images)


def is_without_record(root: Path, samples: Entries | None, names: OutputNames) -> bool:
    """Return whether a folder holds only a finished run, whose manifest was deleted by hand."""
    # The contact sheet is written after the last image: with it the run had finished. Without it
    # the folder may be anybody's folder of numbered images.
    images, others = _images_and_others(root, samples, names)
    beside = all(_is_beside(root, name, names) for name in others)
    return bool(images) and beside and CONTACT_SHEET in others


def _images_and_others(
    root: Path, samples: Entries | None, names: OutputNames
) -> tuple[set[str], list[str]]:
    """Return the names of a run's images, and of all other files except its journal and lock."""
    files = (
        None
        if samples is None
        else {entry["file"] for entry in samples.values() if "file" in entry}
    )
    there = [name for name in map(whole_name, files_in(root)) if name not in (JOURNAL, LOCK)]
    images = {name for name in there if (names.has_image(name) if files is None else name in files)}
    return images, [name for name in there if name not in images]


def delete_run(root: Path, samples: Entries, names: OutputNames) -> bool:
    """Delete the files of an earlier run, except its journal; return whether there was one.

    For a finished run these are the files that its manifest lists, the contact sheet and the
    gallery. For any other run it is every file with a name that the run gives. If its journal is
    lost, the names are those of the run that is about to begin.

    Raises:
        OutputError: If the folder is not ours, or its manifest lists files that no run writes.
        OSError: If a file cannot be deleted.
    """
    if (root / MANIFEST).is_file():
        _delete_finished(root)
        return True
    if not (root / JOURNAL).is_file():
        if not is_without_record(root, samples, names):
            return False
        # From here on an empty journal marks the folder as ours, so that a kill between two
        # deletions leaves a folder that the same command takes up again.
        (root / JOURNAL).touch(exist_ok=False)
    with reported(root / JOURNAL, "read"):
        found = Journal(root).head()
    names = names if found is None else _names_of_ours(found)
    names.refuse_links(root)
    if found is None:
        images_without_journal(root, None, names)
    # By name and not by line: a kill may have come between writing a file and recording it.
    _delete(root, lambda name: names.has_image(name) or _is_beside(root, name, names))
    return True


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file of an entry, whose other fields may be damaged."""

    file: str


def _delete_finished(root: Path) -> None:
    manifest = Document.read(root / MANIFEST, OutputError)
    names = _names_of_ours(manifest)
    files, companions = (
        [entry.file for entry in manifest.take(tuple[_Listed, ...], part)]
        for part in ("samples", "companions")
    )
    not_ours = [name for name in files if not names.has_image(name)] + [
        name for name in companions if not names.has_companion(name)
    ]
    if not_ours:
        raise OutputError(
            f"{root / MANIFEST}: lists {shown(repr(not_ours[0]))}, which no such run writes; "
            "delete the folder by hand"
        )
    names.refuse_links(root)
    # A journal again in place of the manifest, before the first deletion, for the same reason.
    derived = ("samples", "skipped", "companions", "classes")
    Journal(root).begin(
        {name: value for name, value in manifest.fields.items() if name not in derived}
    )
    (root / MANIFEST).unlink()
    # The manifest is deleted already; its name also stands for its temporary file.
    ours = {*files, *companions, CONTACT_SHEET, *names.layout.scratch, MANIFEST}
    _delete(root, lambda name: name in ours or is_gallery_file(root, name, names.images))


def _delete(root: Path, is_ours: Callable[[str], bool]) -> None:
    """Delete the files that are ours by name, complete or temporary, then empty folders."""
    names = [name for name in files_in(root) if name != LOCK and is_ours(whole_name(name))]
    for name in names:
        (root / name).unlink()
    # Reverse order puts a folder before its parent, and the output folder itself, ".", last.
    for folder in sorted(
        {folder for name in names for folder in PurePath(name).parents}, reverse=True
    )[:-1]:
        with suppress(OSError):  # rmdir fails if somebody else's files are in it
            (root / folder).rmdir()


def _names_of_ours(head: Document) -> OutputNames:
    """Return the names that a run of ours gives to its files.

    Raises:
        OutputError: If the run is not ours.
    """
    if head.take(str, "tool", "name") != TOOL:
        raise OutputError(
            f"{head.where}: is not of diver-trt; delete it by hand, or choose another folder"
        )
    return OutputNames.of(head)


def _is_beside(root: Path, name: str, names: OutputNames) -> bool:
    """Return whether a run writes a file of this name beside its images and its journal."""
    return (
        name in (MANIFEST, CONTACT_SHEET, *names.layout.scratch)
        or names.has_companion(name)
        or is_gallery_file(root, name, names.images)
    )
