"""The shards of a recovery, read and compared before they are merged.

They come from other machines, so everything in them is checked.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import MAX_CLASSES
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.stored_array import read_npy_header
from diver_trt.errors import DatasetError, RecipeError, shown
from diver_trt.fields import Document
from diver_trt.files import file_sha256, reported
from diver_trt.manifest import MANIFEST, RecoveredFolder, open_recovered
from diver_trt.recipe import Recipe
from diver_trt.recovered.earlier_run import NAMES, OF_INPUT, first_difference, makes_same_images
from diver_trt.recovered.journal import JOURNAL
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import MAX_SIDE, SOFT_LABELS
from diver_trt.recovered.output_names import image_paths

Entry = Mapping[str, Any]

_DECIDED_ALONE = ("shard", "samples", "skipped", "companions")
"""What the manifests of the shards of one recovery do not have in common."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_DEPTH = 6
_NAMED = 5
"""How many of several samples or shards a message names."""


def open_shards(folders: Sequence[Path]) -> list[RecoveredFolder]:
    """Read the manifests of all shards of one recovery, and return them in order.

    Raises:
        DatasetError: If a folder is not a finished shard, or its manifest is damaged; if a shard is
            missing or given twice; or if they are of different recoveries.
    """
    return _in_order([_open_shard(folder) for folder in folders])


def shared_fields(shard: RecoveredFolder) -> dict[str, Any]:
    """Return the fields of a shard's manifest that all shards of a recovery have in common."""
    return {name: value for name, value in shard.manifest.items() if name not in _DECIDED_ALONE}


def recipe_of(shard: RecoveredFolder) -> Recipe:
    """Return the recipe in a shard's manifest.

    Raises:
        DatasetError: If it is not one.
    """
    try:
        return Recipe.from_json(shard.manifest["recipe"])
    except (RecipeError, TypeError) as cause:
        raise DatasetError(f"{shard.root / MANIFEST}: recipe: {shown(str(cause))}") from cause


def _open_shard(folder: Path) -> RecoveredFolder:
    """Read the manifest of a shard, and check what merging needs of it.

    Raises:
        DatasetError: If it is missing, damaged, or not a shard's.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise DatasetError(
                f"{folder}: is a shard that has not come to its end; run the same command again "
                "to finish it first"
            )
        raise DatasetError(
            f"{folder}: is not a shard (it has no {MANIFEST}); name folders that `diver-trt "
            "recover … --shard` wrote"
        )
    shard = open_recovered(folder)
    _require_plain(path, shard.manifest)
    document = Document(shard.manifest, str(path), DatasetError)
    if "shard" not in document:
        raise DatasetError(
            f"{folder}: is a whole recovered dataset, not a shard; there is nothing to merge"
        )
    part = document.document("shard")
    part.integer("number", 1, part.integer("of", 1))
    layout = document.document("layout")
    layout.integer("size", 1, MAX_SIDE)
    name = layout.text("name", tuple(LAYOUTS))
    _nullable(layout, "normalisation")
    if ("normalisation" in layout) != (LAYOUTS[name].normalisation is not None):
        raise layout.fail(
            "normalisation",
            f"found {shown(str(layout.fields['normalisation']))}, which is not of layout {name}",
        )
    if "normalisation" in layout:
        find_normalisation(layout.text("normalisation"))
    layout.optional("resampling", layout.text)
    document.document("source").text("name")
    for entry in document.documents("classes"):
        entry.integer("index", 0, MAX_CLASSES - 1)
        _nullable(entry, "name")
        entry.text("wnid") if LAYOUTS[name].shares_folders else _nullable(entry, "wnid")
    image = re.compile(f"{LAYOUTS[name].folder}/[0-9]{{5,9}}[.]png")
    for entry in document.documents("samples"):
        if not image.fullmatch(file := entry.text("file")):
            raise entry.fail("file", f"found {shown(file)}, expected an image of layout {name}")
    for part_of in ("samples", "skipped"):
        for entry in document.documents(part_of):
            entry.text("source")
            entry.text("source_sha256")
            entry.optional("soft_label_sha256", entry.sha256)
    return shard


def _nullable(document: Document, name: str) -> None:
    """Require a field that is a text or null."""
    if name not in document.fields:
        raise document.fail(name, "missing, expected a text or null")
    document.optional(name, document.text)


def _require_plain(path: Path, manifest: Entry) -> None:
    """Refuse names that cannot be printed, and values in values beyond what any manifest has.

    Raises:
        DatasetError: There are such.
    """
    values: list[Any] = [manifest]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in values:
            if isinstance(value, dict):
                if odd := [name for name in value if not name.isprintable() or shown(name) != name]:
                    raise DatasetError(
                        f"{path}: has a field {shown(odd[0])}, which no recovery writes; recover "
                        "it again"
                    )
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        values = inner
    if any(isinstance(value, (dict, list)) for value in values):
        raise DatasetError(
            f"{path}: has values nested more than {_MAX_DEPTH} deep, which no recovery writes; "
            "recover it again"
        )


def _in_order(shards: Sequence[RecoveredFolder]) -> list[RecoveredFolder]:
    first = shards[0]
    common = shared_fields(first)
    by_number: dict[int, RecoveredFolder] = {}
    for shard in shards:
        _require_same_recovery(first, shard, common)
        number, of = shard.manifest["shard"]["number"], shard.manifest["shard"]["of"]
        if of != (expected := first.manifest["shard"]["of"]):
            raise DatasetError(
                f"{first.root} and {shard.root}: are cut into {expected} and {of} shards; "
                "expected one cut"
            )
        if number in by_number:
            raise DatasetError(
                f"{by_number[number].root} and {shard.root}: are both shard {number}/{of}; give "
                "each once"
            )
        by_number[number] = shard
    of = first.manifest["shard"]["of"]
    if missing := of - len(by_number):
        absent = (f"{number}/{of}" for number in range(1, of + 1) if number not in by_number)
        raise DatasetError(f"shard {_named(absent, missing)}: missing; expected all {of}")
    return [by_number[number] for number in sorted(by_number)]


def _require_same_recovery(first: RecoveredFolder, shard: RecoveredFolder, common: Entry) -> None:
    both = f"{first.root} and {shard.root}"
    if different := first_difference(shard.manifest, common, (*NAMES, *OF_INPUT)):
        raise DatasetError(
            f"{both}: are of different recoveries, their {different.name} differs; name those of "
            "one"
        )
    if different := first_difference(shard.manifest, common):
        raise DatasetError(
            f"{both}: are of different inputs, their {different.name} differs. Run the command of "
            "each shard again on the same input: it "
            "keeps what is done, or names the images that differ"
        )
    versions = [part.manifest["tool"]["version"] for part in (first, shard)]
    if versions[0] != versions[1] and not all(map(makes_same_images, versions)):
        raise DatasetError(
            f"{both}: are of versions {shown(versions[0])} and {shown(versions[1])}, whose images "
            "may differ; recover both with one"
        )


def require_samples(shards: Sequence[RecoveredFolder]) -> None:
    """Require every sample of the dataset once, in the shard and in the file that it belongs in.

    Raises:
        DatasetError: If one is missing, double, or elsewhere; the message names it.
    """
    _require_each_once(shards)
    entries = {
        entry["key"]: entry
        for shard in shards
        for entry in (*shard.manifest["samples"], *shard.manifest["skipped"])
    }
    keys = sorted(entries, key=lambda key: [int(part) for part in key.split("/")])
    numbers: defaultdict[int, int] = defaultdict(int)
    for key in keys:
        index, number = map(int, key.split("/"))
        if number != numbers[index]:
            raise DatasetError(
                f"sample {index:05d}/{numbers[index]:05d}: missing, but {key} is there; recover "
                "the shards again"
            )
        numbers[index] += 1
    manifest, of = shards[0].manifest, len(shards)
    if unused := [entry["index"] for entry in manifest["classes"] if entry["index"] not in numbers]:
        raise DatasetError(
            f"{shards[0].root / MANIFEST}: lists class {unused[0]}, of which there is no sample; "
            "recover the shards again"
        )
    files = image_paths(
        LAYOUTS[manifest["layout"]["name"]],
        ((key, entries[key]["label"], entries[key].get("wnid")) for key in keys),
    )
    for position, shard in enumerate(shards):
        own = set(keys[len(keys) * position // of : len(keys) * (position + 1) // of])
        for entry in (*shard.manifest["samples"], *shard.manifest["skipped"]):
            if entry["key"] not in own:
                raise DatasetError(
                    f"{shard.root}: has sample {entry['key']}, which belongs to another shard; "
                    "recover the shards again"
                )
            if "file" in entry and entry["file"] != files[entry["key"]]:
                raise DatasetError(
                    f"{shard.root}: has sample {entry['key']} in {entry['file']}, expected "
                    f"{files[entry['key']]}; recover this shard again"
                )


def _require_each_once(shards: Sequence[RecoveredFolder]) -> None:
    """Require every sample of the dataset in one shard, and no two in one file.

    Raises:
        DatasetError: One is missing or double; the message names it.
    """
    holders: defaultdict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        for entry in (*shard.manifest["samples"], *shard.manifest["skipped"]):
            holders[entry["key"]].append(shard.root)
    if double := [key for key, roots in holders.items() if len(roots) > 1]:
        roots = dict.fromkeys(str(root) for root in holders[double[0]])
        raise DatasetError(
            f"sample {_named(double, len(double))}: more than once, in {' and '.join(roots)}; "
            "recover the shards again"
        )
    images, of = shards[0].manifest["source"]["images"], len(shards)
    for position, shard in enumerate(shards):
        found = len(shard.manifest["samples"]) + len(shard.manifest["skipped"])
        if found != (expected := images * (position + 1) // of - images * position // of):
            lacks = (
                f", {_missing(holders, shards[0].manifest['classes'])} is missing"
                if found < expected
                else ""
            )
            raise DatasetError(
                f"{shard.root}: has {found} samples, expected {expected}{lacks}; recover this "
                "shard again with --overwrite"
            )
    files = Counter(entry["file"] for shard in shards for entry in shard.manifest["samples"])
    if double := [name for name, count in files.items() if count > 1]:
        raise DatasetError(
            f"{_named(double, len(double))}: is the image of two samples; recover the shards again"
        )


def _missing(keys: Iterable[str], classes: Sequence[Entry]) -> str:
    """Return which samples are missing, as far as gaps in the numbering show; not the last ones."""
    numbers: dict[int, list[int]] = {entry["index"]: [] for entry in classes}
    for key in keys:
        index, number = map(int, key.split("/"))
        numbers.setdefault(index, []).append(number)
    counts = {
        index: max(found) + 1 - len(found) if found else 1 for index, found in numbers.items()
    }
    names = (
        f"{index:05d}/{number:05d}"
        for index, count in sorted(counts.items())
        if count
        for number in _absent(numbers[index])
    )
    return _named(names, sum(counts.values())) or "the last one of a class"


def _absent(numbers: Sequence[int]) -> Iterator[int]:
    """Yield the numbers that are missing below the largest one, or 0 if there is none."""
    present = set(numbers)
    return (number for number in range(max(present, default=1)) if number not in present)


def _named(names: Iterable[str], count: int) -> str:
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    return f"{', '.join(islice(names, _NAMED))}{more}"


def _existing(root: Path, name: str) -> Path:
    """Return the path of a file that a manifest lists.

    Raises:
        DatasetError: It is missing, or a link out of the shard.
    """
    path = root / name
    if not path.is_file():
        raise DatasetError(
            f"{path}: missing, but the manifest lists it; run the shard's command again, which "
            "makes it anew"
        )
    if not path.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{path}: is a link out of the shard; copy what it points to")
    return path


def _require_hash(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise DatasetError(
            f"{path}: is not the file that was written; run the shard's command again, which "
            "makes it anew"
        )


def require_image(root: Path, entry: Entry, side: int) -> None:
    """Require an image to be the one that was written, and of the size that the manifest says.

    Raises:
        DatasetError: It is not, or cannot be read.
    """
    path = _existing(root, entry["file"])
    with reported(path, "read", DatasetError):
        _require_hash(path, entry["sha256"])
        with path.open("rb") as file:
            head = file.read(24)
    if head[:8] != _PNG or head[16:] != struct.pack(">II", side, side):
        raise DatasetError(
            f"{path}: is not a PNG image of {side} x {side} pixels, as the manifest says; recover "
            "the shard again"
        )


def soft_labels_of(shards: Sequence[RecoveredFolder]) -> NDArray[np.float32] | None:
    """Return the soft labels of all shards, which each wrote for its own samples, [n, classes].

    Raises:
        DatasetError: If a file is not the one that was written, if its values are not finite or not
            those of its samples, or if some shards have soft labels and others have none.
    """
    parts: list[NDArray[np.float32]] = []
    for shard in shards:
        hashes = {entry["file"]: entry["sha256"] for entry in shard.manifest["companions"]}
        samples = shard.manifest["samples"]
        if SOFT_LABELS in hashes:
            path = _existing(shard.root, SOFT_LABELS)
            with reported(path, "read", DatasetError):
                _require_hash(path, hashes[SOFT_LABELS])
            parts.append(read_soft_labels(path, len(samples)))
            _require_rows(path, parts[-1], shard.manifest)
        elif samples:
            parts.append(np.empty((0, 0), np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        raise DatasetError(
            "some shards have soft labels and some have none, or for other classes; recover them "
            "again from the same files"
        )
    return np.concatenate(parts) if any(part.size for part in parts) else None


def _require_rows(path: Path, rows: NDArray[np.float32], manifest: Entry) -> None:
    """Require a column per class, and rows whose hashes match the manifest where it has them."""
    largest = max(entry["index"] for entry in manifest["classes"])
    if rows.shape[1] <= largest:
        raise DatasetError(
            f"{path}: has {rows.shape[1]} columns, expected one for each class, 0 to {largest}; "
            "recover the shard again"
        )
    for row, entry in zip(rows, manifest["samples"], strict=True):
        expected = entry.get("soft_label_sha256")
        if expected and hashlib.sha256(row.tobytes()).hexdigest() != expected:
            raise DatasetError(
                f"{path}: is not the soft label of sample {entry['key']}; recover the shard again"
            )


def read_soft_labels(path: Path, rows: int) -> NDArray[np.float32]:
    """Read a file of soft labels, [rows, classes] float32, without believing its header.

    Raises:
        DatasetError: It holds something else, or other than it says.
    """
    with reported(path, "read", DatasetError), path.open("rb") as file:
        try:
            shape, fortran, dtype = read_npy_header(file)
        # numpy's readers raise ValueError, EOFError, SyntaxError, TokenError … on damaged files
        except Exception as cause:
            raise DatasetError(
                f"{path}: holds no array of soft labels; recover the shard again"
            ) from cause
        whole = path.stat().st_size - file.tell()
        if (
            len(shape) != 2
            or shape[0] != rows
            or dtype != np.float32
            or fortran
            or prod(shape) * dtype.itemsize != whole
            or not whole
        ):
            found = shown(f"{dtype}{list(shape)} in {whole:,} bytes")
            raise DatasetError(
                f"{path}: holds {found}, expected float32[{rows}, classes] and no more; recover "
                "the shard again"
            )
        values = np.frombuffer(file.read(whole), np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise DatasetError(
            f"{path}: holds NaN or infinity, expected finite numbers; recover the shard again"
        )
    return values
