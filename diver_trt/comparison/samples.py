"""The worst images of an engine, as a report shows them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diver_trt.comparison.metrics import ImageDifference
from diver_trt.comparison.result import Result
from diver_trt.comparison.verdict import Comparison
from diver_trt.pixels import Pixels

WORST_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One image of a report; the pictures are data URLs of PNG files.

    Attributes:
        key: Its name.
        difference: How far it is from the reference's image.
        distilled: The input.
        expected: The reference's image.
        found: The engine's image.
        amplified: The absolute difference, times `factor`.
        factor: The largest whole factor that clips no difference.
    """

    key: str
    difference: ImageDifference
    distilled: str
    expected: str
    found: str
    amplified: str
    factor: int


def worst_samples(comparison: Comparison, result: Result) -> list[ShownSample]:
    """Return the images of an engine that are furthest from the reference's, worst first."""
    images = comparison.figures.images
    order = sorted(range(len(images)), key=lambda i: images[i].psnr_db)
    samples = []
    for i in order[:WORST_SAMPLES]:
        expected, found = result.reference_images[i], comparison.recovered[i]
        # uint8 would wrap around at differences below zero.
        gap = np.abs(found.astype(int) - expected)
        factor = max(1, 255 // max(1, int(gap.max())))
        samples.append(
            ShownSample(
                key=result.inputs.keys[i],
                difference=images[i],
                distilled=_data_url(result.inputs.images[i]),
                expected=_data_url(expected),
                found=_data_url(found),
                amplified=_data_url((gap * factor).clip(0, 255).astype(np.uint8)),
                factor=factor,
            )
        )
    return samples


def _data_url(image: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
