"""Training images, and the same whitened."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.distilled.whitened import FloatImages, kornia, planar


@pytest.fixture(scope="session")
def photographs() -> NDArray[np.uint8]:
    """Eight hundred 16-pixel patches of scikit-learn's two photographs.

    They are real images, in which neighbouring pixels resemble each other.
    """
    from sklearn.datasets import load_sample_images

    pictures, generator, patches = load_sample_images().images, np.random.default_rng(0), []
    for _ in range(800):
        picture = pictures[generator.integers(2)]
        side = int(generator.integers(16, 120))
        y, x = (int(generator.integers(size - side)) for size in picture.shape[:2])
        patch = Image.fromarray(picture[y : y + side, x : x + side])
        patches.append(np.asarray(patch.resize((16, 16), Image.Resampling.BOX)))
    return np.stack(patches)


@pytest.fixture(scope="session")
def whitened(photographs: NDArray[np.uint8]) -> FloatImages:
    """The first twenty, whitened as kornia does, with the transform fitted to all."""
    return kornia(planar(photographs)[:20], planar(photographs))
