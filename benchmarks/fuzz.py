"""Damaged files for every reader: the targets of `tests/fuzzing.py`, in much larger numbers.

Every input follows from the seed, its target and its number, so that a defect can be reproduced.
Memory is limited, so that an input that makes a reader allocate gigabytes counts as a defect too;
so does a warning.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random

from tests.fuzzing import TARGETS, DefectError, Target, Trial

EXTRA_BYTES = 2 << 30
SHOWN_DEFECTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"
        trials = [
            (target, Trial(target, Path(folder) / str(number)))
            for number, target in enumerate(TARGETS)
        ]
        limit = virtual_bytes() + EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        started, total, defects = time.monotonic(), 0, 0
        print(
            "| target | inputs | refused | accepted | slowest, ms | defects |\n"
            "|---|---:|---:|---:|---:|---:|"
        )
        for number, (target, trial) in enumerate(trials):
            inputs = options.inputs // len(TARGETS) + (number < options.inputs % len(TARGETS))
            defects += attempt_all(target, trial, inputs, options.seed)
            total += inputs
    minutes, peak = (
        (time.monotonic() - started) / 60,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    print(
        f"\n{total:,} inputs of {len(TARGETS)} targets in {minutes:.1f} minutes, "
        f"peak memory {peak / 1e6:,.0f} MB: {defects} defects"
    )
    sys.exit(1 if defects else 0)


def attempt_all(target: Target, trial: Trial, inputs: int, seed: int) -> int:
    """Try a target's inputs, print its row, and return the number of defects."""
    refused, accepted, slowest, defects = 0, 0, 0.0, 0
    for number in range(inputs):
        try:
            outcome = trial.attempt(Random(f"{seed}/{target.name}/{number}"))
        except DefectError as defect:
            defects += 1
            if defects <= SHOWN_DEFECTS:
                print(f"{target.name}, input {number}: {defect}", file=sys.stderr)
            continue
        accepted, refused, slowest = (
            accepted + outcome.accepted,
            refused + (not outcome.accepted),
            max(slowest, outcome.seconds),
        )
    print(
        f"| {target.name} | {inputs:,} | {refused:,} | {accepted:,} | {1000 * slowest:,.0f} "
        f"| {defects} |",
        flush=True,
    )
    return defects


def virtual_bytes() -> int:
    """Return how much address space this process has already."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
