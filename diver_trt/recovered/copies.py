"""Writing a dataset whose images are copied from recovered folders, as `merge` and `convert` do.

The distilled images are not needed, so the contact sheet shows recovered ones only, and the gallery
the thumbnails that the folders' galleries have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.files import file_sha256
from diver_trt.manifest import RecoveredFolder
from diver_trt.pixels import square
from diver_trt.progress import OnProgress
from diver_trt.recipe import Recipe
from diver_trt.records import Manifest
from diver_trt.recovered.dataset_sheet import copied_sheet
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.gallery.writing import copy_galleries
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.recovered.written_files import SoftLabels, require_image
from diver_trt.structs import dump


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """A dataset whose images are copied from recovered folders, and resized if its side differs.

    Attributes:
        folders: The folders, in the dataset's order, with images of one side.
        manifest: Its manifest, except the companions; an image that is resized still has the hash
            of the original there.
        recipe: The recipe in the manifest.
        soft_labels: Those of the images, [n, classes], or None without any.
        what: What the contact sheet shows, in words.
    """

    folders: Sequence[RecoveredFolder]
    manifest: Manifest
    recipe: Recipe
    soft_labels: SoftLabels | None
    what: str


def write_copies(
    copies: Copies,
    output: Path,
    *,
    gallery: bool,
    overwrite: bool,
    on_progress: OnProgress = lambda *_: None,
) -> None:
    """Write the dataset into a new folder, or resume that.

    Args:
        copies: The dataset.
        output: The folder.
        gallery: Whether to write the gallery.
        overwrite: Whether to delete what an earlier run left in the folder, and begin again.
        on_progress: Receives a phase, `"checking"` or `"converting"`, how many images of it are
            done, and of how many.

    Raises:
        DatasetError: If an image is missing, has changed, or is not of the size that its manifest
            gives.
        OutputError: If the output cannot be written, or holds something else.
    """
    # Every image before the first is copied: a damaged one must not leave half a folder.
    originals: list[Path] = []
    for folder in copies.folders:
        for sample in folder.manifest.samples:
            require_image(folder.root, sample, folder.manifest.layout.size)
            originals.append(folder.root / sample.file)
            on_progress("checking", len(originals), len(copies.manifest.samples))
    manifest = dump(copies.manifest)
    opening = open_output(
        output,
        dump(copies.manifest.head),
        samples={entry["key"]: entry for entry in (*manifest["samples"], *manifest["skipped"])},
        classes=manifest["classes"],
        overwrite=overwrite,
    )
    resized = copies.manifest.layout.size != copies.folders[0].manifest.layout.size
    with opening as writer:
        if not writer.finished:
            for number, (original, entry) in enumerate(
                zip(originals, manifest["samples"], strict=True)
            ):
                if entry["key"] not in writer.done:
                    _copy(original, entry, writer, manifest["layout"]["size"] if resized else None)
                on_progress("converting", number + 1, len(originals))
            _complete(copies, manifest, writer)
        # Also for a folder that is finished already: its gallery may be missing or out of date.
        copy_galleries(copies.folders, copies.recipe, output, wanted=gallery)


def _copy(
    original: Path, entry: Mapping[str, Any], writer: DatasetWriter, size: int | None
) -> None:
    """Copy an image and record it; a size in pixels, if given, is the side it is resized to."""
    if size is None:
        writer.copy(original, entry["file"])
        writer.record(entry)
    else:
        path = writer.add(entry["file"], square(read_image(original), size))
        # The file is a new one, whose hash is known only now.
        writer.record({**entry, "sha256": file_sha256(path)})


def _complete(copies: Copies, manifest: Mapping[str, Any], writer: DatasetWriter) -> None:
    """Write everything that stands beside the images."""
    layout, samples, soft_labels = copies.manifest.layout, manifest["samples"], copies.soft_labels
    written = Written(
        root=writer.root,
        files=[entry["file"] for entry in samples],
        indices=[entry["index"] for entry in samples],
        classes=manifest["classes"],
        soft_labels=None if soft_labels is None else soft_labels.__getitem__,
        size=layout.size,
    )
    normalisation = find_normalisation(layout.normalisation) if layout.normalisation else None
    writer.finish(
        companions=LAYOUTS[layout.name].write(written, normalisation),
        skipped=manifest["skipped"],
        classes=manifest["classes"],
        keys=[entry["key"] for entry in samples],
        contact_sheet=copied_sheet(copies.what, manifest, copies.recipe, writer.root),
    )
