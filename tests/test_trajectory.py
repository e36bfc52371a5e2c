"""A whole recovery against an independent torch reference: latents of every step, and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.method.noise import sample_noise
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.runtime.recoverer import Recoverer
from tests.conftest import DIGITS_MODEL, save_random_pipeline
from tests.reference import Reference

pytestmark = pytest.mark.slow

RECIPES = {
    "paper": PRESETS["paper"],
    "posterior sigma": Recipe(sigma="posterior"),
    "marginal sigma": Recipe(sigma="marginal"),
    "four guided channels": Recipe(cfg_channels=4),
    "inheritance off": Recipe(inherit_step=None),
    "guidance off": Recipe(gamma=0.0),
    "window full": Recipe(window=(50, 0)),
    "towards the anchor at the noise level": Recipe(guide="noised"),
    "from the predicted clean latent": Recipe(guide="x0"),
    "matched start": PRESETS["matched"],
    "thirty steps": Recipe(steps=30, inherit_step=15, start_step=30, window=(24, 15)),
    "nothing but ddim": Recipe(inherit_step=None, gamma=0.0, cfg_scale=1.0),
}


def assert_same_trajectory(
    bundle: Bundle, reference: Reference, images: NDArray[np.uint8], recipe: Recipe
) -> None:
    labels = [0, 3, 6]
    images = images[:3, : bundle.image_size, : bundle.image_size]
    noise = np.stack([sample_noise(0, str(i), bundle.latent_shape) for i in range(3)])
    anchor_expected = reference.encode(images)
    expected = list(
        reference.trajectory(anchor_expected, torch.from_numpy(noise), torch.tensor(labels), recipe)
    )

    with Recoverer(bundle, recipe, batch=3) as recoverer:
        anchor = recoverer.encode(list(images))
        start = Schedule(bundle.process, recipe, bundle.layout).start(anchor, noise)
        found = [
            start,
            *(recoverer.latent.copy() for _ in recoverer.denoise(start, anchor, noise, labels)),
        ]
        decoded = np.stack(recoverer.decode(found[-1]))

    assert len(found) == len(expected) == recipe.start_step + 1
    for k, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        largest = theirs.abs().max().item()
        assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * largest, f"{k} steps after the start"
    difference = np.abs(decoded.astype(int) - reference.decode(expected[-1]).astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("name", ["paper", "matched start", "from the predicted clean latent"])
def test_the_digits_bundle_follows_torch_at_every_step(
    digits: Bundle, images: NDArray[np.uint8], name: str
) -> None:
    assert_same_trajectory(digits, Reference(DIGITS_MODEL), images, RECIPES[name])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_random_bundle_follows_torch_at_every_step(
    random_bundle: Bundle, random_pipeline: Path, images: NDArray[np.uint8], recipe: Recipe
) -> None:
    assert_same_trajectory(random_bundle, Reference(random_pipeline), images, recipe)


def test_a_model_without_learned_variance_follows_torch_at_every_step(
    export_to: Callable[..., Bundle], tmp_path: Path, images: NDArray[np.uint8]
) -> None:
    pipeline = save_random_pipeline(tmp_path / "noise-only", out_channels=4, num_layers=1)
    bundle = export_to(pipeline)
    assert not bundle.learned_variance
    assert_same_trajectory(bundle, Reference(pipeline), images, Recipe())
