"""Completing a recovered dataset: companion files, contact sheet and, last, the manifest."""

from __future__ import annotations

from diver_trt.recovered.dataset_sheet import recovered_sheet
from diver_trt.recovered.gallery.contents import Contents, Rows
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts.base import Written
from diver_trt.recovered.writer import DatasetWriter


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
    layout = job.layout.of_shard() if job.shard else job.layout
    manifest = writer.finish(
        companions=layout.write(written, job.normalisation),
        skipped=skipped,
        classes=classes,
        keys=[sample.key for sample in good],
        # The writer's head, since `job.head()` hashes the whole input again.
        contact_sheet=recovered_sheet(job, writer.head, writer.root, good),
    )
    return Contents(manifest, rows)
