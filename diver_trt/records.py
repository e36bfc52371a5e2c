"""What a recovery records about itself: `manifest.json`, and the journal that precedes it.

Both begin with the same head and hold the same entries. While a recovery runs they are lines of the
journal; when it is finished the manifest replaces the journal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

from diver_trt.bundle import MAX_CLASSES, MAX_SIDE
from diver_trt.errors import UsageError, shown_value
from diver_trt.files import is_inside
from diver_trt.strict_json import quoted
from diver_trt.structs import OMITTED, Check, Count, Invalid, Sha256, Size, whole

Sample = TypeVar("Sample")

MANIFEST_SCHEMA = 2

_KEY = re.compile("[0-9]{5,9}/[0-9]{5,9}")

InsidePath = Annotated[str, Check(is_inside, "a path inside the folder")]
Key = Annotated[
    str,
    Check(lambda key: bool(_KEY.fullmatch(key)), "a class and a number, such as 00003/00007"),
]
Index = Annotated[int, whole(0, MAX_CLASSES - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """The program that wrote the dataset, and its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The bundle that was used: the model's name, the bundle's precision, and its hash."""

    model: str
    precision: str
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The distilled dataset; fields with a default are missing where an older version wrote it.

    Attributes:
        name: The name of its folder or file.
        format: The method that wrote it, a name of `diver_trt.distilled.methods.METHODS`.
        files: The files of tensors, none for folders of images.
        normalisation: Name of the statistics that were undone, or None.
        whitening: Hash of the ZCA transform that was undone, or None.
        collage: Images along a side of each stored one.
        soft_labels: Form of the soft labels, None for hard ones.
        clipped: Share of the values that lay outside the range of pixels.
        images: How many images it has, each as often as it is recovered.
        sha256: Hash of all names, classes, contents and soft labels.
    """

    name: str
    format: str
    files: tuple[str, ...] = ()
    normalisation: str | None = None
    whitening: str | None = None
    collage: Count = 1
    soft_labels: str | None = None
    clipped: float = 0.0
    images: Count
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOut:
    """How the images were written.

    Attributes:
        name: The layout, a name of `diver_trt.recovered.layouts.LAYOUTS`.
        size: Side of an image in pixels.
        resampling: How images were brought to that side, or None if the model's own was kept.
        normalisation: Name of the statistics of written tensors, or None without any.
    """

    name: str
    size: Annotated[int, whole(1, MAX_SIDE)]
    resampling: str | None = None
    normalisation: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a dataset: consecutive samples, so that a shard has few classes.

    Attributes:
        number: Which part, from 1.
        of: How many parts there are.
    """

    number: Count
    of: Count

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/8`.

        Raises:
            UsageError: If the text is not such a fraction, at most 1.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(text))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"shard is {shown_value(text)}; expected NUMBER/OF, such as 3/8")
        return cls(int(found[1]), int(found[2]))

    def part(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples of this part; over all parts each sample comes once."""
        # Whole numbers only: rounding n * i / k in floats could give a sample to two parts.
        return samples[
            len(samples) * (self.number - 1) // self.of : len(samples) * self.number // self.of
        ]

    def check(self) -> None:
        """Compare the two numbers after they have been read.

        Raises:
            Invalid: If the part's number is larger than the number of parts.
        """
        if self.number > self.of:
            raise Invalid(
                f"found {self.number}, expected a whole number from 1 to {self.of}", "number"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedFrom:
    """The recovered dataset that `diver-trt convert` read: its layout, side and manifest's hash."""

    layout: str
    size: Annotated[int, whole(1, MAX_SIDE)]
    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What decides the images: the beginning of a manifest, and of a journal's first line.

    Attributes:
        schema: Version of the manifest.
        tool: What wrote it.
        bundle: The model.
        recipe: The method's settings, from `Recipe.to_json`.
        seed: Seed of the noise.
        copies: How often each image is recovered.
        source: The distilled dataset.
        layout: How the images are written.
        class_map: Name of the class map.
        shard: The part that this is, or None for a whole dataset.
        converted_from: The recovered dataset that the images were copied from, or None if they were
            recovered into this one.
    """

    # Written in this order, which a resumed run compares as well.
    schema: int = MANIFEST_SCHEMA
    tool: Tool
    bundle: Model
    recipe: Mapping[str, Any]
    # 64 bits, as `method.noise.checked_seed` takes them.
    seed: Annotated[int, whole(-(2**63))]
    copies: Count = 1
    source: Source
    layout: LaidOut
    class_map: str
    shard: Shard | None = None
    converted_from: ConvertedFrom | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassEntry:
    """A class that occurs.

    Attributes:
        index: The class in the dataset's order.
        label: The class in the model's order.
        wnid: Its WordNet ID, or None outside ImageNet-1K.
        imagenet_index: Its number in ImageNet-1K, or None.
        name: Its name in the model, or None if the model has none.
        own_name: Its name in the file of a class map, or None.
    """

    index: Index
    label: Size
    wnid: str | None
    imagenet_index: Size | None = None
    name: str | None
    own_name: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A distilled image, as its entry begins.

    Attributes:
        key: Its class in the dataset's order and its number in that class.
        source: Where it is within the dataset.
        source_sha256: Hash of the image, "" if it could not be read.
        soft_label_sha256: Hash of its soft label, None without one.
        index: Its class in the dataset's order.
        label: Its class in the model's order.
        wnid: The WordNet ID of that class, or None.
    """

    key: Key
    source: str
    source_sha256: str
    soft_label_sha256: Sha256 | None = field(default=None, metadata=OMITTED)
    index: Index
    label: Size
    wnid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(Distilled):
    """An image that was recovered: on which engine, into which file, and that file's hash."""

    engine: str
    file: InsidePath
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Distilled):
    """An image that was left out, why, and on which engine if it was not for its source."""

    engine: str | None = field(default=None, metadata=OMITTED)
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A file beside the images, and its hash."""

    file: InsidePath
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Head):
    """`manifest.json`: the head, and the files of a dataset that is finished.

    Attributes:
        companions: The files beside the images.
        skipped: Images that were left out, in the dataset's order.
        classes: Every class that occurs, by index.
        samples: Images that were recovered, in the dataset's order.
    """

    companions: tuple[Companion, ...]
    skipped: tuple[LeftOut, ...]
    classes: tuple[ClassEntry, ...]
    samples: tuple[Recovered, ...]

    @property
    def head(self) -> Head:
        """The head alone."""
        return Head(**{entry.name: getattr(self, entry.name) for entry in fields(Head)})

    def check(self) -> None:
        """Compare samples and classes, when they have been read.

        Raises:
            Invalid: If classes or samples are not in order, each once, or a sample does not have
                the class that its key and the classes give.
        """
        classes: dict[int, ClassEntry] = {}
        for number, entry in enumerate(self.classes):
            if entry.index <= max(classes, default=-1):
                raise Invalid(
                    f"found {entry.index}, expected each class once, in order",
                    *("classes", number, "index"),
                )
            classes[entry.index] = entry
        _require_consistent("samples", self.samples, classes)
        _require_consistent("skipped", self.skipped, classes)


def position_of(key: str) -> tuple[int, int]:
    """Return the class's index and the number in a sample's key, by which samples are in order."""
    index, number = key.split("/")
    return int(index), int(number)


def _require_consistent(
    part: str, entries: tuple[Distilled, ...], classes: Mapping[int, ClassEntry]
) -> None:
    # The number within a class decides the noise of an image that is recovered from this one, and
    # so does the order.
    last = (-1, -1)
    for number, entry in enumerate(entries):
        # A default binds this round's number; a closure would see the last one (ruff's B023).
        def bad(name: str, problem: str, number: int = number) -> Invalid:
            return Invalid(problem, part, number, name)

        index, position = position_of(entry.key)
        if entry.index not in classes:
            raise bad("index", f"found {entry.index}, expected one of the manifest's classes")
        if (index, position) <= last:
            raise bad("key", f"found {entry.key}, expected the samples in order, each once")
        last = index, position
        if entry.index != index:
            raise bad("index", f"found {entry.index}, expected {index} as in the key {entry.key}")
        known = classes[index]
        for name in ("label", "wnid"):
            if (found := getattr(entry, name)) != (expected := getattr(known, name)):
                raise bad(
                    name,
                    f"found {quoted(found)}, expected {quoted(expected)} as in the manifest's "
                    f"class {index}",
                )
