"""Encoding and decoding images one at a time, and detecting images that came out unusable.

On a GPU the activations of several images would be the largest thing on the device. On the CPU both
ONNX Runtime and OpenVINO give the same bytes in batches too, but a batch would gain little: the VAE
runs twice per image where the denoiser runs fifty times. `benchmarks/vae.py` prints how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diver_trt.errors import UsageError
from diver_trt.pixels import Pixels, from_network, square, to_network
from diver_trt.runtime.engine import Engine, Latents

FLAT_LEVELS = 2
"""An image whose values span at most this many of 255 levels counts as blank."""


def encoded(encoder: Engine, images: Sequence[Pixels], size: int) -> Latents:
    """Return z_0 of images, [n, c, h, w] float32.

    Args:
        encoder: The encoder.
        images: The images, [H, W, 3] uint8 each.
        size: Side of the model's images in pixels.

    Raises:
        UsageError: If there are no images.
    """
    if not len(images):
        raise UsageError("got no images; expected one or more")
    latents = []
    for image in images:
        # [H, W, 3] uint8 => [1, 3, S, S] float32
        encoder.write("image", to_network(square(image, size))[None])
        encoder.run()
        latents.append(encoder.read("latent").astype(np.float32))
    return np.concatenate(latents)


def decoded(decoder: Engine, latents: Latents, hint: str) -> Iterator[tuple[Pixels, str | None]]:
    """Yield the image of each latent, [H, W, 3] uint8, and why it is unusable, or None.

    Args:
        decoder: The decoder.
        latents: The latents, [n, c, h, w] float32.
        hint: What to add to the reason.
    """
    for latent in latents:
        decoder.write("latent", latent[None])
        decoder.run()
        # image [1, 3, S, S] => values [3, S, S] float32
        values = decoder.read("image")[0].astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            yield (
                # The cast of NaN to uint8 is undefined, and numpy warns of it.
                from_network(np.nan_to_num(values)),
                f"the decoded image holds NaN or infinite values{hint}",
            )
            continue
        image = from_network(values)
        flat = int(image.max()) - int(image.min()) <= FLAT_LEVELS
        yield image, f"the decoded image is all in one colour{hint}" if flat else None
