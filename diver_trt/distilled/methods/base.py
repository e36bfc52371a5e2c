"""The facts about a distillation method, which every file of this folder defines.

Facts that a file of distilled images does not state, such as its collage factor or normalisation,
are taken from the method's own code. An option overrides them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diver_trt.distilled.stored_array import Array

Colour = tuple[float, float, float]
Holds = Literal["folders", "tensors"]
Structure = Literal["folders", "tensor", "list", "experiments", "arrays"]
"""Class folders of images; a tensor of images with its labels in a file beside it; a list of images
and labels; a dictionary whose `data` is a list of such lists; named arrays."""

LARGE_PIXELS = 128
"""Side in pixels from which images are ImageNet's, for which some methods use other collages."""

# FKD holds one label for each augmented view of an image, in the order of one sampler.
STALE_LABELS = (
    "soft labels saved for these images (FKD) do not fit the recovered ones: label those anew"
)


@dataclass(frozen=True, slots=True)
class Found:
    """The facts by which a method may recognise its files.

    Attributes:
        structure: The layout of the images.
        path: The file of tensors, or the first image.
        folder: The folder of that file, or the class folder of that image.
        name: The name of the images among named arrays, else empty.
        images: The images of tensors, [n, c, H, W] or [n, H, W, c].
        labels: Their labels, [n] or [n, classes].
        looks_whitened: Returns whether those images look ZCA-whitened.
    """

    structure: Structure
    path: Path
    folder: Path
    name: str = ""
    images: Array | None = None
    labels: Array | None = None
    # A function, since it reads images; from outside, since it compares their values with the
    # normalisations of all methods.
    looks_whitened: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Stored:
    """The facts that a method's defaults may depend on.

    Attributes:
        path: The file.
        side: The shorter side of a stored image in pixels.
        num_classes: The number of classes in the labels.
    """

    path: Path
    side: int
    num_classes: int


class Kind(Enum):
    """The variants of ZCA whitening.

    They differ in the term added to the eigenvalues, and in the preparation of the images.

    KORNIA is MTT's, TESLA's, DATM's and SeqMatch's: it adds 0.1; images are in [0, 1]. FREPO adds a
    tenth of the mean eigenvalue, and whitens only as many directions as there are images; each
    channel is normalised before. KIP adds as much, to images of mean 0 and length 1, without
    subtracting the mean of all images: an image's own brightness and contrast are lost.
    """

    KORNIA = "kornia"
    FREPO = "FRePo"
    KIP = "KIP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitens:
    """A method's whitening of the images that it optimises.

    Attributes:
        kind: The variant.
        usual: Returns whether images that look whitened are taken as whitened by default.
        names: Pattern of the names of whitened files, whatever their images look like.
        instead: Returns the file beside a whitened one that is not, as messages print it.
    """

    kind: Kind
    usual: Callable[[Stored], bool]
    names: str | None = None
    instead: Callable[[Path], str] | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one run that differ in their iteration only.

    Attributes:
        matches: Returns whether a file is one of them.
        choose: Returns the one that a folder stands for, from all of them in natural order.
    """

    matches: Callable[[Path], bool]
    choose: Callable[[Sequence[Path]], Path]


@dataclass(frozen=True, slots=True)
class Parts:
    """Folders that hold one set together.

    Attributes:
        pattern: Pattern of their names, with their number in the group `number`; the group `set`,
            if any, is the same in all parts.
        first: The number of the first part.
        example: Two such names, as messages print them.
    """

    pattern: str
    first: int
    example: str


def by_side(stored: Stored) -> str:
    """Return the name of the statistics in the code of MTT and its relatives."""
    # MTT whitens pixels in [0, 1] without normalising them, and these are the same ones again.
    if stored.path.stem.startswith("images_zca_"):
        return "none"
    # Tiny-ImageNet, with 64 pixels, has ImageNet's statistics in the methods' code.
    return {32: "cifar10", 28: "mnist"}.get(stored.side, "imagenet")


def not_normalised(_: Stored) -> str:
    """Return the name of the statistics of pixels in [0, 1]."""
    return "none"


def no_remark(_: Path) -> str | None:
    """Return None: the file's name implies nothing that a user should know."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A family of distillation methods that write the same files.

    Attributes:
        name: The name that `--format` takes.
        title: The methods, as messages print them.
        structures: The layouts of their files.
        recognises: Returns whether files of these structures are theirs; None makes the method the
            default for its structures.
        statistics: Named normalisations of their own, mean and standard deviation, red first.
        normalisation: Returns the name of their code's statistics.
        guesses: Whether that is only a guess, so that values that contradict it are refused.
        collage: Images along a side of each stored one, below `LARGE_PIXELS`.
        large_collage: The same for larger ones.
        collage_names: Pattern of folder names that state that number in their first group.
        subsets: ImageNet-1K labels of subsets with classes or an order of their own.
        centred_labels: Whether float labels are centred one-hot rows, whatever their values.
        whitens: Their whitening, None if they do not whiten.
        series: Files of one run that differ in their iteration only.
        beside: Pattern of the names (without suffix) of files that they save beside the images.
        file_names: Pattern of names that only their images have: such a file is never skipped, even
            if it is damaged.
        parts: Folders that hold one set together, None if they write a single one.
        remark: Returns a note on a file, from its name and those beside it.
        advice: A note on all their sets.
    """

    name: str
    title: str
    structures: tuple[Structure, ...]
    recognises: Callable[[Found], bool] | None = None
    statistics: Mapping[str, tuple[Colour, Colour]] = field(default_factory=dict)
    normalisation: Callable[[Stored], str] = not_normalised
    guesses: bool = False
    collage: int = 1
    large_collage: int = 1
    collage_names: str | None = None
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    centred_labels: bool = False
    whitens: Whitens | None = None
    series: tuple[Series, ...] = ()
    beside: str | None = None
    file_names: str | None = None
    parts: Parts | None = None
    remark: Callable[[Path], str | None] = no_remark
    advice: str | None = None

    @property
    def holds(self) -> Holds:
        """The kind of their output: image files in folders, or tensors in a file."""
        return "folders" if self.structures == ("folders",) else "tensors"

    @property
    def may_be_collages(self) -> bool:
        """Whether some stored images of theirs are read as collages by default."""
        return self.collage != 1 or self.large_collage != 1 or self.collage_names is not None

    def default_collage(self, side: int) -> int:
        """Return the documented collage factor for stored images of this side in pixels."""
        return self.large_collage if side >= LARGE_PIXELS else self.collage

    def collage_in_path(self, folder: Path) -> int | None:
        """Return the collage factor in the name of a folder or of one around it, or None."""
        if self.collage_names:
            # The innermost folder is the run's own; resolved, since the path may be relative to it.
            for part in reversed(folder.resolve().parts):
                if match := re.search(self.collage_names, part):
                    return int(match[1])
        return None


def latest(files: Sequence[Path]) -> Path:
    """Return the file marked as the best, else that of the last iteration."""

    def rank(file: Path) -> tuple[bool, int]:
        digits = re.findall(r"\d+", file.stem)
        # By the number, since `images_1000` comes before `images_500` as a text.
        return file.stem.endswith("best"), int(digits[-1]) if digits else -1

    return max(files, key=rank)


def stems(pattern: str) -> Callable[[Path], bool]:
    """Return a function that matches a file's name without its suffix against a pattern."""
    return lambda file: re.fullmatch(pattern, file.stem) is not None
