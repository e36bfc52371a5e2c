"""Reading the inputs of `convert`: those of `recover`, flax checkpoints and whitened sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.arrays import Tensors, examine, understand
from diver_trt.distilled.brightness import brightness
from diver_trt.distilled.conversion.flax_checkpoint import open_flax_checkpoint
from diver_trt.distilled.conversion.reference import read_reference
from diver_trt.distilled.conversion.zca import Whitening, whitened_rows
from diver_trt.distilled.image_array import channels_last
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.methods.frepo import is_flax_checkpoint
from diver_trt.distilled.normalisation import Normalisation, find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.stored_array import Array, StoredArray
from diver_trt.distilled.structure import structure_of
from diver_trt.distilled.whitening import Examined, can_be_undone, normalises_first, refusal
from diver_trt.errors import DatasetError


def read_to_convert(path: Path, options: ReadOptions, reference: Path | None) -> Tensors:
    """Read one file, and undo its whitening if the training images are given.

    Args:
        path: A `.pt`, `.npz` or `.safetensors` file, or a flax checkpoint.
        options: What the user stated.
        reference: The training images, or FRePo's transform (`read_reference`); None keeps whitened
            values as they are.

    Raises:
        DatasetError: If it is not a file of distilled images, or is not whitened although there is
            a reference, or the reference does not match.
        MissingExtraError: If it is a flax checkpoint and msgpack is not installed.
    """
    content = open_flax_checkpoint(path) if is_flax_checkpoint(path) else open_stored(path)
    examined = examine(path, structure_of(path, content), options)
    if reference is None:
        return understand(examined, options)
    # With a reference: fit the transform, and undo it whenever a row is read.
    kind = _kind_to_undo(examined, options)
    # The reference states that the images are whitened, also where they are not by default.
    tensors = understand(replace(examined, taken=True), options)
    shape = examined.sample.shape[1:]
    whitening, normalisation, note = read_reference(
        reference, kind, whitened_rows(kind, shape), tensors.normalisation, shape
    )
    pixels = UnwhitenedArray(
        path,
        np.dtype(np.float32),
        (len(tensors.images), *shape),
        tensors.images,
        channels_last(path, tensors.images),
        whitening,
        normalisation,
    )
    # As pixels, since KIP's brightness and contrast have no name that `--normalisation` knows.
    return replace(
        tensors,
        images=pixels,
        normalisation=find_normalisation("none"),
        whitened=None,
        unwhitened=whitening.sha256,
        notes=(*tensors.notes, note),
    )


def _kind_to_undo(examined: Examined, options: ReadOptions) -> Kind:
    if examined.seen is None:
        raise DatasetError(
            f"--zca-reference: {examined.path} does not look ZCA-whitened "
            f"({brightness(examined.sample)}). Leave it out."
        )
    # MTT and KIP whiten pixels; only FRePo normalises them before.
    if options.normalisation and not normalises_first(examined.method):
        raise DatasetError(
            "--zca-reference and --normalisation: whitened values are not normalised; leave out "
            "one of them"
        )
    # Before the reference is read, which is a whole training set.
    if not can_be_undone(examined.seen, examined.sample.shape[2:]):
        raise refusal(examined, options)
    return examined.seen


@dataclass(frozen=True, slots=True)
class UnwhitenedArray(StoredArray):
    """Whitened images as pixels, [n, 3, H, W] float32, undone when a row is read.

    Attributes:
        images: The whitened images.
        last: Whether the channels of `images` are the last axis.
        whitening: The transform that is undone.
        normalisation: The normalisation that is undone after it.
    """

    images: Array
    last: bool
    whitening: Whitening
    normalisation: Normalisation

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        pixels = np.empty(shape, self.dtype)
        for position, row in enumerate(self.images[first : first + shape[0]]):
            values = row.transpose(2, 0, 1) if self.last else row
            # A row of huge values overflows here; `recover` then reports its NaN or infinity.
            with np.errstate(over="ignore", invalid="ignore"):
                undone = self.normalisation.denormalise(self.whitening.undo(values))
            pixels[position] = undone.transpose(2, 0, 1)
        return pixels
