"""Images with their classes, in memory, as a network is trained or tested on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diver_trt.counted import few
from diver_trt.distilled.class_map import IMAGENET_CLASSES, WNID, plain_name
from diver_trt.errors import DatasetError, shown
from diver_trt.tensors import describe

_SHOWN = 5
"""Classes that an error lists."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """A training or a test set.

    Attributes:
        images: [n, side, side, 3] uint8.
        labels: The class of each, [n] int64, from 0.
        names: The name of each class, such as its wnid, or None where classes are numbers.

    Raises:
        DatasetError: If the arrays are of another type or shape, or a label is out of range.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = self.images.shape
        if (
            self.images.dtype != np.uint8
            or len(shape) != 4
            or shape[1] != shape[2]
            or shape[3] != 3
            or 0 in shape
        ):
            raise DatasetError(
                f"images: got {describe(self.images)}, expected uint8[n, side, side, 3]"
            )
        if self.labels.dtype.kind not in "iu" or self.labels.shape != shape[:1]:
            raise DatasetError(f"labels: got {describe(self.labels)}, expected int64[{shape[0]}]")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or (self.names is not None and high >= len(self.names)):
            known = "" if self.names is None else f" to {len(self.names) - 1}"
            raise DatasetError(
                f"labels: found {low if low < 0 else high}, expected classes from 0{known}"
            )

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1 if self.names is None else len(self.names)

    def renumbered(self, occurring: NDArray[np.int64]) -> ImageSet:
        """Return the set with classes numbered from 0.

        Args:
            occurring: The number of each class as it is now, sorted: [classes] int64.
        """
        names = None if self.names is None else tuple(self.names[number] for number in occurring)
        return replace(self, labels=np.searchsorted(occurring, self.labels), names=names)

    def sha256(self) -> str:
        """Return a hash of the images in their order, and of the class of each."""
        # Including the shape: the same bytes can be other images.
        digest = hashlib.sha256(f"{self.images.shape}\n".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        # Of one type and byte order, so that every machine gets the same hash.
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def count_shared(train: Mapping[str, ImageSet], test: ImageSet) -> dict[str, int]:
    """Return how many images of each training set are test images too, pixel by pixel.

    Args:
        train: Training sets by name.
        test: The test set, of the same side.
    """
    digests = {name: [_digest(image) for image in one.images] for name, one in train.items()}
    known = {digest for found in digests.values() for digest in found}
    # Those of the test set alone are not kept: it may have 50,000.
    tested = {digest for image in test.images if (digest := _digest(image)) in known}
    return {name: sum(digest in tested for digest in found) for name, found in digests.items()}


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def matched(name: str, train: ImageSet, test: ImageSet) -> ImageSet:
    """Return a training set with the test set's classes.

    Classes are matched by name where both sets have names, otherwise by number.

    Args:
        name: The training set's name, for messages.
        train: The training set.
        test: The test set.

    Raises:
        DatasetError: If a class of one set is not in the other, two classes have one name, or the
            sides differ.
    """
    if train.side != test.side:
        raise DatasetError(
            f"{name}: images of {train.side} px, expected {test.side} px as in the test set. Read "
            "both at one size."
        )
    if train.names is not None and test.names is not None:
        ours, theirs = _occurring(train), _occurring(test)
        _require_same(name, [*ours.values()], [*theirs.values()])
        # With equal names for equal numbers, two classes may share a name.
        if ours == theirs:
            return replace(train, names=test.names)
        _require_distinct(name, ours)
        _require_distinct("the test set", theirs)
        # Only of classes that occur, which have different names.
        number = {plain_name(class_name): i for i, class_name in theirs.items()}
        # -1 for a name without images, whose label never occurs.
        renumbered = np.array([number.get(plain_name(one), -1) for one in train.names], np.int64)
        return replace(train, labels=renumbered[train.labels], names=test.names)
    _require_known_order(name, train, test)
    found, expected = (sorted({*map(int, one.labels)}) for one in (train, test))
    _require_same(name, list(map(str, found)), list(map(str, expected)))
    return replace(train, names=test.names)


def _require_known_order(name: str, train: ImageSet, test: ImageSet) -> None:
    """Refuse numbers on one side and names on the other whose order may be another one."""
    # Methods number a subset in an order of their own, which is rarely that of sorted wnids.
    named = train.names or test.names or ()
    numbered, other = ("training", "test") if train.names is None else ("test", "training")
    if named and len(named) < IMAGENET_CLASSES and all(map(WNID.fullmatch, named)):
        raise DatasetError(
            f"{name}: the {numbered} set's classes are numbers, but the {other} set's are wnids, "
            "and methods number a subset in their own order. State it with --classes (imagenette, "
            "imagewoof, imagefruit, …, or a file)."
        )
    if turn := _text_order(named):
        raise DatasetError(
            f"{name}: the {numbered} set's classes are numbers, but the {other} set's have numbers "
            f"in their names and are in the order of texts, {shown(turn[0])} before "
            f"{shown(turn[1])}. Name its folders by the numbers alone, or pad them with zeros."
        )


def _text_order(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two neighbours of which the larger number is first, if the names count classes."""
    found = [re.findall("[0-9]+", name) for name in names]
    # `class_0` to `class_10`, and not the numbers of `Boeing 737` and `A320`.
    if not all(len(runs) == 1 and len(runs[0]) < 10 for runs in found):
        return None
    numbers = [int(runs[0]) for runs in found]
    if sorted(numbers) not in (list(range(len(names))), list(range(1, len(names) + 1))):
        return None
    pairs = zip(pairwise(names), pairwise(numbers), strict=True)
    return next((pair for pair, (first, second) in pairs if first > second), None)


def _occurring(images: ImageSet) -> dict[int, str]:
    assert images.names is not None, "asked only where there are names"
    return {int(label): images.names[label] for label in np.unique(images.labels)}


def _require_distinct(name: str, classes: dict[int, str]) -> None:
    """Refuse classes that share a name, where classes are matched by name."""
    first: dict[str, int] = {}
    for index, class_name in classes.items():
        other = first.setdefault(plain_name(class_name), index)
        if other != index:
            raise DatasetError(
                f"{name}: classes {other} and {index} are both {shown(class_name)}, expected "
                "different names, by which classes are matched. Correct --classes, or name the "
                "test images' folders by number."
            )


def _require_same(name: str, found: list[str], expected: list[str]) -> None:
    ours, theirs = ({plain_name(one) for one in side} for side in (found, expected))
    extra = [one for one in found if plain_name(one) not in theirs]
    missing = [one for one in expected if plain_name(one) not in ours]
    if not extra and not missing:
        return
    parts = [f"has {len(found)} classes, the test set {len(expected)}"]
    if extra:
        parts.append(f"{_listed(extra)} not in the test set")
    if missing:
        parts.append(f"{_listed(missing)} not in the training set")
    raise DatasetError(
        f"{name}: {'; '.join(parts)}; expected the same classes in both. Choose the test images of "
        "these classes, or state the order of numbered classes with --classes."
    )


def _listed(classes: list[str]) -> str:
    return f"{few(classes, _SHOWN)} {'is' if len(classes) == 1 else 'are'}"
