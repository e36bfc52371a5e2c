"""Real digits as image sets: the scans of scikit-learn, each value enlarged to a square."""

from __future__ import annotations

import numpy as np
import pytest

from diver_trt.evaluation.image_set import ImageSet

CLASSES = 10


def real_digits(first: int, per_class: int) -> ImageSet:
    """Return images `first` to `first + per_class` of each digit, 16 px."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    chosen = np.concatenate(
        [np.flatnonzero(labels == digit)[first : first + per_class] for digit in range(CLASSES)]
    )
    grey = (scans[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    large = grey.repeat(2, axis=1).repeat(2, axis=2)
    return ImageSet(np.repeat(large[..., None], 3, axis=3), labels[chosen].astype(np.int64))


@pytest.fixture(scope="session")
def train() -> ImageSet:
    """A hundred real digits."""
    return real_digits(0, 10)


@pytest.fixture(scope="session")
def other() -> ImageSet:
    """Twenty other real digits."""
    return real_digits(10, 2)


@pytest.fixture(scope="session")
def held_out() -> ImageSet:
    """Two hundred real digits that are in neither."""
    return real_digits(20, 20)
