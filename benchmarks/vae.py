"""What encoding and decoding in batches would gain on the CPU, and whether bytes stay equal.

    python benchmarks/vae.py [--bundle engines/digits] [--engine openvino] [--rounds 20]

Prints milliseconds per image (median and range over the rounds, batches alternating) for each
network of the VAE and each batch, and whether its images are those of batch 1 to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.digits import default_bundle
from diver_trt.runtime.backends import onnx, openvino

BATCHES = (1, 2, 4, 8, 16)
NETWORKS: tuple[NetworkName, ...] = ("encoder", "decoder")
Opened = tuple[Callable[[], None], Callable[[], NDArray[Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=default_bundle())
    parser.add_argument("--engine", choices=("openvino", "onnx"), default="openvino")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    for network in NETWORKS:
        engines = {batch: opened(bundle, options.engine, network, batch) for batch in BATCHES}
        report(network, engines, options.rounds)


def opened(bundle: Bundle, engine: str, network: NetworkName, batch: int) -> Opened:
    """Return a function that runs a network, and one that returns its output."""
    module = {"openvino": openvino, "onnx": onnx}[engine]
    session: Any = (
        openvino.OpenVinoSession(bundle, 1) if engine == "openvino" else onnx.OnnxSession(bundle, 1)
    )
    with mock.patch.object(module, "run_size", lambda *_: batch):
        network_engine = session.open(network)
    (source,), (output,) = bundle.networks[network].inputs, bundle.networks[network].outputs
    values = np.random.default_rng(0).standard_normal(source.concrete(max(BATCHES)))
    network_engine.write(source.name, values[:batch].astype(source.dtype))
    return network_engine.run, lambda: network_engine.read(output.name).copy()


def report(network: NetworkName, engines: dict[int, Opened], rounds: int) -> None:
    times: dict[int, list[float]] = {batch: [] for batch in engines}
    for _ in range(rounds):
        for batch, (run, _) in engines.items():
            started = time.perf_counter()
            for _ in range(max(BATCHES) // batch):
                run()
            times[batch].append((time.perf_counter() - started) / max(BATCHES) * 1e3)
    single = engines[1][1]()
    for batch, taken in times.items():
        equal = np.array_equal(engines[batch][1]()[:1], single)
        print(
            f"{network}, batch {batch}: {statistics.median(taken):.2f} ms per image "
            f"({min(taken):.2f} to {max(taken):.2f}), {'same bits' if equal else 'OTHER BITS'}"
        )


if __name__ == "__main__":
    main()
