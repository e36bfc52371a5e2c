"""Writing a recovered dataset in another layout or size: what `diver-trt convert` does with one.

Nothing is recovered again. The files equal those of a recovery with that layout and size, with two
exceptions: the manifest also names the folder that was converted, and `copies` describes what the
contact sheet and the gallery show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diver_trt.errors import DatasetError, UsageError
from diver_trt.manifest import JOURNAL, MANIFEST, RecoveredFolder, is_recovered
from diver_trt.progress import OnProgress
from diver_trt.records import ConvertedFrom, LaidOut, LeftOut, Manifest, Recovered, position_of
from diver_trt.recovered.copies import Copies, write_copies
from diver_trt.recovered.free_folder import require_output
from diver_trt.recovered.job import RESAMPLING
from diver_trt.recovered.layouts import LAYOUTS, find_layout
from diver_trt.recovered.layouts.base import Layout, require_side
from diver_trt.recovered.output_names import ImagePaths
from diver_trt.recovered.shards import open_finished, recipe_of
from diver_trt.recovered.written_files import SoftLabels, soft_labels_in
from diver_trt.structs import dump


@dataclass(frozen=True, slots=True)
class Conversion:
    """The result of converting a recovered dataset.

    Attributes:
        layout: The new layout.
        size: Side of the written images in pixels.
        images: How many images the dataset has.
        skipped: The manifest's entries of the images that were left out.
        drops_soft_labels: Whether the source has soft labels that the layout does not hold.
    """

    layout: str
    size: int
    images: int
    skipped: tuple[Mapping[str, Any], ...]
    drops_soft_labels: bool


def is_recovery(path: Path) -> bool:
    """Return whether a folder holds a recovery, even an unfinished or damaged one."""
    return is_recovered(path) or (path / JOURNAL).is_file()


def convert_recovered(
    source: Path,
    output: Path,
    *,
    layout: str | None = None,
    size: int | None = None,
    gallery: bool = True,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Conversion:
    """Write a recovered dataset into a new folder, in another layout or size.

    Args:
        source: A finished, whole recovered dataset.
        output: A new or empty folder, or one in which the same conversion was begun.
        layout: A name of `LAYOUTS`; None keeps that of the source.
        size: Side of the written images in pixels; None keeps that of the source.
        gallery: Whether to write the gallery.
        overwrite: Whether to delete what an earlier run left in the output, and begin again.
        on_progress: Receives a phase, `"checking"` or `"converting"`, how many images of it are
            done, and of how many.

    Raises:
        UsageError: If the layout or the size does not exist, or neither differs from the source's.
        DatasetError: If the source is unfinished, a shard or damaged; if one of its files is
            missing or has changed; or if it lacks what the new layout or size is made of.
        OutputError: If the output holds something else, overlaps the source or cannot be written.
    """
    wanted = find_layout(layout) if layout is not None else None
    require_side(size)
    folder = _open_whole(source)
    manifest, target = _new_manifest(folder, wanted, size)
    require_output(output, target, [("the recovered dataset", source)], gallery=gallery)
    old = folder.manifest.layout
    copies = Copies(
        folders=[folder],
        manifest=manifest,
        recipe=recipe_of(folder),
        soft_labels=_soft_labels(folder, target),
        what=f"recovered images, converted from layout {old.name}, {old.size} px",
    )
    write_copies(copies, output, gallery=gallery, overwrite=overwrite, on_progress=on_progress)
    return Conversion(
        layout=target.name,
        size=manifest.layout.size,
        images=len(manifest.samples),
        skipped=tuple(dump(manifest.skipped)),
        drops_soft_labels=target.soft_labels is None and _has_soft_labels(folder),
    )


def _open_whole(source: Path) -> RecoveredFolder:
    """Read the manifest of a finished, whole recovered dataset.

    Raises:
        DatasetError: If it is missing, damaged, or that of a shard.
    """
    if not source.exists():
        raise DatasetError(f"{source}: no such folder")
    folder = open_finished(source, "recovery", "recover")
    manifest = folder.manifest
    if part := manifest.shard:
        raise DatasetError(
            f"{source}: is shard {part.number}/{part.of} of a recovery; join the shards with "
            "`diver-trt merge` first"
        )
    # A manifest that lists too few is consistent in itself; only this number shows it.
    found, expected = len(manifest.samples) + len(manifest.skipped), manifest.source.images
    if found != expected:
        raise DatasetError(
            f"{source / MANIFEST}: lists {found} images, expected {expected}; recover the folder "
            "again"
        )
    return folder


def _new_manifest(
    folder: RecoveredFolder, layout: Layout | None, size: int | None
) -> tuple[Manifest, Layout]:
    """Return the new manifest, with the hashes of the old images, and its layout."""
    old = folder.manifest.layout
    layout, size = layout or LAYOUTS[old.name], size or old.size
    if (layout.name, size) == (old.name, old.size):
        raise UsageError(
            f"{folder.root}: is of layout {old.name} and {old.size} px already; expected another "
            "--layout or --size"
        )
    if size != old.size and old.resampling is not None:
        raise DatasetError(
            f"{folder.root}: its images are resized to {old.size} px, and resizing them again "
            f"would not give those of --size {size}; recover them with --size keep, and convert "
            "that"
        )
    normalisation = layout.normalisation_for(folder.manifest.source.normalisation, size)
    laid_out = LaidOut(
        name=layout.name,
        size=size,
        resampling=old.resampling if size == old.size else RESAMPLING,
        normalisation=normalisation.name if normalisation else None,
    )
    origin = ConvertedFrom(layout=old.name, size=old.size, manifest_sha256=folder.sha256)
    files = _files(layout, folder.manifest)
    samples = tuple(replace(sample, file=files[sample.key]) for sample in folder.manifest.samples)
    manifest = replace(folder.manifest, layout=laid_out, converted_from=origin, samples=samples)
    return manifest, layout


def _files(layout: Layout, manifest: Manifest) -> ImagePaths:
    """Return where each image goes, by key."""
    # Those that were left out too: where classes share a folder, every number is counted.
    entries: Sequence[Recovered | LeftOut] = (*manifest.samples, *manifest.skipped)
    in_order = sorted(entries, key=lambda entry: position_of(entry.key))
    return ImagePaths(layout, ((entry.key, entry.label, entry.wnid) for entry in in_order))


def _soft_labels(folder: RecoveredFolder, layout: Layout) -> SoftLabels | None:
    """Return the soft labels that the new layout writes, or None without any.

    Raises:
        DatasetError: If the source's layout has dropped them.
    """
    if layout.soft_labels is None:
        return None
    old = LAYOUTS[folder.manifest.layout.name]
    rows = soft_labels_in(folder, old.soft_labels) if old.soft_labels else None
    if rows is None and _has_soft_labels(folder):
        raise DatasetError(
            f"{folder.root}: layout {old.name} does not keep soft labels, which layout "
            f"{layout.name} has; recover the dataset again with --layout {layout.name}"
        )
    return rows


def _has_soft_labels(folder: RecoveredFolder) -> bool:
    return any(entry.soft_label_sha256 for entry in folder.manifest.samples)
