"""Joining the shards of a recovery into one recovered dataset: what `diver-trt merge` does.

The images and the manifest equal those of an unsharded recovery; `copies` describes what stands
beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from diver_trt.errors import DatasetError, OutputError
from diver_trt.manifest import open_recovered
from diver_trt.recovered.copies import Copies, write_copies
from diver_trt.recovered.free_folder import require_output
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.shards import Entry, open_shards, recipe_of, require_samples
from diver_trt.recovered.written_files import soft_labels_of_shards
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
    first = shards[0].manifest
    recipe = recipe_of(shards[0])
    read = [("the shard", shard.root) for shard in shards]
    require_output(output, LAYOUTS[first.layout.name], read, gallery=gallery)
    require_samples(shards)
    merged = replace(
        first,
        shard=None,
        converted_from=None,
        samples=tuple(entry for shard in shards for entry in shard.manifest.samples),
        skipped=tuple(entry for shard in shards for entry in shard.manifest.skipped),
    )
    copies = Copies(
        folders=shards,
        manifest=merged,
        recipe=recipe,
        soft_labels=soft_labels_of_shards(shards),
        what=f"recovered images, merged from {len(shards)} shards",
    )
    write_copies(copies, output, gallery=gallery, overwrite=overwrite)
    return Merged(len(merged.samples), tuple(dump(merged.skipped)))


def _require_not_shard(output: Path) -> None:
    """Refuse a finished shard as the output: whoever forgets the new folder names a shard last."""
    with suppress(DatasetError):  # a folder without a manifest, or not of ours
        if open_recovered(output).manifest.shard:
            raise OutputError(
                f"{output}: is a shard, and the last folder is the one to write; name a new folder "
                "after all shards"
            )
