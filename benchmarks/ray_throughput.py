"""Images per second of two Ray workers beside one process, and the memory of the reading process.

Both recover 1,000 digits: one process with two threads, and two workers with one thread each. They
alternate, and the rate counts from the first image that is on disk to the last one, which leaves
the start out. Then both recover 1,000 and 10,000 digits, and the peak memory of the
process that began the run is read; its shared memory is Ray's object store, and not counted.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crash import DIGITS, RECIPE, different, keys

RAY = ("--ray", "local", "--workers", "2")
FULL = ("--engine", "onnx")


@dataclass(frozen=True)
class Run:
    """One recovery.

    Attributes:
        rate: Images per second, from the first image on disk to the last one.
        peak_bytes: Peak memory of the process, without memory that it shares.
    """

    rate: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=10, help="of the hundred digits")
    parser.add_argument("--many", type=int, default=100, help="copies of the run for the memory")
    arguments = parser.parse_args()
    folder, copies = arguments.folder, arguments.copies
    ratios = []
    for _ in range(arguments.rounds):
        alone = recovered(folder / "alone", copies, FULL)
        with_ray = recovered(folder / "ray", copies, (*FULL, *RAY))
        assert not different(folder / "alone", folder / "ray")
        ratios.append(with_ray.rate / alone.rate)
        print(
            f"one process: {alone.rate:.1f} images/s, two workers: {with_ray.rate:.1f}, ratio "
            f"{ratios[-1]:.2f}",
            flush=True,
        )
        for name in ("alone", "ray"):
            shutil.rmtree(folder / name)
    print(f"median ratio {statistics.median(ratios):.2f}")
    # Few steps: memory depends on the number of images, not on what is computed.
    for count in (copies, arguments.many):
        for name, options in (("one process", ()), ("two workers", RAY)):
            run = recovered(folder / "memory", count, (*RECIPE, *options))
            shutil.rmtree(folder / "memory")
            print(f"{100 * count:,} images, {name}: peak of {run.peak_bytes / 1e6:.0f} MB")


def recovered(output: Path, copies: int, options: tuple[str, ...]) -> Run:
    """Recover copies of the digits and measure.

    Raises:
        RuntimeError: If the run fails.
    """
    command = [sys.executable, "-m", "diver_trt", "recover", str(DIGITS), str(output)]
    process = subprocess.Popen(
        [*command, "--copies", str(copies), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal, first, last, peak = output / "journal.jsonl", None, 0.0, 0
    while process.poll() is None:
        # The journal has a line for the run and one for each image; it goes when all is done.
        if first is None and journal.exists() and (before := len(keys(output))):
            first = time.monotonic(), before
        if journal.exists():
            last = time.monotonic()
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.05)
    assert process.stderr is not None
    if process.returncode != 0 or first is None:
        raise RuntimeError(process.stderr.read()[-500:])
    started, before = first
    return Run((100 * copies - before) / (last - started), peak)


def private_bytes(pid: int) -> int:
    """Return the resident memory of a process that it does not share, or 0 if it has ended."""
    try:
        status = Path("/proc", str(pid), "status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("RssAnon"))
    return int(fields["RssAnon"].split()[0]) * 1024 if fields else 0


if __name__ == "__main__":
    main()
