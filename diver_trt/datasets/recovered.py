"""Reading back a recovered dataset: its manifest, its images as a dataset, and whether they are still those that were written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.bundle import MAX_NAME_BYTES, Bundle, file_sha256
from diver_trt.datasets.class_map import wnid_of
from diver_trt.datasets.writer import MANIFEST, MANIFEST_SCHEMA
from diver_trt.documents import Document
from diver_trt.errors import DatasetError, shown


@dataclass(frozen=True, slots=True)
class Recovered:
    """The images of a recovered dataset.

    Attributes:
        class_map: Name of the class map that was used.
        files: Every image.
        indices: The class of each in the dataset's order.
        labels: The model's class of each index.
    """

    class_map: str
    files: tuple[Path, ...]
    indices: tuple[int, ...]
    labels: dict[int, int]


def is_recovered(root: Path) -> bool:
    """Return whether a path is a folder with a manifest."""
    return (root / MANIFEST).is_file()


def read_recovered(root: Path, bundle: Bundle) -> Recovered:
    """List a recovered dataset as its manifest has it.

    Raises:
        DatasetError: The manifest is damaged, an image is missing, or the model has other classes than the one it was recovered with.
    """
    manifest = _open(root)
    labels = {}
    for entry in manifest.documents("classes"):
        label = entry.integer("label")
        if label >= bundle.num_classes or entry.optional("wnid", entry.text) != wnid_of(label, bundle.num_classes):
            raise entry.fail("label", f"found class {label} of another model; expected one with the classes of {bundle.model_id}")
        labels[entry.integer("index")] = label
    files, indices = [], []
    for sample in manifest.documents("samples"):
        index = sample.integer("index")
        if index not in labels:
            raise sample.fail("index", f"found {index}, expected one of the manifest's classes")
        files.append(_image(root, sample))
        indices.append(index)
    return Recovered(manifest.text("class_map"), tuple(files), tuple(indices), labels)


def inspect_recovered(root: Path) -> dict[str, Any]:
    """Return what the manifest of a recovered dataset says, after hashing every file.

    Raises:
        DatasetError: The manifest is damaged or of another schema, or a file is missing or has changed.
    """
    manifest = _open(root)
    count = 0
    for entry in [*manifest.documents("companions"), *manifest.documents("samples")]:
        path = _image(root, entry)
        if file_sha256(path) != entry.text("sha256"):
            raise DatasetError(f"{path}: is not the file that was written; recover the dataset again")
        count += "index" in entry
    tool, bundle = manifest.document("tool"), manifest.document("bundle")
    return {
        "kind": "recovered dataset",
        "images": count,
        "classes": len(list(manifest.documents("classes"))),
        "class_map": manifest.text("class_map"),
        "layout": manifest.mapping("layout"),
        "source": manifest.mapping("source"),
        "model": f"{bundle.text('model')} {bundle.text('precision')}",
        "bundle_sha256": bundle.text("sha256"),
        "engine": manifest.text("engine"),
        "seed": manifest.integer("seed", -(2**63)),
        "recipe": manifest.mapping("recipe"),
        "tool": f"{tool.text('name')} {tool.text('version')}",
    }


def _open(root: Path) -> Document:
    path = root / MANIFEST
    manifest = Document.read(path, DatasetError)
    if (schema := manifest.integer("schema", 1)) != MANIFEST_SCHEMA:
        raise DatasetError(f"{path}: schema {schema}, but this diver-trt reads schema {MANIFEST_SCHEMA}")
    return manifest


def _image(root: Path, entry: Document) -> Path:
    name = entry.text("file")
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise entry.fail("file", f"found {shown(repr(name))}, expected a path inside the folder")
    if not path.is_file():
        raise DatasetError(f"{path}: missing, but the manifest lists it; recover the dataset again")
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{path}: is a link out of the dataset; copy what it points to")
    return path
