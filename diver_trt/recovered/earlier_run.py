"""Whether the run that an output folder holds may be resumed, and if not, what differs.

It may if it would recover the same images: bundle, recipe, seed, layout and input are the same, and
the version of this tool makes the same images. Input images that were left out may differ, because
no image was recovered from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt._version import __version__
from diver_trt.counted import few
from diver_trt.errors import OutputError, printable
from diver_trt.recovered.journal import Entries
from diver_trt.strict_json import quoted

SAME_IMAGES_SINCE = "0.2.0"
"""The first version whose images are those of this one.

A change to the method, to what is read from the input or to the noise sets it to the version that
is to be released; see CONTRIBUTING.md.
"""

NAMES = ("source name", "class_map", "tool version")
"""Fields that two runs of the same images may differ in: names of files and folders, and the
version, which is checked apart.
"""
OF_INPUT = ("source sha256", "source images", "source clipped")
"""Fields derived from the input's images; their differences are reported image by image."""


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """The first setting in which two runs differ.

    Attributes:
        name: The path of fields down to it, in words: `"recipe gamma"`.
        found: The value in the one.
        wanted: The value in the other.
    """

    name: str
    found: object
    wanted: object


def first_difference(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    ignored: Collection[str] = NAMES,
    prefix: str = "",
) -> FirstDifference | None:
    """Return the first field of `wanted` that differs in `found`, or None; skip `ignored` paths."""
    # Fields of `found` alone do not count: a journal's head also has inputs, a manifest samples.
    for name, value in wanted.items():
        path, old = f"{prefix}{name}", found.get(name)
        if path in ignored:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := first_difference(old, value, ignored, f"{path} "):
                return inner
        elif old != value:
            return FirstDifference(path.replace("_", " "), old, value)
    return None


def with_names_of(head: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's head with the fields in `NAMES` as an earlier run recorded them.

    Recorded values that are not printable strings are not taken.
    """
    # A deep copy, since the names are set in nested objects.
    named: dict[str, Any] = json.loads(json.dumps(head))
    for path in NAMES:
        *outer, name = path.split(" ")
        ours, theirs = named, found
        for field in outer:
            ours, theirs = ours[field], theirs[field]
        if isinstance(text := theirs.get(name), str) and text.isprintable():
            ours[name] = text
    return named


def makes_same_images(version: object) -> bool:
    """Return whether another version makes the same images as this one.

    It is unknown for newer versions, so they do not.
    """
    if version == __version__:
        return True
    release = _release(version)
    oldest, newest = _release(SAME_IMAGES_SINCE), _release(__version__)
    assert oldest and newest
    return release is not None and oldest <= release <= newest


def _release(version: object) -> tuple[int, int, int] | None:
    match = (
        re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    )
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


@dataclass(frozen=True, slots=True)
class Input:
    """A distilled image, as a run lists it.

    Attributes:
        key: The name of the sample.
        source: Where it is within the dataset.
        label: Its class in the model.
        sha256: Of the image.
        soft_label_sha256: Of its soft label, None without one.
        left_out: Whether it could not be read or recovered.
        made: Whether an image was recovered from it.
    """

    key: str
    source: str
    label: object
    sha256: str
    soft_label_sha256: str | None
    left_out: bool = False
    made: bool = False


@dataclass(frozen=True, slots=True)
class RecordedInputs:
    """The distilled images of an earlier run.

    Attributes:
        images: Those that are recorded.
        complete: Whether they are all that it had.
    """

    images: Sequence[Input]
    complete: bool


def listed_inputs(samples: Entries) -> Iterator[list[Any]]:
    """Yield the distilled images that a journal begins with."""
    for key, entry in samples.items():
        yield [
            key,
            entry["source"],
            entry["label"],
            entry["source_sha256"],
            entry.get("soft_label_sha256"),
            "problem" in entry,
        ]


def inputs_of_journal(head: Mapping[str, Any], entries: Iterable[object]) -> RecordedInputs:
    """Return the distilled images that a journal's first line lists, else those with an entry."""
    done = {image.key: image for image in inputs_of_entries(entries)}
    # The list is missing where it would have made the line too long (`journal._write_head`).
    values, found = head.get("inputs"), []
    for value in values if isinstance(values, list) else ():
        if isinstance(value, list) and len(value) == 6:
            key, source, label, sha256, soft_label_sha256, is_bad = value
            if all(isinstance(text, str) for text in (key, source, sha256)):
                left_out = is_bad is True or (key in done and done[key].left_out)
                made = key in done and done[key].made
                found.append(Input(key, source, label, sha256, soft_label_sha256, left_out, made))
    return RecordedInputs(found or list(done.values()), complete=bool(found))


def inputs_of_entries(entries: Iterable[object]) -> list[Input]:
    """Return the distilled images of a manifest's or journal's entries, without damaged ones."""
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            key, source, sha256 = (entry.get(name) for name in ("key", "source", "source_sha256"))
            if isinstance(key, str) and isinstance(source, str) and isinstance(sha256, str):
                label, soft_label = entry.get("label"), entry.get("soft_label_sha256")
                left_out, made = "problem" in entry, "file" in entry
                found.append(Input(key, source, label, sha256, soft_label, left_out, made))
    return found


def require_same_run(
    root: Path,
    found: Mapping[str, Any],
    head: Mapping[str, Any],
    recorded: RecordedInputs,
    samples: Entries,
) -> bool:
    """Refuse to resume a run of other images, naming what differs.

    Args:
        root: The output folder.
        found: The head of the run in it.
        head: The head of this run.
        recorded: The distilled images of the run in it.
        samples: The samples of this run.

    Returns:
        Whether the input is the same. If not, it differs only in images that were left out, or
        outside this shard.

    Raises:
        OutputError: If the run differs.
    """
    if different := first_difference(found, head, (*NAMES, *OF_INPUT)):
        name = different.name
        raise _refusal(
            root,
            f"a run with {name} {_text(different.found)}, and this one has {name} "
            f"{_text(different.wanted)}",
        )
    version = found["tool"].get("version")
    if version != head["tool"]["version"] and not makes_same_images(version):
        raise OutputError(
            f"{root}: holds a run of version {quoted(version)}, whose images may differ from "
            f"those of {__version__}. Install that version to resume it, add --overwrite to begin "
            "again, or choose another folder"
        )
    old, new = found["source"], head["source"]
    if all(old.get(name) == new.get(name) for name in ("sha256", "images")):
        return True
    count, expected = old.get("images"), new.get("images")
    if count != expected and head.get("shard"):
        # The shard's part has moved within the input, so that its images do not compare.
        changes = f"{quoted(count)} images, now {expected}"
    else:
        # An incomplete record does not show which images are new, so only those in it are compared.
        keys = samples.keys() if recorded.complete else {image.key for image in recorded.images}
        current = [entry for key, entry in samples.items() if key in keys]
        changes = describe_changes(recorded.images, inputs_of_entries(current))
    # The inputs differ somewhere in what the record does not hold.
    if not changes and not recorded.complete:
        before, now = (printable(str(source.get("sha256"))[:12]) for source in (old, new))
        changes = f"source sha256 {before}…, now {now}…"
    if changes:
        raise _refusal(root, f"a run of another input ({changes})")
    return False


def describe_changes(recorded: Sequence[Input], current: Sequence[Input]) -> str:
    """Return which input images were removed, added, changed or relabelled.

    The result is "" if only images that are left out differ.

    Images are compared by their key first, so that a renamed image is not a change, and then by
    name, since an image that is removed renumbers those after it.
    """
    now = {image.key: image for image in current}
    names = {image.source for image in recorded}
    same = {
        image.key
        for image in recorded
        if image.key in now and _is_same(image, now[image.key], names)
    }
    # What is left is compared by name: an image that is removed renumbers the later ones.
    before = {image.source: image for image in recorded if image.key not in same}
    after = {image.source: image for image in current if image.key not in same}
    both = [(before[name], after[name]) for name in before if name in after]
    relabelled = [(old, new) for old, new in both if _class(old) != _class(new)]
    changed = [(old, new) for old, new in both if old.sha256 != new.sha256]
    soft = [pair for pair in both if pair[0].soft_label_sha256 != pair[1].soft_label_sha256]
    kinds = {
        "changed": [new.source for _, new in changed],
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "relabelled": [new.source for _, new in relabelled],
        "with another soft label": [new.source for _, new in soft],
    }
    return "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in kinds.items() if names)


def _is_same(old: Input, new: Input, names: Collection[str]) -> bool:
    if old.label != new.label:
        return False
    if old.left_out or (new.left_out and not old.made):
        # No image was recovered from it, or will be. Without an image to compare, the name shows
        # whether a later one has moved into its place.
        return new.source == old.source or new.source not in names
    return (old.sha256, old.soft_label_sha256) == (new.sha256, new.soft_label_sha256)


def _class(image: Input) -> tuple[str, object]:
    return image.key.partition("/")[0], image.label


def _refusal(root: Path, what: str) -> OutputError:
    return OutputError(
        f"{root}: holds {what}; use the same to resume it, --overwrite to begin again, or choose "
        "another folder"
    )


def _text(value: object) -> str:
    """Return a value of a run's head as a message shows it."""
    if value is None:
        return "none"
    if isinstance(value, dict) and value.keys() == {"number", "of"}:  # a shard
        return f"{quoted(value['number'])}/{quoted(value['of'])}"
    return quoted(value)
