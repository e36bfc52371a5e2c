"""Gaussian noise that belongs to an image, not to its place in a batch."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def sample_noise(seed: int, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the standard normal noise of one sample, float32.

    It follows from `(seed, key)` alone, so neither batch size, order, shard nor restart changes it (per-image seeding as in EDM2).
    The generator is numpy's Philox, seeded by SHA-256 of both; a test pins its values.

    Args:
        seed: Seed of the run, any integer.
        key: Name of the sample within the dataset, such as `"00003/00007"`.
        shape: Shape of one latent, `(c, h, w)`.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, dtype=np.float32)
