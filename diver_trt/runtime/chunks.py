"""Samples in batches, and batches in chunks: a phase loads its network once per chunk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from diver_trt.runtime.events import BatchStarts
from diver_trt.runtime.samples import Sample

CHUNK_IMAGES = 64
CHUNK_CLASSES = 16
"""Images and classes per chunk while networks are loaded phase by phase.

The conditions of a chunk's classes wait on the host: those of DiT-XL/2 are 20 MB per class in fp16,
320 MB in all.
"""

Chunk = list[list[Sample]]
"""Batches whose images are encoded, conditioned, denoised and decoded together, phase by phase."""


def chunks(
    samples: Iterator[Sample], batch: int, *, resident: bool
) -> Iterator[BatchStarts | Chunk]:
    """Yield the chunks, and `BatchStarts` before the samples of each batch are pulled.

    Args:
        samples: The samples.
        batch: Images per batch.
        resident: Whether all networks stay loaded; a chunk is then a single batch.
    """
    chunk: Chunk = []
    classes: set[int] = set()
    # Before anything is read, so that a caller can stop without having read an image.
    yield BatchStarts()
    while part := list(islice(samples, batch)):
        if resident:
            yield [part]
        else:
            new = {sample.label for sample in part}
            # A full chunk, or one that would get too many classes, ends before this batch.
            if chunk and (len(chunk) * batch >= CHUNK_IMAGES or len(classes | new) > CHUNK_CLASSES):
                yield chunk
                chunk, classes = [], set()
            chunk.append(part)
            classes |= new
        yield BatchStarts()
    if chunk:
        yield chunk
