"""Completing a recovered dataset: companion files, contact sheet and, last, the manifest."""

from __future__ import annotations

from diver_trt.recovered.dataset_sheet import recovered_sheet
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts.base import Written, write_soft_labels
from diver_trt.recovered.writer import DatasetWriter


def complete(job: Job, writer: DatasetWriter) -> None:
    """Write everything that stands beside the images of a job.

    Raises:
        OutputError: If a file cannot be written.
    """
    good, skipped = [], []
    for sample in job.samples:
        entry = writer.entry(sample.key)
        skipped.append(entry) if "problem" in entry else good.append(sample)
    files, classes, soft_label = job.files(), job.classes(), job.dataset.soft_label
    written = Written(
        root=writer.root,
        files=[files[sample.key] for sample in good],
        indices=[sample.index for sample in good],
        classes=classes,
        soft_labels=None
        if soft_label is None
        else lambda number: soft_label(good[number].position),
        size=job.side,
    )
    # The companions of the layout need all shards; `merge` writes them.
    write = write_soft_labels if job.shard else job.layout.write
    writer.finish(
        companions=write(written, job.normalisation),
        skipped=skipped,
        classes=classes,
        keys=[sample.key for sample in good],
        contact_sheet=recovered_sheet(job, writer.root, good),
    )
