"""Reading back a recovered dataset: its manifest, and whether its images are still those that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diver_trt.bundle import file_sha256
from diver_trt.datasets.writer import MANIFEST, MANIFEST_SCHEMA
from diver_trt.documents import Document
from diver_trt.errors import DatasetError


def open_recovered(root: Path) -> dict[str, Any]:
    """Return what the manifest of a recovered dataset says, after hashing every image.

    Raises:
        DatasetError: The manifest is damaged or of another schema, or an image is missing or has changed.
    """
    path = root / MANIFEST
    manifest = Document.read(path, DatasetError)
    if (schema := manifest.integer("schema", 1)) != MANIFEST_SCHEMA:
        raise DatasetError(f"{path}: schema {schema}, but this diver-trt reads schema {MANIFEST_SCHEMA}")
    samples = list(manifest.documents("samples"))
    for sample in samples:
        name = sample.text("file")
        image = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise sample.fail("file", f"found {name!r}, expected a path inside the folder")
        if not image.is_file():
            raise DatasetError(f"{image}: missing, but the manifest lists it; recover the dataset again")
        if file_sha256(image) != sample.text("sha256"):
            raise DatasetError(f"{image}: is not the image that was written; recover the dataset again")
    tool, bundle = manifest.document("tool"), manifest.document("bundle")
    return {
        "kind": "recovered dataset",
        "images": len(samples),
        "classes": len(list(manifest.documents("classes"))),
        "class_map": manifest.text("class_map"),
        "image_size": manifest.integer("image_size", 1),
        "source": manifest.text("source"),
        "model": f"{bundle.text('model')} {bundle.text('precision')}",
        "bundle_sha256": bundle.text("sha256"),
        "engine": manifest.text("engine"),
        "seed": manifest.integer("seed", -(2**63)),
        "recipe": manifest.mapping("recipe"),
        "tool": f"{tool.text('name')} {tool.text('version')}",
    }
