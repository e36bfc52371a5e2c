"""Whether ONNX Runtime's threads should spin while they wait: one step on idle and on shared cores.

    python benchmarks/spinning.py [--batch 1] [--rounds 30]

Alternates a step with spinning and one without, first on cores that nothing else uses, then beside
one process per core that computes. Prints milliseconds per step, median and range over the rounds,
and what `cores_are_idle` reports in each phase: spinning is right where it reports True.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.runtime.backends import onnx as onnx_engine
from diver_trt.runtime.cores import PRESSURE, available_cores, cores_are_idle

STEPS = 10
SETTLED_S = 12  # the kernel's figure is an average over ten seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    bundle = Bundle.open(default_bundle())
    step = {spin: opened(bundle, options.batch, spin=spin) for spin in (False, True)}
    print(f"denoiser of {bundle.model_id}, batch {options.batch}, {available_cores()} threads")
    time.sleep(SETTLED_S)
    report("nothing beside it", step, options.rounds)
    with busy(available_cores()):
        time.sleep(SETTLED_S)
        report(f"{available_cores()} busy processes beside it", step, options.rounds)


def opened(bundle: Bundle, batch: int, *, spin: bool) -> Callable[[], None]:
    """Return a function that runs one step."""
    with mock.patch.object(onnx_engine, "cores_are_idle", lambda: spin):
        engine = onnx_engine.OnnxEngine(bundle, "denoiser", batch)
    generator = np.random.default_rng(0)
    for spec in bundle.networks["denoiser"].inputs:
        values = generator.standard_normal(spec.concrete(batch)).astype(spec.dtype)
        engine.write(spec.name, values)
    return engine.run


def report(phase: str, step: dict[bool, Callable[[], None]], rounds: int) -> None:
    times: dict[bool, list[float]] = {False: [], True: []}
    idle = cores_are_idle()
    for _ in range(rounds):
        for spin, run in step.items():
            run()
            started = time.perf_counter()
            for _ in range(STEPS):
                run()
            times[spin].append((time.perf_counter() - started) / STEPS * 1e3)
    print(f"{phase}: cores_are_idle() is {idle} ({pressure()})")
    for spin, taken in times.items():
        print(
            f"  {'spinning' if spin else 'sleeping'}: {statistics.median(taken):.2f} ms "
            f"({min(taken):.2f} to {max(taken):.2f})"
        )


def pressure() -> str:
    try:
        return PRESSURE.read_text().partition(" avg60")[0]
    except OSError:
        return f"no {PRESSURE}"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` cores busy during the block."""
    processes = [multiprocessing.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def compute() -> None:
    while True:
        sum(range(1000))


if __name__ == "__main__":
    main()
