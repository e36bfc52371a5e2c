"""One picture of a dataset, class by class: rows of images, one above the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from diver_trt.pixels import Pixels

PER_CLASS = 10
SHOWN_CLASSES = 100
TILES_PER_ROW = 20
GAP, MARGIN, CAPTION = 2, 16, 18
MAX_TITLE_WIDTH = 2000
"""Pixels by which a title may widen a sheet whose images are narrower; a longer title is cut."""
BACKGROUND, INK, MUTED = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(slots=True)
class _Class:
    name: str = ""
    columns: list[list[Image.Image]] = field(default_factory=list)


class ContactSheet:
    """Collects thumbnails one sample at a time, and draws them at the end.

    It shows the first ten samples of a class and the first hundred classes. The legend lists what
    is left out.

    Args:
        title: Line above the picture.
        image_size: Side of the images in pixels; small ones are enlarged by whole pixels, large
            ones reduced.
        counts: Number of samples of each class index.
    """

    def __init__(self, title: str, image_size: int, counts: Mapping[int, int]) -> None:
        self.title = title
        # Whole multiples: interpolation would blur the pixels that a small image is looked at for.
        self.tile = image_size * max(1, 64 // image_size) if image_size < 128 else 128
        self._counts = counts
        self._classes = {index: _Class() for index in sorted(counts)[:SHOWN_CLASSES]}

    def wants(self, index: int) -> bool:
        """Return whether the sheet has room for another sample of this class."""
        return index in self._classes and len(self._classes[index].columns) < PER_CLASS

    def add(self, index: int, name: str, *images: Pixels) -> None:
        """Add a sample: its class's index and name, and its images from the top.

        Images are [H, W, 3] uint8, equally many for every sample.
        """
        self._classes[index].name = name
        self._classes[index].columns.append([self._thumbnail(image) for image in images])

    def draw(self) -> Image.Image:
        """Return the sheet."""
        shown = list(self._classes.values())
        # Measure first: blocks are as wide as the class with the most samples.
        # At least 1, although no distilled image may be readable any more.
        widest = max([1, *(len(entry.columns) for entry in shown)])
        tallest = max((len(column) for entry in shown for column in entry.columns), default=1)
        block_width = widest * (self.tile + GAP) - GAP
        per_row = max(1, min(len(shown), TILES_PER_ROW // widest))
        block_height = CAPTION + tallest * (self.tile + GAP)
        rows = -(-len(shown) // per_row)
        font = ImageFont.load_default(size=12)
        grid_width = per_row * (block_width + MARGIN) + MARGIN
        # The title gives way to what the legend says about missing images.
        left_out = self._left_out()
        room = max(grid_width - 2 * MARGIN, MAX_TITLE_WIDTH)
        legend = f"{_fitted(self.title, font, room - int(font.getlength(left_out)))}{left_out}"
        width = max(grid_width, int(font.getlength(legend)) + 2 * MARGIN)
        sheet = Image.new(
            "RGB", (width, rows * (block_height + MARGIN) + 2 * MARGIN + CAPTION), BACKGROUND
        )
        pen = ImageDraw.Draw(sheet)
        pen.text((MARGIN, MARGIN), legend, INK, font)
        for number, entry in enumerate(shown):
            row, column = divmod(number, per_row)
            left, top = (
                MARGIN + column * (block_width + MARGIN),
                MARGIN + CAPTION + MARGIN // 2 + row * (block_height + MARGIN),
            )
            # Class by class from the left: a name, and below it a column for each sample.
            pen.text((left, top), _fitted(entry.name, font, block_width), MUTED, font)
            for i, images in enumerate(entry.columns):
                for j, image in enumerate(images):
                    sheet.paste(
                        image, (left + i * (self.tile + GAP), top + CAPTION + j * (self.tile + GAP))
                    )
        return sheet

    def _thumbnail(self, image: Pixels) -> Image.Image:
        enlarging = image.shape[0] <= self.tile and self.tile % image.shape[0] == 0
        return Image.fromarray(image).resize(
            (self.tile, self.tile),
            Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS,
        )

    def _left_out(self) -> str:
        parts = []
        if any(count > PER_CLASS for count in self._counts.values()):
            parts.append(f"the first {PER_CLASS} images of a class")
        if len(self._classes) < len(self._counts):
            parts.append(f"{len(self._classes)} of {len(self._counts)} classes")
        return f"  ·  shows {', '.join(parts)}" if parts else ""


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, shortened with an ellipsis to a width in pixels."""
    if len(text) <= width and font.getlength(text) <= width:
        return text

    def cut(length: int) -> str:
        return text[:length] + "…"

    # Bisection between one character and one per pixel, since measuring a text takes time for each
    # of its characters and titles quote names of any length.
    fits, beyond = 1, max(2, min(len(text), width) - 1)
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if font.getlength(cut(middle)) <= width:
            fits = middle
        else:
            beyond = middle
    return cut(fits)
