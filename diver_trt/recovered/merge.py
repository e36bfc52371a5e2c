"""Shards of a recovery become one recovered dataset: what `diver-trt merge` does.

The images and the manifest are those of a recovery in one go. The distilled images need not be at
hand, so the contact sheet shows the recovered ones only.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.errors import shown
from diver_trt.files import file_sha256, replacing, reported
from diver_trt.manifest import RecoveredFolder
from diver_trt.recovered.caption import caption
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.folder import open_output, require_apart, require_usable
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
from diver_trt.structs import dump


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of merging.

    Attributes:
        images: How many images the dataset has.
        skipped: What the manifests say of those that were left out.
    """

    images: int
    skipped: tuple[Entry, ...]


def merge_shards(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> Merged:
    """Join shards into a new folder.

    Args:
        folders: Every shard, in any order.
        output: A new or empty folder, or one in which the same was begun.
        overwrite: Whether to delete what an earlier run left in the output, and begin again.

    Raises:
        DatasetError: If a folder is not a shard or an unfinished one, if a shard or a sample is
            missing or given twice, if the shards are of different recoveries, or if a file is
            missing, has changed or is not what the manifest says.
        OutputError: If the output cannot be written, or holds something else.
    """
    shards = open_shards(folders)
    for shard in shards:
        require_apart(output, shard.root, "the shard")
    manifest = shared_fields(shards[0])
    recipe_of(shards[0])
    layout = manifest["layout"]
    require_usable(output)
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
        if writer.finished:
            return merged
        for shard in shards:
            for sample in shard.manifest.samples:
                if sample.key not in writer.done:
                    _copy(shard.root / sample.file, output / sample.file)
                    writer.record(dump(sample))
        written = Written(
            root=output,
            files=[entry["file"] for entry in samples],
            indices=[entry["index"] for entry in samples],
            classes=classes,
            soft_labels=None if soft_labels is None else soft_labels.__getitem__,
            size=layout["size"],
        )
        normalisation = (
            find_normalisation(layout["normalisation"]) if layout["normalisation"] else None
        )
        companions = LAYOUTS[layout["name"]].write(written, normalisation)
        listed = [{"file": name, "sha256": file_sha256(output / name)} for name in companions]
        complete = {
            **head,
            "companions": listed,
            "skipped": merged.skipped,
            "classes": classes,
        }
        sheet = _sheet(output, shards, head, samples)
        writer.finish(complete, [entry["key"] for entry in samples], sheet)
    return merged


def _copy(source: Path, target: Path) -> None:
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


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
