"""Augmentations: drawn from their generator alone, and what each leaves as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from diver_trt.evaluation.augmentation import AUGMENTATIONS, augment, crop, cut_mix, cutout, flip
from diver_trt.evaluation.protocols import DSA, MINIMAX, AugmentationName

NAMES = sorted(AUGMENTATIONS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    """Eight images of noise from 0 to 1."""
    return torch.rand(8, 3, 16, 16, generator=seeded(9))


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_follows_its_generator_alone(
    name: AugmentationName, images: Tensor
) -> None:
    before, state = images.clone(), torch.random.get_rng_state()
    first, again, other = (AUGMENTATIONS[name](images, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "name", ["affine", "crop", "cutout", "flip", "resized_crop", "rotate", "scale"]
)
def test_geometry_keeps_the_range_of_values(name: AugmentationName, images: Tensor) -> None:
    for seed in range(5):
        found = AUGMENTATIONS[name](images, seeded(seed))
        assert float(found.min()) > -1e-5
        assert float(found.max()) < 1 + 1e-5


@pytest.mark.parametrize("name", ["jitter", "lighting", "colour", "flip", "affine", "resized_crop"])
def test_a_plain_image_stays_plain(name: AugmentationName) -> None:
    plain = torch.full((4, 3, 16, 16), 0.5)
    found = AUGMENTATIONS[name](plain, seeded())
    assert float(found.std(dim=(2, 3)).max()) < 1e-5


def test_each_image_is_flipped_or_not(images: Tensor) -> None:
    found = flip(images, seeded())
    kept = [torch.equal(one, before) for one, before in zip(found, images, strict=True)]
    mirrored = [torch.equal(one, before.flip(2)) for one, before in zip(found, images, strict=True)]
    assert [a != b for a, b in zip(kept, mirrored, strict=True)] == [True] * 8
    assert set(kept) == {True, False}


def test_a_crop_is_a_shift_by_whole_pixels(images: Tensor) -> None:
    images = images + 1  # so that 0 is only what came in from outside
    for one, before in zip(crop(images, seeded()), images, strict=True):
        inside = (one != 0).all(dim=0)
        height, width = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
        assert height >= 14  # an eighth of the side may leave
        assert width >= 14
        part = one[:, inside.any(dim=1)][:, :, inside.any(dim=0)]
        shifts = [
            before[:, top : top + height, left : left + width]
            for top in range(17 - height)
            for left in range(17 - width)
        ]
        assert any(torch.equal(part, shift) for shift in shifts)


def test_cutout_zeroes_a_square_of_at_most_half_the_side(images: Tensor) -> None:
    images = images + 1
    found = cutout(images, seeded())
    gone = (found == 0).all(dim=1)
    assert torch.equal(found[~gone.unsqueeze(1).expand_as(found)], images[found != 0])
    assert int(gone.any(dim=2).sum(dim=1).max()) <= 8
    assert int(gone.any(dim=1).sum(dim=1).max()) <= 8


@pytest.mark.parametrize("seed", range(5))
def test_cut_mix_reports_the_share_that_is_left(seed: int, images: Tensor) -> None:
    mixed, order, share = cut_mix(images, seeded(seed))
    own = (mixed == images).all(dim=1).float().mean(dim=(1, 2))
    others = (mixed == images[order]).all(dim=1).float().mean(dim=(1, 2))
    for i in range(8):
        if int(order[i]) != i:
            assert float(own[i]) == pytest.approx(share)
            assert float(others[i]) == pytest.approx(1 - share)


def test_dsa_applies_one_of_its_augmentations_and_minimax_all_in_order(images: Tensor) -> None:
    found = set()
    for seed in range(30):
        result, generator = augment(images, DSA, seeded(seed)), seeded(seed)
        chosen = DSA.augmentations[int(torch.randint(6, (), generator=generator))]
        assert torch.equal(result, AUGMENTATIONS[chosen](images, generator))
        found.add(chosen)
    assert found == set(DSA.augmentations)

    generator, expected = seeded(), images
    for name in ("resized_crop", "flip", "jitter", "lighting"):
        expected = AUGMENTATIONS[name](expected, generator)
    assert torch.equal(augment(images, MINIMAX, seeded()), expected)


def test_without_flip_nothing_is_mirrored() -> None:
    assert "flip" not in DSA.without_flip().augmentations
    assert "flip" not in MINIMAX.without_flip().augmentations
    assert len(DSA.without_flip().augmentations) == 5
