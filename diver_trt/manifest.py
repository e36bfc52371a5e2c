"""The manifest of a recovered dataset: reading it, and verifying the files that it lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import wnid_of
from diver_trt.errors import DatasetError, shown
from diver_trt.fields import Document
from diver_trt.files import file_sha256, files_in, is_inside

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 2
CONTACT_SHEET = "contact_sheet.png"
TOOL = "diver-trt"

_KEY = re.compile("([0-9]{5,9})/([0-9]{5,9})")
_READ_BY_TRAINERS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for an image."""
_NAMED = 3
"""How many of several images a note names."""


@dataclass(frozen=True, slots=True)
class RecoveredFolder:
    """A folder with a manifest whose every field is of the right kind.

    Attributes:
        root: The folder.
        manifest: The manifest; each `file` in it is a path inside the folder.
    """

    root: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecoveredImages:
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
    """Return whether a folder has a manifest of ours, even a damaged one."""
    if not (root / MANIFEST).is_file():
        return False
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
    path = root / MANIFEST
    manifest = Document.read(path, DatasetError)
    if (schema := manifest.integer("schema", 1)) != MANIFEST_SCHEMA:
        raise DatasetError(
            f"{path}: schema {schema}, but this diver-trt reads schema {MANIFEST_SCHEMA}"
        )
    _texts(manifest, "class_map")
    _texts(manifest.document("tool"), "name", "version")
    _texts(manifest.document("bundle"), "model", "precision", "sha256")
    manifest.mapping("recipe")
    manifest.integer("seed", -(2**63))
    manifest.document("source").integer("images")
    layout = manifest.document("layout")
    _texts(layout, "name")
    layout.integer("size", 1)
    layout.optional("normalisation", layout.text)
    if shard := manifest.optional("shard", manifest.document):
        shard.integer("number", 1)
        shard.integer("of", 1)
    classes = _classes(manifest)
    for entry in manifest.documents("companions"):
        _texts(entry, "sha256")
        _require_inside(entry)
    for entry in manifest.documents("skipped"):
        _texts(entry, "key", "source", "problem")
    for entry in manifest.documents("samples"):
        _texts(entry, "key", "sha256", "engine")
        _require_inside(entry)
    for part in ("samples", "skipped"):
        _require_consistent(manifest, part, classes)
    return RecoveredFolder(root, manifest.fields)


def _classes(manifest: Document) -> dict[int, tuple[int, str | None]]:
    """Return the model's class and the wnid of each index."""
    classes: dict[int, tuple[int, str | None]] = {}
    for entry in manifest.documents("classes"):
        index = entry.integer("index")
        if index <= max(classes, default=-1):
            raise entry.fail("index", f"found {index}, expected each class once, in order")
        classes[index] = (entry.integer("label"), entry.optional("wnid", entry.text))
        entry.optional("name", entry.text)
    return classes


def _require_consistent(
    manifest: Document, part: str, classes: Mapping[int, tuple[int, str | None]]
) -> None:
    """Require the samples in order, each with the class that its key and the classes give.

    The number within a class decides the noise of an image that is recovered from this one, and so
    does the order.
    """
    last = (-1, -1)
    for entry in manifest.documents(part):
        index = entry.integer("index")
        if index not in classes:
            raise entry.fail("index", f"found {index}, expected one of the manifest's classes")
        match = _KEY.fullmatch(key := entry.text("key"))
        if not match:
            raise entry.fail(
                "key", f"found {shown(key)}, expected a class and a number, such as 00003/00007"
            )
        if (place := (int(match[1]), int(match[2]))) <= last:
            raise entry.fail("key", f"found {key}, expected the samples in order, each once")
        last = place
        if index != place[0]:
            raise entry.fail("index", f"found {index}, expected {place[0]} as in the key {key}")
        label, wnid = classes[index]
        if (found := entry.integer("label")) != label:
            raise entry.fail(
                "label", f"found {found}, expected {label} as in the manifest's class {index}"
            )
        if (name := entry.optional("wnid", entry.text)) != wnid:
            raise entry.fail(
                "wnid",
                f"found {shown(str(name))}, expected {shown(str(wnid))} as in the manifest's class {index}",
            )


def unlisted_images(folder: RecoveredFolder) -> list[str]:
    """Return images that a trainer would read but the manifest does not list."""
    manifest = folder.manifest
    listed = {entry["file"] for part in ("companions", "samples") for entry in manifest[part]}
    return [
        name
        for name in files_in(folder.root)
        if "/" in name and name.lower().endswith(_READ_BY_TRAINERS) and name not in listed
    ]


def unlisted_note(root: Path) -> str | None:
    """Return which images in a recovered dataset's folders are not of it, in words, or None.

    Raises:
        DatasetError: If the manifest is damaged or of another schema.
    """
    names = unlisted_images(open_recovered(root))
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{root}: {', '.join(map(shown, names[:_NAMED]))}{more}: not of this recovery, but a "
        "trainer that reads the folders takes it too; delete it if it does not belong there"
    )


def read_recovered(root: Path, bundle: Bundle) -> RecoveredImages:
    """List a recovered dataset as its manifest has it.

    Raises:
        DatasetError: The manifest is damaged, an image is missing, or the model has other classes
            than the one it was recovered with.
    """
    manifest = open_recovered(root).manifest
    labels = {}
    for entry in manifest["classes"]:
        label = entry["label"]
        if label >= bundle.num_classes or entry.get("wnid") != wnid_of(label, bundle.num_classes):
            raise DatasetError(
                f"{root}: has class {label} of another model; expected one with the classes of "
                f"{bundle.model_id}"
            )
        labels[entry["index"]] = label
    files = tuple(_existing(root, entry["file"]) for entry in manifest["samples"])
    return RecoveredImages(
        manifest["class_map"], files, tuple(entry["index"] for entry in manifest["samples"]), labels
    )


def inspect_recovered(root: Path) -> dict[str, Any]:
    """Return what a manifest lists, after hashing every file, and images that it does not list.

    Raises:
        DatasetError: The manifest is damaged or of another schema, or a file is missing or has
            changed.
    """
    folder = open_recovered(root)
    manifest = folder.manifest
    for entry in [*manifest["companions"], *manifest["samples"]]:
        path = _existing(root, entry["file"])
        if file_sha256(path) != entry["sha256"]:
            raise DatasetError(
                f"{path}: is not the file that was written; recover the dataset again"
            )
    tool, bundle = manifest["tool"], manifest["bundle"]
    return {
        "kind": "recovered dataset",
        "images": len(manifest["samples"]),
        "classes": len(manifest["classes"]),
        "class_map": manifest["class_map"],
        "layout": manifest["layout"],
        "source": manifest["source"],
        "shard": manifest.get("shard"),
        "skipped": {entry["source"]: entry["problem"] for entry in manifest["skipped"]},
        "model": f"{bundle['model']} {bundle['precision']}",
        "bundle_sha256": bundle["sha256"],
        "recovered_on": sorted({entry["engine"] for entry in manifest["samples"]}),
        "seed": manifest["seed"],
        "recipe": manifest["recipe"],
        "tool": f"{tool['name']} {tool['version']}",
        "not_listed": unlisted_images(folder),
    }


def _texts(document: Document, *names: str) -> None:
    for name in names:
        document.text(name)


def _require_inside(entry: Document) -> None:
    name = entry.text("file")
    if not is_inside(name):
        raise entry.fail("file", f"found {shown(repr(name))}, expected a path inside the folder")


def _existing(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise DatasetError(f"{path}: missing, but the manifest lists it; recover the dataset again")
    steps = (path, *path.parents)[: len(Path(name).parts)]
    if any(step.is_symlink() for step in steps) and not path.resolve().is_relative_to(
        root.resolve()
    ):
        raise DatasetError(f"{path}: is a link out of the dataset; copy what it points to")
    return path
