"""Completing a recovered dataset: companion files, contact sheet and, last, the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.recipe import Recipe
from diver_trt.records import ClassEntry, Head
from diver_trt.recovered.dataset_sheet import copied_sheet, recovered_sheet
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.gallery.contents import Contents, Rows
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written, write_soft_labels
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.recovered.written_files import SoftLabels
from diver_trt.structs import dump


def complete(job: Job, writer: DatasetWriter) -> Contents:
    """Write everything that stands beside the images of a job; return what its gallery shows.

    Raises:
        OutputError: If a file cannot be written.
    """
    good, skipped, rows = [], [], Rows()
    for sample in job.samples:
        # From the journal, since a resumed run has not seen the images of the earlier ones.
        entry = writer.entry(sample.key)
        rows.add(entry)
        if "problem" in entry:
            skipped.append(entry)
        else:
            good.append(sample)
    classes, soft_label = job.classes(), job.dataset.soft_label
    written = Written(
        root=writer.root,
        files=[job.files[sample.key] for sample in good],
        indices=[sample.index for sample in good],
        classes=classes,
        soft_labels=None
        if soft_label is None
        else lambda number: soft_label(good[number].position),
        size=job.side,
    )
    # The companions of the layout need all shards; `merge` writes them.
    write = write_soft_labels if job.shard else job.layout.write
    manifest = writer.finish(
        companions=write(written, job.normalisation),
        skipped=skipped,
        classes=classes,
        keys=[sample.key for sample in good],
        # The writer's head, since `job.head()` hashes the whole input again.
        contact_sheet=recovered_sheet(job, writer.head, writer.root, good),
    )
    return Contents(manifest, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A dataset whose images were copied from recovered folders.

    Attributes:
        head: The head of its manifest.
        recipe: The recipe in it.
        classes: Its classes.
        samples: The manifest's entry of each image.
        skipped: The manifest's entry of each image that was left out.
        soft_labels: Those of the images, [n, classes], or None without any.
    """

    head: Head
    recipe: Recipe
    classes: Sequence[ClassEntry]
    samples: Sequence[Mapping[str, Any]]
    skipped: Sequence[Mapping[str, Any]]
    soft_labels: SoftLabels | None


def open_copies(
    dataset: Copied, output: Path, *, overwrite: bool
) -> AbstractContextManager[DatasetWriter]:
    """Lock the output folder of copied images, see `open_output`."""
    return open_output(
        output,
        dump(dataset.head),
        samples={entry["key"]: entry for entry in (*dataset.samples, *dataset.skipped)},
        classes=dump(dataset.classes),
        overwrite=overwrite,
    )


def complete_copies(dataset: Copied, writer: DatasetWriter, what: str) -> None:
    """Write everything that stands beside copied images.

    Args:
        dataset: The dataset.
        writer: The folder with the images.
        what: What the contact sheet shows, in words.

    Raises:
        OutputError: If a file cannot be written.
    """
    head, samples, soft_labels = dataset.head, dataset.samples, dataset.soft_labels
    classes = dump(dataset.classes)
    written = Written(
        root=writer.root,
        files=[entry["file"] for entry in samples],
        indices=[entry["index"] for entry in samples],
        classes=classes,
        soft_labels=None if soft_labels is None else soft_labels.__getitem__,
        size=head.layout.size,
    )
    name = head.layout.normalisation
    writer.finish(
        companions=LAYOUTS[head.layout.name].write(
            written, find_normalisation(name) if name else None
        ),
        skipped=dataset.skipped,
        classes=classes,
        keys=[entry["key"] for entry in samples],
        contact_sheet=copied_sheet(
            what,
            head,
            dataset.recipe,
            dataset.classes,
            writer.root,
            samples,
            left_out=bool(dataset.skipped),
        ),
    )
