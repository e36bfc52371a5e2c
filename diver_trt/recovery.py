"""A distilled dataset on disk becomes a recovered one on disk: what `diver-trt recover` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diver_trt import __version__
from diver_trt.bundle import Bundle, file_sha256
from diver_trt.datasets.class_map import wnid_of
from diver_trt.datasets.contact_sheet import ContactSheet
from diver_trt.datasets.dataset import Dataset, Sample
from diver_trt.datasets.image_source import Checked
from diver_trt.datasets.layout import Written, image_path, require_torch, tensor_normalisation, write_companions
from diver_trt.datasets.writer import CONTACT_SHEET, DatasetWriter, require_empty
from diver_trt.errors import DatasetError, OutputError
from diver_trt.pixels import square
from diver_trt.recipe import Recipe
from diver_trt.runtime.recoverer import Recoverer

RESAMPLING = "bicubic, antialiased"


@dataclass(frozen=True, slots=True)
class RecoveredFile:
    """One recovered image on disk, and the distilled sample that it came from."""

    sample: Sample
    path: Path


def check_output(dataset: Dataset, bundle: Bundle, output: Path, layout: str) -> None:
    """Refuse an output folder that holds something or overlaps the input, and a layout that cannot be written, before any work is done.

    Raises:
        OutputError: It does, or cannot.
    """
    require_empty(output)
    distilled, recovered = dataset.root.resolve(), output.resolve()
    if distilled == recovered or distilled in recovered.parents or recovered in distilled.parents:
        raise OutputError(f"{output}: overlaps the input {dataset.root}; choose a folder of its own for the recovered images")
    require_torch(layout)
    image_path(layout, 0, 0, wnid_of(dataset.samples[0].label, bundle.num_classes))


def recover_dataset(
    dataset: Dataset,
    checked: Sequence[Checked],
    output: Path,
    recoverer: Recoverer,
    *,
    seed: int,
    layout: str = "index",
    size: int | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[RecoveredFile]:
    """Recover a dataset into a folder, yielding each image when it is on disk; the manifest is written last.

    Args:
        dataset: The distilled images.
        checked: What a look at each of its images found, from `dataset.images.check`.
        output: Folder to write; it must not exist, or be empty.
        recoverer: The opened model and recipe.
        seed: Seed of the noise.
        layout: One of `LAYOUTS`.
        size: Side of the written images in pixels; None keeps the model's.
        on_step: Called after every denoising step of every batch.

    Raises:
        DatasetError: An image has changed or vanished since it was looked at.
        OutputError: The folder holds something, or a file cannot be written.
        EngineError: The engine fails.
    """
    bundle = recoverer.bundle
    check_output(dataset, bundle, output, layout)
    writer = DatasetWriter(output)
    samples, size = dataset.samples, size or bundle.image_size
    sheet = ContactSheet(
        f"{_title(bundle, recoverer.recipe, seed)}  ·  top: distilled, bottom: recovered",
        bundle.image_size,
        Counter(s.index for s in samples),
    )
    images = (dataset.images.read(sample.position) for sample in samples)
    recovered = recoverer(images, (sample.label for sample in samples), seed=seed, keys=(sample.key for sample in samples), on_step=on_step)
    files = _files(dataset, bundle, layout)
    for sample, file, result in zip(samples, files, recovered, strict=True):
        source_hash = checked[sample.position].sha256
        name = dataset.images.name(sample.position)
        if dataset.images.sha256(sample.position) != source_hash:
            raise DatasetError(f"{dataset.root}: {name} has changed while it was being recovered; run again on a copy that stays as it is")
        path = writer.add(file, square(result.image, size))
        if sheet.wants(sample.index):
            distilled = square(dataset.images.read(sample.position), bundle.image_size)
            sheet.add(sample.index, class_title(bundle, sample), distilled, result.image)
        writer.record(_record(bundle, sample, file, file_sha256(path), name, source_hash))
        yield RecoveredFile(sample, path)
    normalisation = tensor_normalisation(layout, dataset.origin.normalisation, size)
    companions = write_companions(layout, _written(dataset, bundle, output, files, size), normalisation)
    described = {"name": layout, "size": size, "resampling": RESAMPLING if size != bundle.image_size else None}
    described["normalisation"] = normalisation.name if normalisation else None
    writer.finish(_manifest(dataset, checked, recoverer, seed, described, companions, output), sheet.draw())


def distilled_sheet(dataset: Dataset, bundle: Bundle) -> Image.Image:
    """Return a picture of the images as they would be fed to the model."""
    sheet = ContactSheet(f"{dataset.root.name}: {dataset.summary}", bundle.image_size, Counter(sample.index for sample in dataset.samples))
    for sample in dataset.samples:
        if sheet.wants(sample.index):
            sheet.add(sample.index, class_title(bundle, sample), square(dataset.images.read(sample.position), bundle.image_size))
    return sheet.draw()


def contact_sheet_path(output: Path) -> Path:
    """Return where `recover_dataset` puts the contact sheet."""
    return output / CONTACT_SHEET


def class_title(bundle: Bundle, sample: Sample) -> str:
    """Return how a class is called on screen: its index, then its name or its class in the model."""
    name = bundle.class_names[sample.label].split(",")[0] if bundle.class_names else f"class {sample.label}"
    return name if name == str(sample.index) else f"{sample.index}: {name}"


def _title(bundle: Bundle, recipe: Recipe, seed: int) -> str:
    inherit = f"inherit {recipe.inherit_step}" if recipe.inherit_step is not None else "no inheritance"
    high, low = recipe.window
    return (
        f"{bundle.model_id} {bundle.precision}, seed {seed}, {recipe.start_step} steps, {inherit}, gamma {recipe.gamma:g} in {high}:{low}"
    )


def _files(dataset: Dataset, bundle: Bundle, layout: str) -> list[str]:
    """Return where each sample goes; two indices of one class share its wnid folder, and go on counting there."""
    files, shared = [], Counter[int]()
    for sample in dataset.samples:
        number = shared[sample.label] if layout == "wnid" else int(sample.key.rpartition("/")[2])
        shared[sample.label] += 1
        files.append(image_path(layout, sample.index, number, wnid_of(sample.label, bundle.num_classes)))
    return files


def _record(bundle: Bundle, sample: Sample, file: str, sha256: str, source: str, source_hash: str) -> dict[str, Any]:
    return {
        "key": sample.key,
        "file": file,
        "sha256": sha256,
        "source": source,
        "source_sha256": source_hash,
        "index": sample.index,
        "label": sample.label,
        "wnid": wnid_of(sample.label, bundle.num_classes),
    }


def _written(dataset: Dataset, bundle: Bundle, output: Path, files: list[str], size: int) -> Written:
    samples, soft_label = dataset.samples, dataset.soft_label
    return Written(
        root=output,
        files=files,
        indices=[sample.index for sample in samples],
        labels=dataset.labels,
        names={index: _class_name(bundle, label) for index, label in dataset.labels.items()},
        soft_labels=None if soft_label is None else lambda number: soft_label(samples[number].position),
        size=size,
    )


def _class_name(bundle: Bundle, label: int) -> str:
    return bundle.class_names[label].split(",")[0] if bundle.class_names else wnid_of(label, bundle.num_classes) or str(label)


def _manifest(
    dataset: Dataset,
    checked: Sequence[Checked],
    recoverer: Recoverer,
    seed: int,
    layout: dict[str, Any],
    companions: list[str],
    output: Path,
) -> dict[str, Any]:
    bundle, origin = recoverer.bundle, dataset.origin
    return {
        "tool": {"name": "diver-trt", "version": __version__},
        "bundle": {"model": bundle.model_id, "precision": bundle.precision, "sha256": bundle.sha256},
        "engine": recoverer.engine,
        "recipe": recoverer.recipe.to_json(),
        "seed": seed,
        "source": {
            "name": dataset.root.name,
            "format": origin.format.name,
            "files": list(origin.files),
            "normalisation": origin.normalisation,
            "whitened": origin.whitened,
            "collage": origin.collage,
            "soft_labels": origin.soft_labels,
            "clipped": mean_clipped(checked),
        },
        "layout": layout,
        "companions": [{"file": name, "sha256": file_sha256(output / name)} for name in companions],
        "class_map": dataset.classes,
        "classes": [
            {
                "index": index,
                "label": label,
                "wnid": wnid_of(label, bundle.num_classes),
                "imagenet_index": label if wnid_of(label, bundle.num_classes) else None,
                "name": bundle.class_names[label] if bundle.class_names else None,
            }
            for index, label in dataset.labels.items()
        ],
    }


def mean_clipped(checked: Sequence[Checked]) -> float:
    """Return the fraction of distilled values that lay outside the range of pixels."""
    return sum(entry.clipped for entry in checked) / max(1, len(checked))
