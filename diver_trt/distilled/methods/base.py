"""What a distillation method is here: the interface that every file of this folder implements.

Whatever a file of distilled images does not say, how many images are glued into one, or what its
values were normalised with, is taken from the method's own code; an option can replace it.
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
"""Images of this side and more are ImageNet's, for which some methods choose other collages."""

STALE_LABELS = (
    "soft labels saved for these images (FKD) do not fit the recovered ones: label those anew"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a method may recognise its files by.

    Attributes:
        structure: How the images lie.
        path: The file of tensors, or the first image.
        folder: The folder of that file, or the class folder of that image.
        name: What named arrays call the images, else empty.
        images: The images of tensors, [n, c, H, W] or [n, H, W, c].
        labels: Their labels, [n] or [n, classes].
    """

    structure: Structure
    path: Path
    folder: Path
    name: str = ""
    images: Array | None = None
    labels: Array | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a default may depend on.

    Attributes:
        path: The file.
        side: The shorter side of a stored image in pixels.
        num_classes: The number of classes that the labels count.
    """

    path: Path
    side: int
    num_classes: int


class Kind(Enum):
    """Whose ZCA whitening: the term added to the eigenvalues, and what precedes the whitening.

    KORNIA is MTT's, TESLA's, DATM's and SeqMatch's: 0.1 is added; images are in [0, 1]. FREPO adds
    a tenth of the mean eigenvalue, and leaves alone all directions but as many as there are images;
    each channel is normalised before. KIP adds as much, to images of mean 0 and length 1, without
    subtracting the mean of all images: an image's own brightness and contrast are lost.
    """

    KORNIA = "kornia"
    FREPO = "FRePo"
    KIP = "KIP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitens:
    """How a method whitens the images that it optimises.

    Attributes:
        kind: Whose whitening it is.
        usual: Whether images that look whitened are taken for it where nothing is stated.
        names: Pattern of file names that say so, whatever the images look like.
        instead: Returns which file beside a whitened one is not whitened, as messages print it.
    """

    kind: Kind
    usual: Callable[[Stored], bool]
    names: str | None = None
    instead: Callable[[Path], str] | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Files of one run that differ in their iteration only.

    Attributes:
        matches: Whether a file is one of them.
        choose: Returns the one that a folder stands for; it is given all, in natural order.
    """

    matches: Callable[[Path], bool]
    choose: Callable[[Sequence[Path]], Path]


@dataclass(frozen=True, slots=True)
class Parts:
    """Folders that hold one set together.

    Attributes:
        pattern: Of their names; its group `set`, if it has one, is the same in all parts of a set.
        example: Two such names, as messages print them.
    """

    pattern: str
    example: str


def by_side(stored: Stored) -> str:
    """Return the statistics that MTT's code and its relatives normalise a data set with."""
    if stored.path.stem.startswith("images_zca_"):
        return "none"
    return {32: "cifar10", 28: "mnist"}.get(stored.side, "imagenet")


def not_normalised(_: Stored) -> str:
    """Return the statistics of pixels in [0, 1]."""
    return "none"


def no_remark(_: Path) -> str | None:
    """Return None: the file's name tells nothing that a user should know."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A family of distillation methods that write the same files.

    Attributes:
        name: The name that `--format` takes.
        title: The methods, as messages print them.
        structures: How their files may lie.
        recognises: Whether files of these structures are theirs; None makes them the usual ones of
            their structures.
        statistics: Named normalisations of their own, mean and standard deviation, red first.
        normalisation: Returns the name of the statistics that their code normalises with.
        guesses: Whether that is only a guess, so that values that contradict it are refused.
        collage: Images along a side of each stored one, below `LARGE_PIXELS`.
        large_collage: The same for larger ones.
        collage_names: Pattern of folder names that state that number in their first group.
        subsets: ImageNet-1K labels of subsets whose classes or order are their own.
        centred_labels: Whether float labels are centred one-hot rows, whatever they look like.
        whitens: How they whiten, None if they do not.
        series: Files of one run that differ in their iteration only.
        beside: Pattern of names (without suffix) of what they save beside the images.
        file_names: Pattern of names that only their images have: such a file is never passed over
            as if it were something else, even if it is damaged.
        parts: Folders that hold one set together, None if they write none.
        remark: Returns what a user should know of a file, by its name and those beside it.
        advice: What to know about their sets, noted once.
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
        """Whether they write image files in folders, or tensors in a file."""
        return "folders" if self.structures == ("folders",) else "tensors"

    def default_collage(self, side: int) -> int:
        """Return the documented collage factor for stored images of this side in pixels."""
        return self.large_collage if side >= LARGE_PIXELS else self.collage

    def collage_in_path(self, folder: Path) -> int | None:
        """Return the collage factor that the name of a folder, or of one around it, states."""
        if self.collage_names:
            for part in reversed(folder.resolve().parts):
                if match := re.search(self.collage_names, part):
                    return int(match[1])
        return None


def latest(files: Sequence[Path]) -> Path:
    """Return the file that is marked as the best, else that of the last iteration."""

    def rank(file: Path) -> tuple[bool, int]:
        digits = re.findall(r"\d+", file.stem)
        return file.stem.endswith("best"), int(digits[-1]) if digits else -1

    return max(files, key=rank)


def stems(pattern: str) -> Callable[[Path], bool]:
    """Return whether a file's name without its suffix matches a pattern, as a function."""
    return lambda file: re.fullmatch(pattern, file.stem) is not None
