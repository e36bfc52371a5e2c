"""The manifests of the shards of a recovery, read and compared before they are merged.

They come from other machines, so nothing in them is taken on trust.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from diver_trt.counted import few
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.errors import DatasetError, RecipeError, shown
from diver_trt.manifest import JOURNAL, MANIFEST, RecoveredFolder, open_recovered
from diver_trt.recipe import Recipe
from diver_trt.records import ClassEntry, LeftOut, Manifest, Recovered, Shard, position_of
from diver_trt.recovered.earlier_run import NAMES, OF_INPUT, first_difference, makes_same_images
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.output_names import ImagePaths
from diver_trt.strict_json import quoted
from diver_trt.structs import dump

Entry = Mapping[str, Any]

_DECIDED_ALONE = ("shard", "samples", "skipped", "companions")
"""Fields in which the manifests of one recovery's shards differ."""

_NAMED = 5
"""How many of several samples or shards a message names."""


def open_shards(folders: Sequence[Path]) -> list[RecoveredFolder]:
    """Read the manifests of all shards of one recovery, and return them in order.

    Raises:
        DatasetError: If a folder is not a finished shard, or its manifest is damaged; if a shard is
            missing or given twice; or if they belong to different recoveries.
    """
    shards = [_open_shard(folder) for folder in folders]
    first = shards[0]
    common = _shared_fields(first)
    expected = _part(first).of
    by_number: dict[int, RecoveredFolder] = {}
    for shard in shards:
        _require_same_recovery(first, shard, common)
        number, of = _part(shard).number, _part(shard).of
        if of != expected:
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
    if missing := expected - len(by_number):
        # The number of shards comes from a file and may be a billion: only the first few are made.
        numbers = (number for number in range(1, expected + 1) if number not in by_number)
        absent = [f"{number}/{expected}" for number in islice(numbers, _NAMED)]
        raise DatasetError(
            f"shard {few(absent, _NAMED, missing)}: missing; expected all {expected}"
        )
    return [by_number[number] for number in sorted(by_number)]


def _shared_fields(shard: RecoveredFolder) -> dict[str, Any]:
    """Return the fields of a shard's manifest that all shards of a recovery have in common."""
    return {
        field.name: dump(getattr(shard.manifest, field.name))
        for field in fields(shard.manifest)
        if field.name not in _DECIDED_ALONE
    }


def recipe_of(folder: RecoveredFolder) -> Recipe:
    """Return the recipe in a manifest.

    Raises:
        DatasetError: If it is not one.
    """
    try:
        return Recipe.from_json(dict(folder.manifest.recipe))
    except RecipeError as cause:
        raise DatasetError(f"{folder.root / MANIFEST}: recipe: {shown(str(cause))}") from cause


def _open_shard(folder: Path) -> RecoveredFolder:
    shard = open_finished(folder, "shard", "recover … --shard")
    if shard.manifest.shard is None:
        raise DatasetError(
            f"{folder}: is a whole recovered dataset, not a shard; there is nothing to merge"
        )
    return shard


def open_finished(root: Path, kind: str, command: str) -> RecoveredFolder:
    """Read the manifest of a finished folder, and require it to fit its layout.

    Args:
        root: The folder.
        kind: What it should be, for messages.
        command: What writes such a folder, for messages.

    Raises:
        DatasetError: If it is missing, damaged or of another schema, if its layout is unknown, or
            if a field does not fit the layout.
    """
    if not (root / MANIFEST).is_file():
        if (root / JOURNAL).is_file():
            raise DatasetError(
                f"{root}: is an unfinished {kind}; run the same command again to complete it first"
            )
        raise DatasetError(
            f"{root}: is not a {kind} (it has no {MANIFEST}); name one that `diver-trt {command}` "
            "wrote"
        )
    folder = open_recovered(root)
    if problem := _misfit(folder.manifest):
        raise DatasetError(f"{root / MANIFEST}: {problem}")
    if (normalisation := folder.manifest.layout.normalisation) is not None:
        find_normalisation(normalisation)
    return folder


def _misfit(manifest: Manifest) -> str | None:
    """Return which field does not fit the manifest's layout, and what was expected, or None."""
    name, normalisation = manifest.layout.name, manifest.layout.normalisation
    if name not in LAYOUTS:
        return f"layout.name: found {quoted(name)}, expected one of {', '.join(LAYOUTS)}"
    layout = LAYOUTS[name]
    if (normalisation is not None) != (layout.normalisation is not None):
        return f"layout.normalisation: found {quoted(normalisation)}, which is not of layout {name}"
    if layout.shares_folders:
        for number, entry in enumerate(manifest.classes):
            if entry.wnid is None:
                return f"classes[{number}].wnid: found null, expected a text, by layout {name}"
    # Also keeps a file of another place from being copied.
    image = re.compile(f"{layout.folder}/[0-9]{{5,9}}[.]png")
    for number, sample in enumerate(manifest.samples):
        if not image.fullmatch(sample.file):
            found = quoted(sample.file)
            return f"samples[{number}].file: found {found}, expected an image of layout {name}"
    return None


def _part(shard: RecoveredFolder) -> Shard:
    assert shard.manifest.shard, "checked when the shard was opened"
    return shard.manifest.shard


def _require_same_recovery(first: RecoveredFolder, shard: RecoveredFolder, common: Entry) -> None:
    both = f"{first.root} and {shard.root}"
    found = _shared_fields(shard)
    # Settings before the input, since what to do about each differs.
    if different := first_difference(found, common, (*NAMES, *OF_INPUT)):
        raise DatasetError(
            f"{both}: belong to different recoveries, which differ in their {different.name}; name "
            "those of one"
        )
    if different := first_difference(found, common):
        raise DatasetError(
            f"{both}: belong to different inputs, their {different.name} differs. Run the command "
            "of each shard again on the same input: it keeps the images that are done, or names "
            "those that differ"
        )
    versions = [part.manifest.tool.version for part in (first, shard)]
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
    entries = {entry.key: entry for shard in shards for entry in _entries(shard)}
    keys = sorted(entries, key=position_of)
    manifest, of = shards[0].manifest, len(shards)
    if missing := next(_missing(keys, manifest.classes), None):
        raise DatasetError(
            f"sample {missing}: missing, although each shard has as many samples as it should; "
            "recover the shards again"
        )
    # An image is where a recovery in one go would have put it, so that merging is only copying.
    files = ImagePaths(
        LAYOUTS[manifest.layout.name],
        ((key, entries[key].label, entries[key].wnid) for key in keys),
    )
    for number, shard in enumerate(shards, start=1):
        own = set(Shard(number, of).part(keys))
        for entry in _entries(shard):
            if entry.key not in own:
                raise DatasetError(
                    f"{shard.root}: has sample {entry.key}, which belongs to another shard; "
                    "recover the shards again"
                )
            if isinstance(entry, Recovered) and entry.file != files[entry.key]:
                raise DatasetError(
                    f"{shard.root}: has sample {entry.key} in {entry.file}, expected "
                    f"{files[entry.key]}; recover this shard again"
                )


def _entries(shard: RecoveredFolder) -> tuple[Recovered | LeftOut, ...]:
    return (*shard.manifest.samples, *shard.manifest.skipped)


def _require_each_once(shards: Sequence[RecoveredFolder]) -> None:
    """Require every sample of the dataset in one shard, and no two in one file.

    Raises:
        DatasetError: If one is missing or double; the message names it.
    """
    holders: defaultdict[str, list[Path]] = defaultdict(list)
    for shard in shards:
        for entry in _entries(shard):
            holders[entry.key].append(shard.root)
    if double := [key for key, roots in holders.items() if len(roots) > 1]:
        roots = dict.fromkeys(str(root) for root in holders[double[0]])
        raise DatasetError(
            f"sample {few(double, _NAMED)}: more than once, in {' and '.join(roots)}; "
            "recover the shards again"
        )
    images, of = shards[0].manifest.source.images, len(shards)
    for number, shard in enumerate(shards, start=1):
        found = len(_entries(shard))
        if found != (expected := len(Shard(number, of).part(range(images)))):
            missing = islice(_missing(holders, shards[0].manifest.classes), _NAMED)
            names = ", ".join(missing) or "the last one of a class"
            lacks = f", {names} is missing" if found < expected else ""
            raise DatasetError(
                f"{shard.root}: has {found} samples, expected {expected}{lacks}; recover this "
                "shard again with --overwrite"
            )
    # Two of them would overwrite each other when they are copied.
    files = Counter(entry.file for shard in shards for entry in shard.manifest.samples)
    if double := [name for name, count in files.items() if count > 1]:
        raise DatasetError(
            f"{few(double, _NAMED)}: is the image of two samples; recover the shards again"
        )


def _missing(keys: Iterable[str], classes: Sequence[ClassEntry]) -> Iterator[str]:
    """Yield which samples are missing, as far as gaps in the numbering show; not the last ones."""
    # Every class in the manifest is one of the recovery, so a class without a sample lacks one.
    numbers: dict[int, set[int]] = {entry.index: set() for entry in classes}
    for key in keys:
        index, number = position_of(key)
        numbers.setdefault(index, set()).add(number)
    for index, present in sorted(numbers.items()):
        for number in range(max(present, default=0) + 1):
            if number not in present:
                yield f"{index:05d}/{number:05d}"
