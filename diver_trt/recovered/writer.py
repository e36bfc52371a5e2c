"""Writing a recovered dataset so that a kill at any moment loses one batch at most.

The order is the protocol, and each step relies on the one before it:

1. An image is written under a temporary name and renamed, so that its name never stands for half
   an image.
2. Its line is appended to the journal, so that every line has its image.
3. From time to time both are flushed to the disk.
4. At the end the companion files, the contact sheet and then the manifest are written and flushed,
   so that a folder with a manifest is complete.
5. The journal is deleted, after the manifest that replaces it is on disk.

The gallery is written after that: without it the dataset is complete, and the same command adds it.

A kill leaves a prefix of these steps. A power loss may also lose renames and lines that were not
flushed, in any order, so a later run trusts no line without hashing its image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from diver_trt.documents import Document
from diver_trt.errors import DatasetError, OutputError
from diver_trt.files import file_sha256, replacing, reported, sync_file, sync_folder, writing
from diver_trt.manifest import CONTACT_SHEET, JOURNAL, MANIFEST, open_recovered
from diver_trt.pixels import Pixels
from diver_trt.records import Manifest
from diver_trt.recovered.journal import Journal, storable
from diver_trt.structs import dump

SYNC_EVERY = 50
"""Minimum interval between fsyncs, as a multiple of the last one's duration.

It caps the overhead at 2 %, on an SSD and on a slow memory card alike; a fixed interval would fit
only one of them.
"""


class DatasetWriter:
    """An output folder that is being written; made by `open_output`.

    Attributes:
        root: The folder.
        head: What decides the images, as the journal and the manifest begin.
        lost: How many samples an earlier run recorded whose images are missing or have changed, and
            are made again.
        notes: What else was found of an earlier run, in words.
        finished: Whether an earlier run, or this one, finished the dataset.
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
        self._totals: tuple[int, list[dict[str, Any]]] | None = None
        self._unsynced: list[str] = []
        self._sync_again = perf_counter()

    @property
    def done(self) -> Mapping[str, int]:
        """Keys of the samples that are on disk, or that were left out, while it is not finished."""
        return self._journal.entries

    def totals(self) -> tuple[int, list[dict[str, Any]]]:
        """Return how many samples are done, and the entries of those that were left out."""
        if self._totals:
            return self._totals
        if not self.finished:
            return len(self.done), [
                entry for key in self.done if "problem" in (entry := self.entry(key))
            ]
        manifest = open_recovered(self.root).manifest
        # Kept: to read the manifest of a large dataset takes up to two gigabytes.
        self._totals = len(manifest.skipped) + len(manifest.samples), dump(manifest.skipped)
        return self._totals

    def add(self, name: str, image: Pixels) -> Path:
        """Write one image, [H, W, 3] uint8, as a PNG file and return its path.

        Raises:
            OutputError: If it cannot be written.
        """
        path = self.root / name
        with reported(path):
            path.parent.mkdir(exist_ok=True, parents=True)
            # Not fsynced here: one fsync per image takes longer than small images take to recover.
            # After a power loss the hash in the journal shows which ones did not reach the disk.
            with writing(path, durable=False) as file:
                Image.fromarray(image).save(file, format="PNG")
        self._unsynced.append(name)
        return path

    def copy(self, source: Path, name: str) -> None:
        """Copy one image from another recovered dataset.

        Raises:
            DatasetError: If it cannot be read.
            OutputError: If it cannot be written.
        """
        path = self.root / name
        # An image is small, and read whole so that each failure has its own file.
        with reported(source, "read", DatasetError):
            data = source.read_bytes()
        with reported(path):
            path.parent.mkdir(exist_ok=True, parents=True)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        self._unsynced.append(name)

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a sample to the journal once its image is written; fsync from time to time.

        Raises:
            OutputError: If it cannot be written.
        """
        with reported(self.root / JOURNAL):
            self._journal.append(
                # Everything else in an entry is storable already, see `Job.entry`.
                {**entry, "problem": storable(entry["problem"])} if "problem" in entry else entry
            )
        if perf_counter() >= self._sync_again:
            self.sync()

    def sync(self) -> None:
        """Flush the images, their directories and the journal to the disk.

        Raises:
            OutputError: If that fails.
        """
        started = perf_counter()
        with reported(self.root):
            for name in self._unsynced:
                sync_file(self.root / name)
            # fsync of a file does not flush its name, which is in the directory:
            # https://man7.org/linux/man-pages/man2/fsync.2.html
            # A new folder's own name is in its parent.
            parents = (parent for name in self._unsynced for parent in Path(name).parents)
            for folder in {Path(), *parents}:
                sync_folder(self.root / folder)
            # The journal comes last, so that its lines on disk have their images there.
            self._journal.sync()
        self._unsynced.clear()
        self._sync_again = perf_counter() + SYNC_EVERY * (perf_counter() - started)

    def entry(self, key: str) -> dict[str, Any]:
        """Return what the journal records of a sample."""
        return self._journal.entry(key)

    def finish(
        self,
        *,
        companions: Sequence[str],
        skipped: Sequence[Mapping[str, Any]],
        classes: Sequence[Mapping[str, Any]],
        keys: Sequence[str],
        contact_sheet: Image.Image,
    ) -> Manifest:
        """Write the contact sheet and, last, the manifest; return it without its samples.

        Args:
            companions: The companion files, which are written already.
            skipped: The entries of the samples that were left out.
            classes: The classes.
            keys: The samples that are on disk, in the manifest's order.
            contact_sheet: The contact sheet.

        Raises:
            OutputError: If a file cannot be written.
        """
        # Images and journal are on disk before the manifest that replaces the journal.
        self.sync()
        with reported(self.root / CONTACT_SHEET), writing(self.root / CONTACT_SHEET) as file:
            # Level 6, the default, takes six times as long for a tenth less, while no engine runs.
            contact_sheet.save(file, format="PNG", compress_level=1)
        manifest = {
            **self.head,
            "companions": [
                {"file": name, "sha256": file_sha256(self.root / name)} for name in companions
            ],
            "skipped": skipped,
            "classes": classes,
        }
        path = self.root / MANIFEST
        # The object is left open: the samples are its last field.
        head = json.dumps(manifest, indent=1).removesuffix("\n}")
        with reported(path):
            # Entry by entry from the journal: ImageNet at 100 images per class has 100,000 of them.
            with writing(path) as file:
                file.write(f'{head},\n "samples": ['.encode())
                for number, key in enumerate(keys):
                    file.write(f"{',' if number else ''}\n  {json.dumps(self.entry(key))}".encode())
                file.write(b"\n ]\n}\n")
            (self.root / JOURNAL).unlink()
        self.finished = True
        # Without the samples, which take the most memory; the gallery has rows of its own.
        whole = Document({**manifest, "samples": []}, str(path), OutputError)
        self._totals = len(keys) + len(skipped), [dict(entry) for entry in skipped]
        return whole.load(Manifest)
