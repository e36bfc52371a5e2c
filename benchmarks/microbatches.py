"""Whether each core should take images of its own: whole recoveries with a batch cut and whole.

    python -m benchmarks.microbatches [--batch 2,8,16,100] [--images 100] [--rounds 3]

Alternates a recovery whose batches the cores share image by image with one whose batches they run
together, node by node, on ONNX Runtime. Prints images per second of both, and the median and range
of the rounds' ratios. The images are compared: they are the same to the byte.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import numpy as np

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.runtime.backends import onnx as onnx_engine
from diver_trt.runtime.cores import available_cores
from diver_trt.runtime.microbatches import microbatch_size
from diver_trt.runtime.recoverer import Recoverer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", default="2,8,16,100", help="batch sizes, comma-separated")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = Bundle.open(default_bundle())
    print(f"{options.images} images of {bundle.model_id}, {available_cores()} cores")
    for batch in map(int, options.batch.split(",")):
        compare_cut(bundle, batch, options.images, options.rounds)


def compare_cut(bundle: Bundle, batch: int, images: int, rounds: int) -> None:
    rates: dict[bool, list[float]] = {False: [], True: []}
    pixels = []
    with opened(bundle, batch, cut=False) as whole, opened(bundle, batch, cut=True) as shared:
        for number in range(rounds):
            for cut in (False, True) if number % 2 == 0 else (True, False):
                rate, found = recovered(shared if cut else whole, images)
                rates[cut].append(rate)
                pixels.append(found)
    for found in pixels[1:]:
        np.testing.assert_array_equal(found, pixels[0])
    ratios = [cut / whole for whole, cut in zip(rates[False], rates[True], strict=True)]
    print(
        f"batch {batch}: whole {statistics.median(rates[False]):.1f} images/s, in microbatches of "
        f"{microbatch_size(batch, available_cores())} {statistics.median(rates[True]):.1f}; ratio "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def opened(bundle: Bundle, batch: int, *, cut: bool) -> Recoverer:
    """Open the bundle on ONNX Runtime, with or without microbatches."""
    if cut:
        return Recoverer(bundle, engine="onnx", batch=batch)
    with mock.patch.object(onnx_engine, "microbatch_size", lambda batch, _: batch):
        return Recoverer(bundle, engine="onnx", batch=batch)


def recovered(recoverer: Recoverer, count: int) -> tuple[float, np.ndarray]:
    """Return images per second and the images."""
    side = recoverer.bundle.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = [number % recoverer.bundle.num_classes for number in range(count)]
    started = time.perf_counter()
    found = np.stack([result.image for result in recoverer(list(images), labels)])
    return count / (time.perf_counter() - started), found


if __name__ == "__main__":
    main()
