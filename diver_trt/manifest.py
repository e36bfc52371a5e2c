"""The manifest of a recovered dataset: reading it, and verifying the files that it lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.counted import few
from diver_trt.distilled.class_map import ModelClasses, wnid_of
from diver_trt.documents import Document
from diver_trt.errors import DatasetError
from diver_trt.files import file_sha256, files_in, reported
from diver_trt.records import MANIFEST_SCHEMA, Companion, Manifest, Recovered
from diver_trt.structs import dump

MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
CONTACT_SHEET = "contact_sheet.png"
TOOL = "diver-trt"

# https://github.com/pytorch/vision/blob/main/torchvision/datasets/folder.py (IMG_EXTENSIONS)
_READ_BY_TRAINERS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for an image."""
_RESTORE = "run the command that wrote the folder again, which restores it"


@dataclass(frozen=True, slots=True)
class RecoveredFolder:
    """A folder, its manifest, and the hash of the manifest's file."""

    root: Path
    manifest: Manifest
    sha256: str


@dataclass(frozen=True, slots=True)
class RecoveredImages:
    """The images of a recovered dataset.

    Attributes:
        class_map: Name of the class map that was used.
        files: Every image.
        indices: The class of each in the dataset's order.
        labels: The model's class of each index.
        own_names: The name that a class map's file gave to each index, where it gave one.
        soft_labels: Whether the dataset has soft labels; they are not read.
        unlisted: A note naming images in its folders that the manifest does not list, or None.
    """

    class_map: str
    files: tuple[Path, ...]
    indices: tuple[int, ...]
    labels: dict[int, int]
    own_names: dict[int, str]
    soft_labels: bool
    unlisted: str | None


def is_recovered(root: Path) -> bool:
    """Return whether a folder has a manifest of ours, even a damaged one."""
    if not (root / MANIFEST).is_file():
        return False
    # A web app's manifest.json is not one of ours; of a damaged one nobody can tell, and whoever
    # reads it gets the reason.
    try:
        fields = Document.read(root / MANIFEST, DatasetError).fields
    except DatasetError:
        return True
    return not fields.keys().isdisjoint({"schema", "tool", "samples"})


def open_recovered(root: Path) -> RecoveredFolder:
    """Read the manifest of a recovered dataset and check every field.

    Raises:
        DatasetError: If it is missing, damaged or of another schema.
    """
    document = Document.read(root / MANIFEST, DatasetError)
    document.require_schema(MANIFEST_SCHEMA, "recover the dataset again")
    return RecoveredFolder(root, document.load(Manifest), document.sha256)


def _unlisted_images(root: Path, listed: Collection[str]) -> list[str]:
    """Return images in a dataset's folders that a trainer would read but that are not listed."""
    return [
        name
        for name in files_in(root)
        # ImageFolder takes folders for classes and ignores the files beside them.
        if "/" in name and name.lower().endswith(_READ_BY_TRAINERS) and name not in listed
    ]


def unlisted_note(root: Path, listed: Collection[str] | None = None) -> str | None:
    """Return a note naming images in a dataset's folders that it does not list, or None.

    Args:
        root: The dataset.
        listed: The images that it lists; None reads the manifest.

    Raises:
        DatasetError: If the manifest is damaged or of another schema.
    """
    if listed is None:
        listed = _listed_images(open_recovered(root).manifest)
    return note_of_unlisted(root, _unlisted_images(root, listed))


def note_of_unlisted(root: Path, names: Sequence[str]) -> str | None:
    """Return the note on images that a dataset does not list, or None without any."""
    if not names:
        return None
    return (
        f"{root}: {few(names)}: not of this recovery, but a trainer that reads the folders "
        "reads every image; delete what does not belong there"
    )


def _listed_images(manifest: Manifest) -> set[str]:
    return {entry.file for entry in manifest.samples}


def read_recovered(root: Path, bundle: ModelClasses) -> RecoveredImages:
    """List a recovered dataset as its manifest has it, after hashing its images.

    Raises:
        DatasetError: If the manifest is damaged, an image is missing or has changed, or the model
            has other classes than the one it was recovered with.
    """
    folder = open_recovered(root)
    manifest = folder.manifest
    labels = {}
    for entry in manifest.classes:
        # Including the wnid: of two models with a thousand classes, only one may have ImageNet's.
        if entry.label >= bundle.num_classes or entry.wnid != wnid_of(entry.label, bundle):
            raise DatasetError(
                f"{root}: has class {entry.label} of another model; expected one with the classes "
                f"of {bundle.model_id}"
            )
        labels[entry.index] = entry.label
    files = tuple(listed_file(root, entry.file) for entry in manifest.samples)
    for file, sample in zip(files, manifest.samples, strict=True):
        require_written(file, sample.sha256)
    indices = tuple(entry.index for entry in manifest.samples)
    soft_labels = any(entry.soft_label_sha256 for entry in manifest.samples)
    return RecoveredImages(
        manifest.class_map,
        files,
        indices,
        labels,
        {entry.index: entry.own_name for entry in manifest.classes if entry.own_name},
        soft_labels,
        unlisted_note(root, _listed_images(manifest)),
    )


def inspect_recovered(root: Path) -> dict[str, Any]:
    """Return what a manifest lists, after hashing every file, and images that it does not list.

    Raises:
        DatasetError: If the manifest is damaged or of another schema, or a file is missing or has
            changed.
    """
    folder = open_recovered(root)
    manifest = folder.manifest
    listed: tuple[Companion | Recovered, ...] = (*manifest.companions, *manifest.samples)
    for entry in listed:
        require_written(listed_file(root, entry.file), entry.sha256)
    tool, bundle = manifest.tool, manifest.bundle
    return {
        "kind": "recovered dataset",
        "images": len(manifest.samples),
        "classes": len(manifest.classes),
        "class_map": manifest.class_map,
        "layout": dump(manifest.layout),
        "source": dump(manifest.source),
        "shard": dump(manifest.shard),
        "converted_from": dump(manifest.converted_from),
        "skipped": {entry.source: entry.problem for entry in manifest.skipped},
        "model": f"{bundle.model} {bundle.precision}",
        "bundle_sha256": bundle.sha256,
        "recovered_on": sorted({entry.engine for entry in manifest.samples}),
        "seed": manifest.seed,
        "recipe": manifest.recipe,
        "tool": f"{tool.name} {tool.version}",
        "not_listed": _unlisted_images(root, _listed_images(manifest)),
    }


def listed_file(root: Path, name: str) -> Path:
    """Return the path of a file that a manifest lists.

    Raises:
        DatasetError: If it is missing, or a link out of the folder.
    """
    path = root / name
    if not path.is_file():
        raise DatasetError(f"{path}: missing, but the manifest lists it; {_RESTORE}")
    # The file and its folders within the root; the root itself may be a symlink.
    steps = (path, *path.parents)[: len(Path(name).parts)]
    if any(step.is_symlink() for step in steps) and not path.resolve().is_relative_to(
        root.resolve()
    ):
        raise DatasetError(f"{path}: is a link out of the dataset; copy what it points to")
    return path


def require_written(path: Path, sha256: str) -> None:
    """Require a file to be the one that a manifest lists.

    Raises:
        DatasetError: If it has another hash, or cannot be read.
    """
    with reported(path, "read", DatasetError):
        found = file_sha256(path)
    if found != sha256:
        raise DatasetError(f"{path}: is not the file that was written; {_RESTORE}")
