"""The committed SiT of the digits: small, recognised, and it recovers the distilled digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.models.recognition import recognised_base
from diver_trt.recovered.run import recover
from examples.dataset import NUM_CLASSES, load_dataset
from tests.conftest import DIGITS_MODEL, DISTILLED

pytestmark = pytest.mark.slow

SIT = DIGITS_MODEL.parent / "sit-digits.pt"


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert SIT.stat().st_size < 6_000_000
    assert recognised_base(str(SIT)) == "sit"


def test_it_recovers_the_distilled_digits(export_to: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = export_to(SIT, vae=str(DIGITS_MODEL / "vae"))
    recover(DISTILLED, tmp_path / "out", bundle=bundle, recipe="matched", engine="onnx")
    paths = sorted((tmp_path / "out").glob("*/*.png"))
    labels = np.array([int(path.parent.name) for path in paths])
    assert np.bincount(labels).tolist() == [10] * NUM_CLASSES
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    real = load_dataset("digits").load().train
    means = np.stack(
        [real.images[real.labels == label].mean(axis=0) for label in range(NUM_CLASSES)]
    )
    distances = ((images[:, None] - means) ** 2).mean(axis=(2, 3, 4))
    # Chance is 10 %. A wrong sign, time or sampler gives noise.
    assert (distances.argmin(axis=1) == labels).mean() > 0.7
