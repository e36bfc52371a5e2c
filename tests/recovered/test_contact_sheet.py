"""A contact sheet is as wide as its images, or as a title of bounded width."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from diver_trt.recovered.contact_sheet import MARGIN, MAX_TITLE_WIDTH, ContactSheet, _fitted

FONT = ImageFont.load_default(size=12)


def sheet(title: str, name: str = "zero", images: int = 1) -> Image.Image:
    made = ContactSheet(title, 32, {0: images})
    for _ in range(min(images, 10)):
        made.add(0, name, np.zeros((32, 32, 3), np.uint8))
    return made.draw()


def test_a_title_that_fits_is_drawn_whole() -> None:
    title = "dit-digits fp32, seed 0, 50 steps, inherit 25, gamma 0.1 in 40:25"
    assert sheet(title).width == int(FONT.getlength(title)) + 2 * MARGIN
    assert _fitted(title, FONT, MAX_TITLE_WIDTH) == title


@pytest.mark.parametrize(
    "title", ["x" * 5_000_000, "W" * 20_000, "a b, " * 1000, "\u0301" * 10_000]
)
def test_a_title_of_any_length_makes_a_sheet_of_bounded_width(title: str) -> None:
    """SECURITY.md states the width. Uncut, 800,000 characters are 5 million pixels wide."""
    assert MAX_TITLE_WIDTH == 2000
    drawn = sheet(title)
    assert drawn.width <= MAX_TITLE_WIDTH + 2 * MARGIN
    assert drawn.height < 200


def test_a_cut_title_ends_with_an_ellipsis_and_leaves_the_legend_whole() -> None:
    fitted = _fitted("x" * 5000, FONT, MAX_TITLE_WIDTH)
    assert fitted.endswith("x…")
    assert MAX_TITLE_WIDTH - 20 < FONT.getlength(fitted) <= MAX_TITLE_WIDTH
    long, short = sheet("x" * 5000, images=20), sheet("x", images=20)
    legend = int(FONT.getlength("  ·  shows the first 10 images of a class"))

    def ink(drawn: Image.Image) -> np.ndarray:
        """The last part of the legend, cut out where it ends."""
        dark = np.asarray(drawn.convert("L"))[MARGIN : MARGIN + 16] < 100
        end = int(np.flatnonzero(dark.any(axis=0))[-1]) + 1
        return dark[:, end - legend // 2 : end]

    assert ink(long).sum() == pytest.approx(ink(short).sum(), rel=0.1)


def test_a_sheet_without_any_image_is_drawn() -> None:
    """As where the input vanished before the sheet was made."""
    assert ContactSheet("title", 32, {0: 3, 1: 2}).draw().width > 100


def test_a_class_name_stays_within_its_images() -> None:
    for name in ("y" * 1000, "W" * 1_000_000):
        dark = np.asarray(sheet("t", name).convert("L"))[40:56] < 200
        assert np.flatnonzero(dark.any(axis=0))[-1] < MARGIN + 64
