"""Shards of a recovery become one recovered dataset: what `diver-trt merge` does.

The images and the manifest are those of a recovery in one go. The distilled images need not be at hand, so the contact sheet shows the
recovered ones only. Shards come from other machines, so that nothing in them is believed before it was looked at.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import MAX_CLASSES
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.documents import Document
from diver_trt.errors import DatasetError, OutputError, shown
from diver_trt.files import file_sha256, replacing, reported, resolved
from diver_trt.manifest import RecoveredFolder, open_recovered
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.folder import MANIFEST, first_difference, open_output, require_usable
from diver_trt.recovered.journal import JOURNAL
from diver_trt.recovered.layout import (
    LAYOUTS,
    MAX_SIDE,
    TENSOR_LAYOUTS,
    Written,
    class_name,
    require_torch,
    write_companions,
)

Entry = Mapping[str, Any]

SOFT_LABELS = "soft_labels.npy"
_DECIDED_ALONE = ("shard", "samples", "skipped", "companions")
"""What the manifests of the shards of one recovery do not have in common."""

_KEY = re.compile("[0-9]{5,9}/[0-9]{5,9}")
_FOLDERS = {"wnid": "n[0-9]{8}", "huggingface": "train/[0-9]{5,9}"}
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_DEPTH = 6
_NAMED = 5
"""How many of several samples or shards a message names."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of merging.

    Attributes:
        images: How many images the dataset has.
        skipped: What the manifests say of those that were left out.
    """

    images: int
    skipped: tuple[Entry, ...]


def merge_shards(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> Merged:
    """Join shards into a new folder.

    Args:
        folders: Every shard, in any order.
        output: A new or empty folder, or one in which the same was begun.
        overwrite: Whether to delete what an earlier run left in the output, and begin again.

    Raises:
        DatasetError: A folder is no shard or an unfinished one, a shard or a sample is missing or given twice, they are of different
            recoveries, or a file is missing, has changed or is not what the manifest says.
        OutputError: The output cannot be written, or holds something else.
    """
    shards = _in_order([_open_shard(folder) for folder in folders])
    if resolved(output) in [shard.root.resolve() for shard in shards]:
        raise OutputError(
            f"{output}: is one of the shards; the last folder is where they are merged, and must be another"
        )
    manifest = {
        name: value for name, value in shards[0].manifest.items() if name not in _DECIDED_ALONE
    }
    layout = manifest["layout"]
    require_usable(output)
    require_torch(layout["name"])
    _require_each_once(shards)
    soft_labels = _soft_labels(shards)
    for shard in shards:
        for entry in shard.manifest["samples"]:
            _require_image(shard.root, entry, layout["size"])
    samples = [entry for shard in shards for entry in shard.manifest["samples"]]
    merged = Merged(
        len(samples), tuple(entry for shard in shards for entry in shard.manifest["skipped"])
    )
    head = {**{name: value for name, value in manifest.items() if name != "classes"}, "shard": None}
    known = {entry["key"]: entry for entry in (*samples, *merged.skipped)}
    with open_output(output, head, samples=known, overwrite=overwrite) as writer:
        if writer.finished:
            return merged
        for shard in shards:
            for entry in shard.manifest["samples"]:
                if entry["key"] not in writer.done:
                    _copy(shard.root / entry["file"], output / entry["file"])
                    writer.record(entry)
        written = Written(
            root=output,
            files=[entry["file"] for entry in samples],
            indices=[entry["index"] for entry in samples],
            classes=manifest["classes"],
            soft_labels=None if soft_labels is None else soft_labels.__getitem__,
            size=layout["size"],
        )
        normalisation = (
            find_normalisation(layout["normalisation"]) if layout["normalisation"] else None
        )
        companions = write_companions(layout["name"], written, normalisation)
        listed = [{"file": name, "sha256": file_sha256(output / name)} for name in companions]
        complete = {
            **head,
            "companions": listed,
            "skipped": merged.skipped,
            "classes": manifest["classes"],
        }
        writer.finish(
            complete, [entry["key"] for entry in samples], _sheet(output, manifest, samples)
        )
    return merged


def _open_shard(folder: Path) -> RecoveredFolder:
    """Read the manifest of a shard, and check what merging needs of it.

    Raises:
        DatasetError: There is none, it is damaged, or it is not of a shard.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise DatasetError(
                f"{folder}: is a shard that has not come to its end; run the same command again to finish it first"
            )
        raise DatasetError(
            f"{folder}: is no shard (it has no {MANIFEST}); name folders that `diver-trt recover … --shard` wrote"
        )
    shard = open_recovered(folder)
    _require_plain(path, shard.manifest)
    document = Document(shard.manifest, str(path), DatasetError)
    if "shard" not in document:
        raise DatasetError(
            f"{folder}: is a whole recovered dataset, no shard; there is nothing to merge"
        )
    part = document.document("shard")
    part.integer("number", 1, part.integer("of", 1))
    layout = document.document("layout")
    layout.integer("size", 1, MAX_SIDE)
    name = layout.text("name", LAYOUTS)
    _nullable(layout, "normalisation")
    if ("normalisation" in layout) != (name in TENSOR_LAYOUTS):
        raise layout.fail(
            "normalisation",
            f"found {shown(str(layout.fields['normalisation']))}, which is not of layout {name}",
        )
    if "normalisation" in layout:
        find_normalisation(layout.text("normalisation"))
    for entry in document.documents("classes"):
        entry.integer("index", 0, MAX_CLASSES - 1)
        _nullable(entry, "name")
        _nullable(entry, "wnid")
    image = re.compile(f"{_FOLDERS.get(name, '[0-9]{5,9}')}/[0-9]{{5,9}}[.]png")
    for entry in document.documents("samples"):
        if not image.fullmatch(file := entry.text("file")):
            raise entry.fail("file", f"found {shown(file)}, expected an image of layout {name}")
    for part_of in ("samples", "skipped"):
        for entry in document.documents(part_of):
            if not _KEY.fullmatch(key := entry.text("key")):
                raise entry.fail(
                    "key", f"found {shown(key)}, expected a class and a number, such as 00003/00007"
                )
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
                        f"{path}: has a field {shown(odd[0])}, which no recovery writes; recover it again"
                    )
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        values = inner
    if any(isinstance(value, (dict, list)) for value in values):
        raise DatasetError(
            f"{path}: has values nested more than {_MAX_DEPTH} deep, which no recovery writes; recover it again"
        )


def _in_order(shards: Sequence[RecoveredFolder]) -> list[RecoveredFolder]:
    first = shards[0]
    common = {name: value for name, value in first.manifest.items() if name not in _DECIDED_ALONE}
    by_number: dict[int, RecoveredFolder] = {}
    for shard in shards:
        if different := first_difference(shard.manifest, common):
            raise DatasetError(
                f"{first.root} and {shard.root}: are of different recoveries, their {different.name} differs; name those of one"
            )
        number, of = shard.manifest["shard"]["number"], shard.manifest["shard"]["of"]
        if of != (expected := first.manifest["shard"]["of"]):
            raise DatasetError(
                f"{first.root} and {shard.root}: are cut into {expected} and {of} shards; expected one cut"
            )
        if number in by_number:
            raise DatasetError(
                f"{by_number[number].root} and {shard.root}: are both shard {number}/{of}; give each once"
            )
        by_number[number] = shard
    of = first.manifest["shard"]["of"]
    if missing := of - len(by_number):
        absent = (f"{number}/{of}" for number in range(1, of + 1) if number not in by_number)
        raise DatasetError(f"shard {_named(absent, missing)}: missing; expected all {of}")
    return [by_number[number] for number in sorted(by_number)]


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
            f"sample {_named(double, len(double))}: more than once, in {' and '.join(roots)}; recover the shards again"
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
                f"{shard.root}: has {found} samples, expected {expected}{lacks}; recover this shard again with --overwrite"
            )
    files = Counter(entry["file"] for shard in shards for entry in shard.manifest["samples"])
    if double := [name for name, count in files.items() if count > 1]:
        raise DatasetError(
            f"{_named(double, len(double))}: is the image of two samples; recover the shards again"
        )


def _missing(keys: Iterable[str], classes: Sequence[Entry]) -> str:
    """Say which samples are missing, as far as the numbers tell in which those of each class are counted: not if it is the last."""
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
            f"{path}: missing, but the manifest lists it; run the shard's command again, which makes it anew"
        )
    if not path.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{path}: is a link out of the shard; copy what it points to")
    return path


def _require_hash(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise DatasetError(
            f"{path}: is not the file that was written; run the shard's command again, which makes it anew"
        )


def _require_image(root: Path, entry: Entry, side: int) -> None:
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
            f"{path}: is no PNG image of {side} x {side} pixels, as the manifest says; recover the shard again"
        )


def _copy(source: Path, target: Path) -> None:
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def _soft_labels(shards: Sequence[RecoveredFolder]) -> NDArray[np.float32] | None:
    """Return the soft labels of all shards, which each wrote for its own samples, [n, classes].

    Raises:
        DatasetError: A file is not the one that was written, or some shards have none.
    """
    parts: list[NDArray[np.float32]] = []
    for shard in shards:
        hashes = {entry["file"]: entry["sha256"] for entry in shard.manifest["companions"]}
        if SOFT_LABELS in hashes:
            path = _existing(shard.root, SOFT_LABELS)
            with reported(path, "read", DatasetError):
                _require_hash(path, hashes[SOFT_LABELS])
            parts.append(read_soft_labels(path, len(shard.manifest["samples"])))
        elif shard.manifest["samples"]:
            parts.append(np.empty((0, 0), np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        raise DatasetError(
            "some shards have soft labels and some have none, or for other classes; recover them again from the same files"
        )
    return np.concatenate(parts) if any(part.size for part in parts) else None


def read_soft_labels(path: Path, rows: int) -> NDArray[np.float32]:
    """Read a file of soft labels, [rows, classes] float32, without believing its header.

    Raises:
        DatasetError: It holds something else, or other than it says.
    """
    with reported(path, "read", DatasetError), path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(file)
        except Exception as cause:  # numpy's readers raise ValueError, EOFError, SyntaxError, TokenError … on damaged files
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
                f"{path}: holds {found}, expected float32[{rows}, classes] and no more; recover the shard again"
            )
        return np.frombuffer(file.read(whole), np.float32).reshape(shape)


def _sheet(output: Path, manifest: Entry, samples: Sequence[Entry]) -> Image.Image:
    names = {
        entry["index"]: f"{entry['index']}: {shown(class_name(entry))}"
        for entry in manifest["classes"]
    }
    bundle = manifest["bundle"]
    title = f"{shown(bundle['model'])} {shown(bundle['precision'])}, seed {manifest['seed']}, recovered images of merged shards"
    sheet = ContactSheet(
        title, manifest["layout"]["size"], Counter(entry["index"] for entry in samples)
    )
    for entry in samples:
        if sheet.wants(entry["index"]):
            sheet.add(entry["index"], names[entry["index"]], read_image(output / entry["file"]))
    return sheet.draw()
