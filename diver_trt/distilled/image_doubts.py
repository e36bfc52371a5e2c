"""Doubts about the images of a set that show only once every image has been checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from diver_trt.counted import counted, counted_with
from diver_trt.distilled.dataset import Dataset
from diver_trt.distilled.source import Checked
from diver_trt.errors import shown

_CLIPPED = 0.5
"""Fraction of clipped values from which an image's scale is doubted."""
# Unclamped optimisation leaves a tenth or less outside the range of pixels.


def image_doubts(dataset: Dataset, checked: Sequence[Checked]) -> list[str]:
    """Return notes on images that may not be what they were taken for.

    Args:
        dataset: The images.
        checked: The result of checking each of them, from `dataset.images.check`.
    """
    images = _Images(dataset, checked)
    doubts = (_repeated(images), _sizes(images), _cropped(images), _scale(images), _blank(images))
    return [doubt for doubt in doubts if doubt]


class _Images:
    """The images as they are stored, uncut, that can be read."""

    def __init__(self, dataset: Dataset, checked: Sequence[Checked]) -> None:
        self._dataset, self._checked = dataset, checked
        # Each tile of a collage has the result of the whole.
        self._tiles = dataset.origin.collage**2

    def __iter__(self) -> Iterator[tuple[int, Checked]]:
        """Yield the position of each image, or of its first tile, and its result."""
        for position in range(0, len(self._checked), self._tiles):
            if not self._checked[position].problem:
                yield position, self._checked[position]

    def name(self, position: int) -> str:
        name = self._dataset.images.name(position)
        return shown(name.removesuffix(" tile 0") if self._tiles > 1 else name)

    def classes(self) -> dict[int, int]:
        """Return the class of each position."""
        return {sample.position: sample.index for sample in self._dataset.samples}


def _repeated(images: _Images) -> str | None:
    """Return a note on images that are stored twice, as `0 (1).png` beside `0.png`."""
    first: dict[str, int] = {}
    again = []
    for position, found in images:
        earlier = first.setdefault(found.sha256, position)
        if earlier != position:
            again.append((position, earlier))
    if not again:
        return None
    position, earlier = again[0]
    classes = images.classes()
    apart = sum(classes[one] != classes[other] for one, other in again)
    return (
        f"{counted_with(len(again), 'image', 'is')} the same as an earlier one"
        f"{f' ({apart} of them in another class)' if apart else ''}, such as "
        f"{images.name(position)} and {images.name(earlier)}: each is recovered by itself"
    )


def _sizes(images: _Images) -> str | None:
    """Return a note on images of several sizes: a picture of the whole class is not a sample."""
    counts = Counter(found.size for _, found in images)
    if len(counts) < 2:
        return None
    common = ", ".join(
        f"{count:,} of {_size(size)}" for size, count in counts.most_common(3) if size
    )
    rarest = min(counts, key=lambda size: counts[size])
    example = next(position for position, found in images if found.size == rarest)
    return (
        f"its images have {len(counts):,} sizes ({common}{', …' if len(counts) > 3 else ''}), the "
        f"rarest one in {images.name(example)}: are all of them images of the set?"
    )


def _cropped(images: _Images) -> str | None:
    """Return a note on images that lose what lies outside their middle square."""
    longest, example, count = 1.0, 0, 0
    for position, found in images:
        if found.size and (ratio := max(found.size) / min(found.size)) > 1:
            count += 1
            if ratio > longest:
                longest, example = ratio, position
    if not count:
        return None
    return (
        f"{counted_with(count, 'image', 'is')} not square, such as {images.name(example)}: the "
        f"model gets the middle square, which leaves out {1 - 1 / longest:.0%} of that one"
    )


def _scale(images: _Images) -> str | None:
    """Return a note on images whose values do not have the scale of the others."""
    clipped = [position for position, found in images if found.clipped > _CLIPPED]
    if not clipped:
        return None
    return (
        f"most values of {counted(len(clipped), 'image')} lie outside the range of pixels, such as "
        f"those of {images.name(clipped[0])}: do all images have one scale?"
    )


def _blank(images: _Images) -> str | None:
    """Return a note on images of one colour: rows that were never filled, or of a smaller scale."""
    blank = [position for position, found in images if found.blank]
    if not blank:
        return None
    return (
        f"{counted_with(len(blank), 'image', 'is')} of one colour throughout, such as "
        f"{images.name(blank[0])}: were all rows filled, and do all images have one scale?"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
