"""Gaussian noise that belongs to an image, not to its place in a batch."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import UsageError, shown_value
from diver_trt.whole_number import whole_number

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
"""Seeds that a manifest can hold: whole numbers of 64 bits, as JSON readers of other languages take
them.
"""


def checked_seed(seed: object) -> int:
    """Return a seed as a Python integer; those of numpy and torch are taken too.

    Raises:
        UsageError: If it is not a whole number from -2^63 to 2^63 - 1. A float or a bool would be
            hashed as text and so give other noise than the integer it equals.
    """
    number = whole_number(seed)
    if number is None or not MIN_SEED <= number <= MAX_SEED:
        kind = f" ({type(seed).__name__})" if number is None else ""
        remedy = "" if number is None else ". Take it modulo 2^63."
        raise UsageError(
            f"seed is {shown_value(seed)}{kind}; expected a whole number from -2^63 to 2^63 - "
            f"1{remedy}"
        )
    return number


def sample_noise(seed: int, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the standard normal noise of one sample, float32.

    It follows from `(seed, key)` alone, so neither batch size, order, shard nor restart changes it
    (per-image seeding as in EDM2). The generator is numpy's Philox, seeded by SHA-256 of both; a
    test pins its values.

    Args:
        seed: Seed of the run, from `checked_seed`.
        key: Name of the sample within the dataset, such as `"00003/00007"`.
        shape: Shape of one latent, `(c, h, w)`.
    """
    # A seed cannot contain a slash, so each seed and key give a different text.
    # 16 bytes of it: numpy's SeedSequence, which Philox is seeded through, pools 128 bits.
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    # Philox is counter-based and the same on every platform; numpy keeps a bit generator's stream:
    # https://numpy.org/neps/nep-0019-rng-policy.html
    generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
    # numpy draws float32 by an algorithm of its own: rounded float64 draws are other noise.
    return generator.standard_normal(shape, dtype=np.float32)
