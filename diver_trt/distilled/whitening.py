"""Recognising ZCA-whitened images, which are not recovered as they are.

Methods of the MTT family optimise whitened CIFAR images and keep no transform. Only `diver-trt
convert` undoes whitening; this module names the command.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diver_trt.distilled.brightness import brightness, looks_whitened
from diver_trt.distilled.labels import Labels
from diver_trt.distilled.methods.base import Kind, Method, Stored
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.structure import TensorStructure
from diver_trt.distilled.value_range import contradiction
from diver_trt.errors import DatasetError

SIDE = 64
"""Largest side of a square that is whitened as a whole, in pixels."""
# Its transform is a matrix of 12,288 x 12,288: 604 MB of float32.


@dataclass(frozen=True, slots=True)
class Examined:
    """A file before the normalisation of its values is decided.

    Attributes:
        path: The file.
        method: The method that wrote it.
        structure: Its content.
        sample: Some of its images, [n, c, H, W].
        labels: The class of each image.
        seen: The whitening that the images show, or the file states; None without one.
        taken: Whether the images are taken as whitened in this way.
    """

    path: Path
    method: Method
    structure: TensorStructure
    sample: NDArray[Any]
    labels: Labels
    seen: Kind | None = None
    taken: bool = False

    @property
    def stored(self) -> Stored:
        """The facts that a method's defaults depend on."""
        return Stored(self.path, min(self.sample.shape[2:]), self.labels.num_classes)


def seen_whitening(examined: Examined) -> Kind | None:
    """Return how images were whitened, by what the file states, or else by their values.

    Returns:
        The kind, or None if the images do not look whitened.
    """
    path, method, found = examined.path, examined.method, examined.structure
    sample = examined.sample
    # Whitened values are real numbers of colour images; `convert` states what it has undone.
    if sample.dtype.kind != "f" or sample.shape[1] != 3 or found.unwhitened:
        return None
    # MTT's images_zca_* are, despite their name, the ones that are not whitened.
    if found.whitening or path.stem.startswith("images_zca_"):
        return found.whitening
    kind = method.whitens.kind if method.whitens else Kind.KORNIA
    # MTT and its relatives normalise larger images instead, which are ImageNet's.
    looks = (min(sample.shape[2:]) <= SIDE or kind is not Kind.KORNIA) and looks_whitened(sample)
    # A name alone is not enough: pixels in 0 to 1 are not whitened, whatever their file is called.
    named = (
        method.whitens is not None
        and method.whitens.names is not None
        and re.search(method.whitens.names, path.stem)
        and contradiction(sample, find_normalisation("none"))
    )
    return kind if looks or named else None


def is_taken_as_whitened(examined: Examined, options: ReadOptions) -> bool:
    """Return whether images that look whitened are taken as whitened."""
    whitens, found = examined.method.whitens, examined.structure
    # A stated normalisation does not contradict whitening here.
    if normalises_first(examined.method):
        return True
    # A stated normalisation means that they are not whitened: these methods do one or the other.
    if options.normalisation:
        return False
    if found.whitening:
        return True
    return whitens is not None and whitens.usual(examined.stored) and found.normalisation is None


def normalises_first(method: Method) -> bool:
    """Return whether a method normalises its images before it whitens them."""
    return method.whitens is not None and method.whitens.kind is Kind.FREPO


def can_be_undone(kind: Kind, size: tuple[int, ...]) -> bool:
    """Return whether the transform of images of a size (H, W) can be fitted again."""
    height, width = size
    # FRePo whitens 128 x 128 pixels in four parts of 64 x 64.
    return height * width <= SIDE**2 or (kind is Kind.FREPO and size == (2 * SIDE, 2 * SIDE))


def refusal(examined: Examined, options: ReadOptions) -> DatasetError:
    """Return the error for whitened images, with every way to recover them."""
    path, method, kind = examined.path, examined.method, examined.seen
    assert kind is not None, "only called for images that look whitened"
    # A file that `convert` wrote states it.
    stated = examined.structure.whitening is not None
    seen = "is ZCA-whitened" if stated else f"looks ZCA-whitened ({brightness(examined.sample)})"
    fix = f"add {'--format arrays and ' if method.centred_labels else ''}--normalisation"
    height, width = examined.sample.shape[2:]
    if not can_be_undone(kind, (height, width)):
        return DatasetError(
            f"{path}: {seen}. The transform can be fitted again for up to {SIDE} x {SIDE} pixels, "
            f"FRePo's also for 128 x 128, not for {width} x {height}. Undo it where the set was "
            f"made; or, if it is not whitened, {fix}."
        )
    twin = method.whitens.instead(path) if method.whitens and method.whitens.instead else None
    give = f" Or give {twin}." if twin else ""
    own = " or FRePo's own data/zca/*.npz" if kind is Kind.FREPO else ""
    return DatasetError(
        f"{path}: {seen}. Run `{convert_command(path, options, kind)}`, with its training images"
        f"{own} as IMAGES, and recover the new file.{give} If it is not whitened, {fix}."
    )


def convert_command(path: Path, options: ReadOptions, kind: Kind) -> str:
    """Return the command that makes a whitened file recoverable.

    Args:
        path: The file.
        options: What the user stated, which the command repeats.
        kind: How the images were whitened. Only FRePo's takes a normalisation, too.
    """
    command = f"diver-trt convert {shlex.quote(str(path))} {shlex.quote(f'{path.stem}-pixels.npz')}"
    if options.method:
        command += f" --format {options.method}"
    if options.normalisation and kind is Kind.FREPO:
        command += f" --normalisation {shlex.quote(options.normalisation)}"
    if options.collage:
        command += f" --collage {options.collage}"
    return f"{command} --zca-reference IMAGES"
