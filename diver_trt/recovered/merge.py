"""Joining the shards of a recovery into one recovered dataset: what `diver-trt merge` does.

The images and the manifest equal those of an unsharded recovery. The distilled images are not
needed, so the contact sheet shows recovered ones only, and the gallery the thumbnails that the
shards' galleries have.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from diver_trt.errors import DatasetError, OutputError
from diver_trt.manifest import open_recovered
from diver_trt.recovered.complete import Copied, complete_copies, open_copies
from diver_trt.recovered.free_folder import require_output
from diver_trt.recovered.gallery.writing import copy_galleries
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.shards import Entry, open_shards, recipe_of, require_samples
from diver_trt.recovered.written_files import require_image, soft_labels_of_shards
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
            missing or given twice, if the shards belong to different recoveries, or if a file is
            missing, has changed or does not match the manifest.
        OutputError: If the output cannot be written, or holds something else.
    """
    # Everything is checked before anything is written: a mistake in the last of twenty shards
    # must not leave nineteen of them copied.
    if not overwrite:
        _require_not_shard(output)
    shards = open_shards(folders)
    manifest = shards[0].manifest
    recipe = recipe_of(shards[0])
    read = [("the shard", shard.root) for shard in shards]
    require_output(output, LAYOUTS[manifest.layout.name], read, gallery=gallery)
    require_samples(shards)
    soft_labels = soft_labels_of_shards(shards)
    for shard in shards:
        for sample in shard.manifest.samples:
            require_image(shard.root, sample, manifest.layout.size)
    dataset = Copied(
        head=replace(manifest.head, shard=None, converted_from=None),
        recipe=recipe,
        classes=manifest.classes,
        samples=[dump(sample) for shard in shards for sample in shard.manifest.samples],
        skipped=[dump(entry) for shard in shards for entry in shard.manifest.skipped],
        soft_labels=soft_labels,
    )
    with open_copies(dataset, output, overwrite=overwrite) as writer:
        if not writer.finished:
            for shard in shards:
                for sample in shard.manifest.samples:
                    if sample.key not in writer.done:
                        writer.copy(shard.root / sample.file, sample.file)
                        writer.record(dump(sample))
            what = f"recovered images, merged from {len(shards)} shards"
            complete_copies(dataset, writer, what)
        # Also for a folder that is finished already: its gallery may be missing or out of date.
        copy_galleries(shards, recipe, output, wanted=gallery)
    return Merged(len(dataset.samples), tuple(dataset.skipped))


def _require_not_shard(output: Path) -> None:
    """Refuse a shard as the output: whoever forgets the new folder names a shard last.

    Raises:
        OutputError: If the folder holds a finished shard.
    """
    with suppress(DatasetError):  # a folder without a manifest, or not of ours
        if open_recovered(output).manifest.shard:
            raise OutputError(
                f"{output}: is a shard, and the last folder is the one to write; name a new folder "
                "after all shards"
            )
