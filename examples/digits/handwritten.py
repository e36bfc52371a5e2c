"""The handwritten digits that ship inside scikit-learn, as 32-pixel RGB images.

1,797 scans of 8 x 8 pixels with 17 grey levels (UCI "Optical Recognition of Handwritten Digits"),
enlarged once, bicubically.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.dataset import IMAGE_SIZE, Dataset, Split, Splits

GREY_LEVELS = 16
SPLIT_SEED = 0
TEST = 360


def load_splits() -> Splits:
    """Return the training (1,437) and test (360) digits, stratified by class with a fixed seed.

    There are too few to hold out more, so 360 of the training digits serve for validation as well.
    """
    scans, labels = load_digits(return_X_y=True)
    grey = np.round(scans.reshape(-1, 8, 8) * (255 / GREY_LEVELS)).astype(np.uint8)
    large = [
        Image.fromarray(scan).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        for scan in grey
    ]
    images = np.repeat(np.stack([np.asarray(image) for image in large])[..., None], 3, axis=-1)
    everything = Split(images, labels.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, random_state=SPLIT_SEED, stratify=labels
    )
    _, validation = train_test_split(
        train, test_size=TEST, random_state=SPLIT_SEED, stratify=labels[train]
    )
    return Splits(
        train=everything.at(train), validation=everything.at(validation), test=everything.at(test)
    )


def jitter(
    images: Tensor,
    generator: torch.Generator,
    *,
    degrees: float = 8,
    scale: float = 0.06,
    shift: float = 0.06,
) -> Tensor:
    """Turn, scale and shift every image a little, as another hand would have written it.

    Args:
        images: [n, c, H, W] float32 in [-1, 1]; what moves in from outside is background (-1).
        generator: Source of the random transforms.
        degrees: Largest turn either way.
        scale: Largest relative change of size.
        shift: Largest shift as a fraction of the image's side.
    """
    n = len(images)
    uniform = torch.rand(n, 4, generator=generator) * 2 - 1
    angle, zoom = torch.deg2rad(uniform[:, 0] * degrees), 1 + uniform[:, 1] * scale
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * zoom
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) * zoom, torch.sin(angle) * zoom
    theta[:, :, 2] = uniform[:, 2:] * 2 * shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return (
        F.grid_sample(images + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        - 1
    )


DATASET = Dataset(
    name="digits",
    class_names=tuple(map(str, range(10))),
    load=load_splits,
    augment=jitter,
    vae_steps=3000,
    dit_steps=10_000,
    dit_variants=32,
    methods={"dm": "distilled"},
)
