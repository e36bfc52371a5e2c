"""Shards of a recovery become one recovered dataset: what `diver-trt merge` does.

The images and the manifest are those of a recovery in one go. The distilled images need not be at hand, so the contact sheet shows the
recovered ones only.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import file_sha256
from diver_trt.datasets.contact_sheet import ContactSheet
from diver_trt.datasets.image_file import read_image
from diver_trt.datasets.layout import Written, class_name, require_torch, write_companions
from diver_trt.datasets.normalisation import find_normalisation
from diver_trt.datasets.recovered import RecoveredFolder, open_recovered
from diver_trt.datasets.whole_file import replacing, reported
from diver_trt.datasets.writer import first_difference, open_output, require_usable
from diver_trt.errors import DatasetError, OutputError

_DECIDED_ALONE = ("shard", "samples", "skipped", "companions")
"""What the manifests of the shards of one recovery do not have in common."""


def merge_shards(folders: Sequence[Path], output: Path) -> int:
    """Join shards into a new folder, and return how many images it has.

    Args:
        folders: Every shard, in any order.
        output: A new or empty folder.

    Raises:
        DatasetError: A folder is no shard, a shard is missing or given twice, they are of different recoveries, or a file has changed.
        OutputError: The output cannot be written.
    """
    shards = _in_order([open_recovered(folder) for folder in folders])
    if output.resolve() in [shard.root.resolve() for shard in shards]:
        raise OutputError(f"{output}: is one of the shards; the last folder is where they are merged, and must be another")
    soft_labels = _soft_labels(shards)
    require_usable(output)
    manifest = {name: value for name, value in shards[0].manifest.items() if name not in _DECIDED_ALONE}
    require_torch(manifest["layout"]["name"])
    head = {**{name: value for name, value in manifest.items() if name != "classes"}, "shard": None}
    samples = [entry for shard in shards for entry in shard.manifest["samples"]]
    skipped = [entry for shard in shards for entry in shard.manifest["skipped"]]
    _require_each_once(manifest["source"]["images"], [*samples, *skipped])
    with open_output(output, head) as writer:
        if writer.finished:
            return len(samples)
        for shard in shards:
            for entry in shard.manifest["samples"]:
                if entry["key"] not in writer.done:
                    _copy(shard.root / entry["file"], output / entry["file"], entry["sha256"])
                    writer.record(entry)
        layout = manifest["layout"]
        normalisation = find_normalisation(layout["normalisation"]) if layout["normalisation"] else None
        written = Written(
            root=output,
            files=[entry["file"] for entry in samples],
            indices=[entry["index"] for entry in samples],
            classes=manifest["classes"],
            soft_labels=None if soft_labels is None else soft_labels.__getitem__,
            size=layout["size"],
        )
        companions = write_companions(layout["name"], written, normalisation)
        listed = [{"file": name, "sha256": file_sha256(output / name)} for name in companions]
        complete = {**head, "companions": listed, "skipped": skipped, "classes": manifest["classes"]}
        writer.finish(complete, [entry["key"] for entry in samples], _sheet(output, manifest, samples))
    return len(samples)


def _in_order(shards: Sequence[RecoveredFolder]) -> list[RecoveredFolder]:
    first = shards[0]
    common = {name: value for name, value in first.manifest.items() if name not in _DECIDED_ALONE}
    by_number: dict[int, RecoveredFolder] = {}
    for shard in shards:
        if not shard.manifest["shard"]:
            raise DatasetError(f"{shard.root}: is a whole recovered dataset, no shard; there is nothing to merge")
        if different := first_difference(shard.manifest, common):
            raise DatasetError(
                f"{first.root} and {shard.root}: are of different recoveries, their {different.name} differs; name those of one"
            )
        number, of = shard.manifest["shard"]["number"], shard.manifest["shard"]["of"]
        if of != (expected := first.manifest["shard"]["of"]):
            raise DatasetError(f"{first.root} and {shard.root}: are cut into {expected} and {of} shards; expected one cut")
        if number in by_number:
            raise DatasetError(f"{by_number[number].root} and {shard.root}: are both shard {number}/{of}; give each once")
        by_number[number] = shard
    of = first.manifest["shard"]["of"]
    if missing := [number for number in range(1, of + 1) if number not in by_number]:
        raise DatasetError(f"shard {', '.join(f'{number}/{of}' for number in missing)}: missing; expected all {of}")
    return [by_number[number] for number in sorted(by_number)]


def _require_each_once(images: int, entries: Sequence[Mapping[str, Any]]) -> None:
    counts = Counter(entry["key"] for entry in entries)
    if double := [key for key, count in counts.items() if count > 1]:
        raise DatasetError(f"sample {double[0]} is in two shards; they are not of one cut, so recover them again")
    if len(counts) != images:
        raise DatasetError(f"the shards have {len(counts)} samples of {images}; they are not of one cut, so recover them again")


def _copy(source: Path, target: Path, sha256: str) -> None:
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
            if file_sha256(temporary) != sha256:
                raise DatasetError(f"{source}: is not the file that was written; recover its shard again")


def _soft_labels(shards: Sequence[RecoveredFolder]) -> NDArray[np.float32] | None:
    """Return the soft labels of all shards, which each wrote for its own samples.

    Raises:
        DatasetError: A file is not the one that was written.
    """
    rows: list[NDArray[np.float32]] = []
    for shard in shards:
        for entry in shard.manifest["companions"]:
            path = shard.root / entry["file"]
            if entry["file"] != "soft_labels.npy":
                continue
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                raise DatasetError(f"{path}: is not the file that was written; recover its shard again")
            try:
                rows.append(np.load(path))
            except (ValueError, OSError, EOFError) as cause:
                raise DatasetError(f"{path}: holds no array of soft labels; recover its shard again") from cause
    joined = np.concatenate(rows) if rows else None
    if joined is not None and len(joined) != sum(len(shard.manifest["samples"]) for shard in shards):
        raise DatasetError("some shards have soft labels and some have none; recover them again from the same files")
    return joined


def _sheet(output: Path, manifest: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Image.Image:
    names = {entry["index"]: f"{entry['index']}: {class_name(entry)}" for entry in manifest["classes"]}
    bundle = manifest["bundle"]
    title = f"{bundle['model']} {bundle['precision']}, seed {manifest['seed']}, recovered images of merged shards"
    sheet = ContactSheet(title, manifest["layout"]["size"], Counter(entry["index"] for entry in samples))
    for entry in samples:
        if sheet.wants(entry["index"]):
            sheet.add(entry["index"], names[entry["index"]], read_image(output / entry["file"]))
    return sheet.draw()
