"""A distilled dataset on disk becomes a recovered one on disk: what `diver-trt recover` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt import __version__
from diver_trt.bundle import Bundle, file_sha256
from diver_trt.datasets.class_map import wnid_of
from diver_trt.datasets.contact_sheet import ContactSheet
from diver_trt.datasets.folder_reader import Dataset, Sample
from diver_trt.datasets.image_file import read_image
from diver_trt.datasets.writer import CONTACT_SHEET, DatasetWriter, require_empty
from diver_trt.errors import DatasetError, OutputError
from diver_trt.pixels import square
from diver_trt.recipe import Recipe
from diver_trt.runtime.recoverer import Recoverer


@dataclass(frozen=True, slots=True)
class RecoveredFile:
    """One recovered image on disk, and the distilled sample that it came from."""

    sample: Sample
    path: Path


def check_output(source: Path, output: Path) -> None:
    """Refuse an output folder that holds something, or that overlaps the input.

    Raises:
        OutputError: It does.
    """
    require_empty(output)
    distilled, recovered = source.resolve(), output.resolve()
    if distilled == recovered or distilled in recovered.parents or recovered in distilled.parents:
        raise OutputError(f"{output}: overlaps the input folder {source}; choose a folder of its own for the recovered images")


def validate(dataset: Dataset) -> Iterator[str]:
    """Open every image once, so that a bad one is found before any work is done; yield each file's SHA-256.

    Raises:
        DatasetError: An image cannot be read.
    """
    for sample in dataset.samples:
        read_image(sample.path)
        yield file_sha256(sample.path)


def recover_dataset(
    dataset: Dataset,
    source_hashes: list[str],
    output: Path,
    recoverer: Recoverer,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[RecoveredFile]:
    """Recover a dataset into a folder, yielding each image when it is on disk; the manifest is written last.

    Args:
        dataset: The distilled images.
        source_hashes: SHA-256 of each, from `validate`.
        output: Folder to write; it must not exist, or be empty.
        recoverer: The opened model and recipe.
        seed: Seed of the noise.
        on_step: Called after every denoising step of every batch.

    Raises:
        DatasetError: An image has changed or vanished since it was validated.
        OutputError: The folder holds something, or a file cannot be written.
        EngineError: The engine fails.
    """
    check_output(dataset.root, output)
    bundle = recoverer.bundle
    writer = DatasetWriter(output)
    samples, records = dataset.samples, []
    counts = Counter(sample.index for sample in samples)
    sheet = ContactSheet(_title(bundle, recoverer.recipe, seed), bundle.image_size, counts)
    images = (read_image(sample.path) for sample in samples)
    recovered = recoverer(images, (sample.label for sample in samples), seed=seed, keys=(sample.key for sample in samples), on_step=on_step)
    for sample, source_hash, result in zip(samples, source_hashes, recovered, strict=True):
        if file_sha256(sample.path) != source_hash:
            raise DatasetError(f"{sample.path}: has changed while it was being recovered; run again on a copy that stays as it is")
        path = writer.add(sample.key, result.image)
        if sheet.wants(sample.index):
            distilled = square(read_image(sample.path), bundle.image_size)
            sheet.add(sample.index, class_title(bundle, sample), distilled, result.image)
        records.append(_record(bundle, dataset, sample, source_hash, path))
        yield RecoveredFile(sample, path)
    writer.finish(_manifest(dataset, recoverer, seed, records), sheet.draw())


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


def _record(bundle: Bundle, dataset: Dataset, sample: Sample, source_hash: str, path: Path) -> dict[str, Any]:
    return {
        "file": f"{sample.key}.png",
        "sha256": file_sha256(path),
        "source": sample.path.relative_to(dataset.root).as_posix(),
        "source_sha256": source_hash,
        "index": sample.index,
        "label": sample.label,
        "wnid": wnid_of(sample.label, bundle.num_classes),
    }


def _manifest(dataset: Dataset, recoverer: Recoverer, seed: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    bundle = recoverer.bundle
    return {
        "tool": {"name": "diver-trt", "version": __version__},
        "bundle": {"model": bundle.model_id, "precision": bundle.precision, "sha256": bundle.sha256},
        "engine": recoverer.engine,
        "recipe": recoverer.recipe.to_json(),
        "seed": seed,
        "source": dataset.root.name,
        "image_size": bundle.image_size,
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
        "samples": records,
    }
