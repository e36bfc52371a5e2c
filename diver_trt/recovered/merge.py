"""Joining the shards of a recovery into one recovered dataset: what `diver-trt merge` does.

The images and the manifest equal those of an unsharded recovery. The distilled images are not
needed, so the contact sheet shows recovered ones only, and the gallery the thumbnails that the
shards' galleries have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.errors import shown
from diver_trt.files import reported
from diver_trt.manifest import RecoveredFolder
from diver_trt.recovered.caption import caption
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.free_folder import require_apart, require_usable
from diver_trt.recovered.gallery.files import delete_stale, is_current, require_place
from diver_trt.recovered.gallery.writing import merge_galleries
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written, class_name
from diver_trt.recovered.shard_files import require_image, soft_labels_of
from diver_trt.recovered.shards import (
    Entry,
    open_shards,
    recipe_of,
    require_samples,
    shared_fields,
)
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.structs import dump


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of merging.

    Attributes:
        images: How many images the dataset has.
        skipped: The manifests' entries of the images that were left out.
    """

    images: int
    skipped: tuple[Entry, ...]


def merge_shards(
    folders: Sequence[Path], output: Path, *, gallery: bool = True, overwrite: bool = False
) -> Merged:
    """Join shards into a new folder.

    Args:
        folders: Every shard, in any order.
        output: A new or empty folder, or one in which the same merge was begun.
        gallery: Whether to write the gallery.
        overwrite: Whether to delete what an earlier run left in the output, and begin again.

    Raises:
        DatasetError: If a folder is not a shard or an unfinished one, if a shard or a sample is
            missing or given twice, if the shards are of different recoveries, or if a file is
            missing, has changed or is not what the manifest says.
        OutputError: If the output cannot be written, or holds something else.
    """
    # Everything is checked before anything is written: a mistake in the last of twenty shards
    # must not leave nineteen of them copied.
    shards = open_shards(folders)
    for shard in shards:
        require_apart(output, shard.root, "the shard")
    manifest = shared_fields(shards[0])
    recipe = recipe_of(shards[0])
    layout = manifest["layout"]
    require_usable(output)
    if gallery:
        require_place(output)
    LAYOUTS[layout["name"]].require()
    require_samples(shards)
    soft_labels = soft_labels_of(shards)
    for shard in shards:
        for sample in shard.manifest.samples:
            require_image(shard.root, sample, layout["size"])
    samples = [dump(sample) for shard in shards for sample in shard.manifest.samples]
    merged = Merged(
        len(samples), tuple(dump(entry) for shard in shards for entry in shard.manifest.skipped)
    )
    head = {**{name: value for name, value in manifest.items() if name != "classes"}, "shard": None}
    known = {entry["key"]: entry for entry in (*samples, *merged.skipped)}
    classes = manifest["classes"]
    with open_output(output, head, samples=known, classes=classes, overwrite=overwrite) as writer:
        if not writer.finished:
            _copy(shards, writer, soft_labels, merged.skipped, classes)
        if not gallery:
            with reported(output):
                delete_stale(output, len(known))
        elif not is_current(output):
            for _ in merge_galleries(shards, recipe, output):
                pass
    return merged


def _copy(
    shards: Sequence[RecoveredFolder],
    writer: DatasetWriter,
    soft_labels: NDArray[np.float32] | None,
    skipped: Sequence[Entry],
    classes: Sequence[Entry],
) -> None:
    """Copy the images that are not there yet, and complete the dataset.

    Raises:
        OutputError: If a file cannot be written.
    """
    for shard in shards:
        for sample in shard.manifest.samples:
            if sample.key not in writer.done:
                writer.copy(shard.root / sample.file, sample.file)
                writer.record(dump(sample))
    layout = writer.head["layout"]
    samples = [dump(sample) for shard in shards for sample in shard.manifest.samples]
    written = Written(
        root=writer.root,
        files=[entry["file"] for entry in samples],
        indices=[entry["index"] for entry in samples],
        classes=classes,
        soft_labels=None if soft_labels is None else soft_labels.__getitem__,
        size=layout["size"],
    )
    normalisation = find_normalisation(layout["normalisation"]) if layout["normalisation"] else None
    companions = LAYOUTS[layout["name"]].write(written, normalisation)
    writer.finish(
        companions=companions,
        skipped=skipped,
        classes=classes,
        keys=[entry["key"] for entry in samples],
        contact_sheet=_sheet(writer.root, shards, writer.head, samples),
    )


def _sheet(
    output: Path, shards: Sequence[RecoveredFolder], head: Entry, samples: Sequence[Entry]
) -> Image.Image:
    names = {
        entry.index: f"{entry.index}: {shown(class_name(dump(entry)))}"
        for entry in shards[0].manifest.classes
    }
    what = f"recovered images, merged from {len(shards)} shards"
    title = caption(what, head, recipe_of(shards[0]))
    counts = Counter(entry["index"] for entry in samples)
    sheet = ContactSheet(title, head["layout"]["size"], counts)
    for entry in samples:
        if sheet.wants(entry["index"]):
            sheet.add(entry["index"], names[entry["index"]], read_image(output / entry["file"]))
    return sheet.draw()
