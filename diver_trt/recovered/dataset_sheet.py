"""The contact sheets of a whole dataset: as distilled, recovered, or distilled above recovered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import Dataset, Sample
from diver_trt.distilled.image_file import read_image
from diver_trt.errors import DatasetError, printable, shown
from diver_trt.pixels import square
from diver_trt.recipe import Recipe
from diver_trt.recovered.caption import caption, recover_command
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts.base import class_name


def distilled_sheet(dataset: Dataset, bundle: Bundle) -> Image.Image:
    """Return a picture of the distilled images, resized as they are fed to the model.

    Raises:
        DatasetError: If an image cannot be read.
    """
    name = shown(dataset.root.resolve().name)  # `.` has none
    sheet = ContactSheet(
        f"{name}: {printable(dataset.summary)}  ·  diver-trt inspect",
        bundle.image_size,
        Counter(sample.index for sample in dataset.samples),
    )
    for sample in dataset.samples:
        if sheet.wants(sample.index):
            sheet.add(
                sample.index,
                _class_title(dataset, bundle, sample),
                square(dataset.images.read(sample.position), bundle.image_size),
            )
    return sheet.draw()


def recovered_sheet(
    job: Job, head: Mapping[str, Any], root: Path, samples: Sequence[Sample]
) -> Image.Image:
    """Return a picture of distilled images and, below each, the recovered one.

    Args:
        job: The job.
        head: The head of its journal.
        root: The folder of the recovered images.
        samples: The samples whose images are there.

    Raises:
        DatasetError: If a recovered image cannot be read.
    """
    size, files = job.bundle.image_size, job.files
    left_out = len(samples) < len(job.samples)
    command = recover_command(head, job.recipe, job.classes(), left_out=left_out)
    title = caption("top: distilled, bottom: recovered", head, command)
    sheet = ContactSheet(title, size, Counter(sample.index for sample in samples))
    for sample in samples:
        if sheet.wants(sample.index):
            try:
                distilled = square(job.dataset.images.read(sample.position), size)
            except DatasetError:
                continue  # It vanished after it was recovered, which is no reason to fail now.
            recovered = read_image(root / files[sample.key])
            name = _class_title(job.dataset, job.bundle, sample)
            sheet.add(sample.index, name, distilled, recovered)
    return sheet.draw()


def copied_sheet(what: str, manifest: Mapping[str, Any], recipe: Recipe, root: Path) -> Image.Image:
    """Return a picture of recovered images alone, where the distilled ones need not be available.

    Args:
        what: What its rows are.
        manifest: The manifest of the images, in JSON.
        recipe: The recipe in it.
        root: The folder of the images.

    Raises:
        DatasetError: If an image cannot be read.
    """
    classes, samples = manifest["classes"], manifest["samples"]
    names = {entry["index"]: _title(entry["index"], class_name(entry)) for entry in classes}
    command = recover_command(manifest, recipe, classes, left_out=bool(manifest["skipped"]))
    title = caption(what, manifest, command)
    sheet = ContactSheet(
        title, manifest["layout"]["size"], Counter(entry["index"] for entry in samples)
    )
    for entry in samples:
        if sheet.wants(entry["index"]):
            sheet.add(entry["index"], names[entry["index"]], read_image(root / entry["file"]))
    return sheet.draw()


def _class_title(dataset: Dataset, bundle: Bundle, sample: Sample) -> str:
    """Return a class's title: its index, then its name or its number in the model."""
    name = dataset.own_names.get(sample.index) or (
        bundle.class_names[sample.label].split(",")[0]
        if bundle.class_names
        else f"class {sample.label}"
    )
    return _title(sample.index, name)


def _title(index: int, name: str) -> str:
    return shown(name) if name == str(index) else f"{index}: {shown(name)}"
