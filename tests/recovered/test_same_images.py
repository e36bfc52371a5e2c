"""Every version since `SAME_IMAGES_SINCE` resumes a run, so these images change only with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.crash import RECIPE
from diver_trt.recovered.earlier_run import SAME_IMAGES_SINCE
from tests.cli.command import run
from tests.conftest import DISTILLED

# Means over squares of 8 x 8 pixels of the images that version 0.2.0 recovers, in grey levels.
MEANS = {
    "00000/00000.png": [11, 194, 141, 3, 36, 171, 126, 28, 41, 130, 127, 52, 12, 182, 190, 18],
    "00004/00000.png": [0, 52, 121, 9, 21, 163, 160, 71, 64, 211, 213, 31, 2, 92, 134, 1],
    "00009/00000.png": [18, 179, 159, 6, 26, 180, 212, 25, 1, 38, 140, 23, 2, 106, 142, 15],
}


def means(path: Path) -> NDArray[np.float64]:
    grey = np.asarray(Image.open(path)).astype(np.float64).mean(axis=2)
    blocks: NDArray[np.float64] = grey.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel()
    return blocks


def test_the_images_are_those_of_the_version_that_is_named(tmp_path: Path) -> None:
    """Processors round differently: by far less than a level.

    If this fails, SAME_IMAGES_SINCE becomes the version to be released.
    """
    command = ["recover", str(DISTILLED.parent / "ipc1"), str(tmp_path / "out"), *RECIPE]
    assert run(*command).exit_code == 0
    assert SAME_IMAGES_SINCE == "0.2.0"
    found = {name: means(tmp_path / "out" / name) for name in MEANS}
    for name, expected in MEANS.items():
        np.testing.assert_allclose(found[name], expected, atol=2)
