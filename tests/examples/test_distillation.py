"""Distilling from noise: closed forms of the two losses, and that a set follows from its seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.dataset import NUM_CLASSES, Split, to_tensor
from examples.distil import BUDGETS, METHODS
from examples.distillation import Budget, class_means, distance
from examples.fashion.fashion import shift

TINY = Budget(iterations=1, real_batch=2, channels=1, clipped=True, matches=2, net_steps=1)


@pytest.fixture(scope="module")
def real() -> Split:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), 6)
    images = rng.integers(0, 25, (len(labels), 32, 32, 3), np.uint8) + labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels)


def test_class_means_average_the_embeddings_of_each_class() -> None:
    embeddings = torch.arange(60.0).view(20, 3)
    expected = torch.stack([embeddings[2 * c : 2 * c + 2].mean(0) for c in range(10)])
    assert torch.equal(class_means(embeddings), expected)


def test_the_distance_of_gradients_sums_one_minus_cosine_over_output_nodes() -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 3, 3, 3), (4,), (10, 64), (10,)]
    found, target = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    expected = 0.0
    for a, b in ((found[0], target[0]), (found[2], target[2])):
        for node in range(len(a)):
            x, y = a[node].ravel(), b[node].ravel()
            expected += 1 - x @ y / np.sqrt((x @ x) * (y @ y))
    tensors = [tuple(map(torch.from_numpy, gradients)) for gradients in (found, target)]
    assert distance(*tensors).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_distilled_set_follows_from_its_seed(method: str, real: Split) -> None:
    distil = METHODS[method]
    first, again = (distil(real, shift, TINY, per_class=1, seed=3) for _ in range(2))
    other = distil(real, shift, TINY, per_class=1, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_clipped_set_of_one_channel_is_grey_and_within_the_range_of_pixels(
    method: str, real: Split
) -> None:
    images = METHODS[method](real, shift, TINY, per_class=1, seed=0)
    assert images.shape == (NUM_CLASSES, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("method", METHODS)
def test_matching_moves_the_images_toward_the_real_ones(method: str, real: Split) -> None:
    # The images of this set are nearly black.
    mean = to_tensor(real.images).mean()
    longer = replace(TINY, iterations=4, channels=3)
    shorter = replace(longer, iterations=0)
    before, after = (
        METHODS[method](real, shift, b, per_class=1, seed=0) for b in (shorter, longer)
    )
    assert (after - mean).square().mean() < (before - mean).square().mean()


def test_every_committed_set_has_a_budget() -> None:
    assert set(BUDGETS) == {
        ("digits", "dm", 1),
        ("digits", "dm", 10),
        *(("fashion", method, ipc) for method in METHODS for ipc in (1, 10)),
    }
