"""Class maps: the class of the model that each class of a dataset is.

A map is an ordered list of model labels: the position is the dataset's index. Maps come from three
places: the subsets of ImageNet-1K that distillation methods use, each in the method's own order; a
file; or the model itself, whose classes are then the dataset's.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from diver_trt.distilled.methods import METHODS
from diver_trt.errors import DatasetError, UsageError, shown

IMAGENET_CLASSES = 1000
# ASCII, since \d otherwise matches the digits of every script.
WNID = re.compile(r"n\d{8}", re.ASCII)

_INDEX = re.compile(r"(new)?(\d{1,9})", re.ASCII)
"""A class index, as SRe2L and its descendants write it too: `new007`."""

_SEPARATORS = str.maketrans(",;:=", "    ")
"""Between a name and its label, beside spaces, as in a CSV or YAML file."""

_MAX_BYTES = 1 << 24
"""Largest class map that is read; a million classes fit in."""


class ModelClasses(Protocol):
    """The classes that a dataset's are mapped to.

    `Bundle` implements it, and `Classes` does without a model.
    """

    @property
    def model_id(self) -> str:
        """The model's name, for messages."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def class_names(self) -> Sequence[str] | None:
        """Name of each class, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Classes:
    """Classes without a model (`ModelClasses`), as an evaluation has those of its own sets.

    Attributes:
        owner: What has them in place of a model (`ClassMap`).
    """

    num_classes: int
    class_names: Sequence[str] | None = None
    model_id: str = "an evaluation"
    owner: str = "its numbering has"


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The classes of a dataset in its own order.

    Attributes:
        name: A subset's name, a file's path, or `"model"`.
        labels: The model's class at each index.
        names: The folder name of each index where the map gives one, else None.
        owner: The owner of the classes and its verb, as messages print them.
    """

    name: str
    labels: tuple[int, ...]
    names: tuple[str | None, ...]
    owner: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def numbers(self) -> Mapping[int, int] | None:
        """The index of each number, where a file names every class by a number; else None."""
        return None if self.name == "model" else _numbers(self.names)

    @property
    def own_names(self) -> dict[int, str]:
        """The names that a file gives to classes, by index, without numbers and wnids."""
        if self.name == "model":
            return {}
        return {
            index: name
            for index, name in enumerate(self.names)
            if name and number_of(name) is None and not WNID.fullmatch(name)
        }


def number_of(name: str) -> int | None:
    """Return the number in a name that is a class index (`3`, `00003`, `new003`), else None."""
    match = _INDEX.fullmatch(without_bom(name))
    return int(match[2]) if match else None


@cache
def _numbers(names: tuple[str | None, ...]) -> Mapping[int, int] | None:
    numbers = [number for name in names if (number := number_of(name or "")) is not None]
    return {n: i for i, n in enumerate(numbers)} if len(numbers) == len(names) else None


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the wnid of each ImageNet-1K class, sorted, as DiT's labels are."""
    return tuple(_data("imagenet_wnids.txt").split())


@cache
def imagenet_names() -> tuple[str, ...]:
    """Return the name of each ImageNet-1K class, in the order of its labels.

    They are WordNet's synonyms, "tench, Tinca tinca". WordNet calls two of the classes "crane";
    here they are "crane bird" and "construction crane".
    """
    return tuple(_data("imagenet_names.txt").splitlines())


def is_imagenet(model: ModelClasses) -> bool:
    """Return whether a model's classes are those of ImageNet-1K, in its order.

    A thousand classes without names are taken for them, and so are names that only repeat the
    label, as `LABEL_7` does. More than half of all other names have to be ImageNet's at their
    label, by any synonym: lists of them differ in wording.
    """
    if model.num_classes != IMAGENET_CLASSES:
        return False
    return model.class_names is None or _are_imagenets(tuple(model.class_names))


def other_classes(model: ModelClasses) -> str:
    """Return, in words, the classes of a model that are not ImageNet-1K's."""
    count = model.num_classes
    return "other classes" if count == IMAGENET_CLASSES else f"{count} classes"


@cache
def _are_imagenets(names: tuple[str, ...]) -> bool:
    same = [
        bool(synonyms(name) & {*synonyms(imagenet_names()[label]), imagenet_wnids()[label]})
        for label, name in enumerate(names)
        # Names such as `LABEL_7` say nothing about which classes these are.
        if not re.fullmatch(rf"\D*0*{label}", name)
    ]
    # More than half: the wording of published lists differs in single names.
    return not same or 2 * sum(same) > len(same)


def without_bom(name: str) -> str:
    """Return a name without byte order marks."""
    # Scripts that read class names from a file with a mark leave it in the first folder's name.
    return name.replace("\ufeff", "")


def plain_name(name: str) -> str:
    """Return a name regardless of case, `_` and Unicode form, as names are compared."""
    composed = unicodedata.normalize("NFC", without_bom(name)).strip().replace("_", " ").casefold()
    # Case folding may decompose again:
    # https://docs.python.org/3/howto/unicode.html#comparing-strings
    return unicodedata.normalize("NFC", composed)


def synonyms(name: str) -> set[str]:
    """Return the synonyms in a class's name, "tench, Tinca tinca", as names are compared."""
    return {plain_name(synonym) for synonym in name.split(",")} - {""}


def imagenet_subsets() -> dict[str, tuple[int, ...]]:
    """Return the ImageNet-1K labels of each known subset, in the order of the method that uses it.

    A method's own variant of a subset is `SUBSET@METHOD`.
    """
    own = {
        f"{name}@{method.name}": labels
        for method in METHODS.values()
        for name, labels in method.subsets.items()
    }
    return _shared_subsets() | own


@cache
def _shared_subsets() -> dict[str, tuple[int, ...]]:
    subsets = json.loads(_data("imagenet_subsets.json"))
    return {name: tuple(labels) for name, labels in subsets.items()}


def wnid_of(label: int, model: ModelClasses) -> str | None:
    """Return the wnid of a model's class if its classes are ImageNet-1K's."""
    return imagenet_wnids()[label] if is_imagenet(model) else None


def load_class_map(name: str, model: ModelClasses) -> ClassMap:
    """Return the class map that `--classes` names.

    Args:
        name: `"model"`, the name of an ImageNet subset, or a file. A file is a JSON list of labels,
            a JSON object from folder name to label, or text with one class per line: `LABEL`, or
            `NAME LABEL`, with a space, comma, colon, semicolon or `=` between. A label may be a
            wnid. Names that are numbers are taken in the order of the numbers, so that those from 0
            on are the indices themselves.
        model: The model.

    Raises:
        UsageError: If there is no such subset or file.
        DatasetError: If the file is damaged, or the model lacks a class that it names.
    """
    if name == "model":
        count = model.num_classes
        owner = model.owner if isinstance(model, Classes) else "the model has"
        names = tuple(model.class_names or [None] * count)
        return ClassMap("model", tuple(range(count)), names, owner)
    if name in imagenet_subsets():
        labels = imagenet_subsets()[name]
        # A subset is a list of ImageNet-1K labels, which mean other classes in any other model.
        if not is_imagenet(model):
            raise DatasetError(
                f"--classes {name} is a subset of ImageNet-1K, but the model has "
                f"{other_classes(model)}; expected a model of its 1000, or a file with the model's "
                "label of each class"
            )
        # Folders of such a subset are usually named by wnid.
        wnids = tuple(imagenet_wnids()[label] for label in labels)
        return ClassMap(name, labels, wnids, f"{name} has")
    path = Path(name)
    if not path.is_file():
        # Without variants and Comp-DD's sets, which would double the message.
        known = ", ".join(
            subset for subset in imagenet_subsets() if "@" not in subset and "-" not in subset
        )
        raise UsageError(
            f"--classes {shown(name)}: neither a file nor a known subset; expected a file, model, "
            f"{known}, imagenet-a to -e, -10 or -100"
        )
    return _read_class_file(path, model)


def subset_needed(path: Path, found: str) -> str:
    """Return the refusal of a few numbered classes for a model of ImageNet-1K."""
    return (
        f"{path}: {found}, but the model has {IMAGENET_CLASSES} classes, and methods order subsets "
        "in their own way. Name its subset (--classes imagenette, imagewoof, imagefruit, …, or a "
        "file), or set --classes model if the classes are ImageNet-1K indices."
    )


def numbering_needed(path: Path, labels: Collection[int]) -> str:
    """Return the refusal of a few ImageNet-1K classes whose numbering is not stated."""
    matches = [
        name
        for name, subset in imagenet_subsets().items()
        # A variant has the same classes in another order, so it would be listed twice.
        if set(subset) == set(labels) and "@" not in name
    ]
    those = f", those of {' and '.join(matches)}" if matches else ""
    return (
        f"{path}: has {len(labels)} of the model's {IMAGENET_CLASSES} classes{those}; trainers "
        "number a subset in its method's own order. Set --classes "
        f"{matches[0] if matches else 'SUBSET or FILE'}, or --classes model for ImageNet-1K "
        "indices."
    )


def variant_of(subset: str, method: str) -> str:
    """Return the name of a method's own variant of a subset, if it has one; NCFM has two."""
    variant = f"{subset}@{method}"
    return variant if variant in imagenet_subsets() else subset


def _read_class_file(path: Path, model: ModelClasses) -> ClassMap:
    # The manifest names the map, and only holds printable texts.
    if not str(path).isprintable():
        raise DatasetError(
            f"--classes {str(path)!a}: the path cannot be printed, expected another. Rename it."
        )
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)  # one more, so that a longer file is noticed
        text = _decoded(data)
    except OSError as cause:
        raise DatasetError(f"--classes {path}: cannot be read ({cause.strerror})") from cause
    except UnicodeDecodeError as cause:
        raise DatasetError(f"--classes {path}: cannot be read as text ({cause})") from cause
    if len(data) > _MAX_BYTES:
        raise DatasetError(f"--classes {path}: is longer than {_MAX_BYTES:,} bytes, expected a map")
    entries = (
        _json_entries(path, text) if text.lstrip().startswith(("[", "{")) else _text_entries(text)
    )
    if not entries:
        raise DatasetError(
            f"--classes {path}: does not name a class; expected one line per class, LABEL or NAME "
            "LABEL"
        )
    names = [name for name, _ in entries if name is not None]
    if len(set(names)) != len(names):
        raise DatasetError(f"--classes {path}: a name occurs twice; expected each class once")
    if (numbers := _numbers(tuple(name for name, _ in entries))) is not None:
        if len(numbers) < len(entries):
            raise DatasetError(
                f"--classes {path}: a number occurs twice among its names; expected each class once"
            )
        # "10" is before "2" in a sorted JSON object, and comes after it all the same.
        entries = [entries[numbers[number]] for number in sorted(numbers)]
    # Labels may occur twice, names may not: a name decides which folder is which class.
    labels = tuple(_label(path, label, model) for _, label in entries)
    # As the option takes it again: a file `model` is not the word, nor `imagenette` the subset.
    known = str(path) == "model" or str(path) in imagenet_subsets()
    name = f"./{path}" if known else str(path)
    return ClassMap(name, labels, tuple(folder for folder, _ in entries), f"{name} has")


def _decoded(data: bytes) -> str:
    """Decode a text in UTF-8, or in the encoding of its byte order mark, without the mark."""
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return data.decode("utf-32")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def _json_entries(path: Path, text: str) -> list[tuple[str | None, object]]:
    try:
        value = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"--classes {path}: not valid JSON ({cause})") from cause
    is_object = text.lstrip().startswith("{")
    # A dictionary would drop a name that occurs twice; pairs keep it, so that it is refused.
    return [(name, label) for name, label in value] if is_object else [(None, v) for v in value]


def _text_entries(text: str) -> list[tuple[str | None, object]]:
    # A comment may follow a class: `n02086240 # Shih-Tzu`.
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [_name_and_label(line) for line in lines if line]


def _name_and_label(line: str) -> tuple[str | None, str]:
    # Of `0: 217`, the name is the number 0, which decides the order.
    spaced = line.translate(_SEPARATORS)
    # From the right, since a name may hold spaces and commas: `Shih-Tzu, a dog 155`.
    parts = spaced.rsplit(maxsplit=1)
    if len(parts) < 2 or spaced[-1].isspace():
        return None, line
    name = line[: len(parts[0])]
    # YAML quotes numbers that are texts.
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "'\""
    return name[1:-1] if quoted else name, parts[1]


def _label(path: Path, value: object, model: ModelClasses) -> int:
    count = model.num_classes
    if (
        isinstance(value, str)
        and WNID.fullmatch(value)
        and is_imagenet(model)
        and value in imagenet_wnids()
    ):
        return imagenet_wnids().index(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        value = int(value)
    # JSON's true is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise DatasetError(
            f"--classes {path}: found {shown(repr(value))}; expected a class of the model, 0 to "
            f"{count - 1}, or a wnid of ImageNet-1K"
        )
    return value


def _data(name: str) -> str:
    return files("diver_trt.distilled").joinpath(name).read_text(encoding="utf-8")
