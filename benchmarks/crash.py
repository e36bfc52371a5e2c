"""Kill a recovery at random moments, start it again each time, and see whether anything is lost.

`recover` runs on the hundred distilled digits and is killed (SIGKILL, to its whole process group) at a random moment of the time that a
whole run takes, until it has died of that as often as is asked for; then it is left to end. Every folder that came to its end must be the
same to the byte as that of a run that nobody disturbed, and no journal may ever have had a sample twice, or lost one that it had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits" / "distilled" / "ipc10"
RECIPE = ("--steps", "4", "--inherit-step", "2", "--start-step", "4", "--window", "3:2")

Wait = Callable[["subprocess.Popen[bytes]", Path], None]
"""Waits for the moment at which a run that writes into a folder is to be killed."""


@dataclass(frozen=True)
class Outcome:
    """What a series of kills led to.

    Attributes:
        runs: How many processes were started to be killed.
        kills: How many of them died of it; the others had come to their end.
        early: How many of the kills hit before the run had written its first image.
        late: How many hit when all images were written, but not yet what stands beside them, or the process had not yet gone.
        doubles: Samples that a journal had more than once.
        lost: Samples that it had before a kill and not after it.
        folders: How many folders came to their end and were compared with that of an undisturbed run.
        differences: Files that differ from those of it, or are missing, or too many.
    """

    runs: int
    kills: int
    early: int
    late: int
    doubles: tuple[str, ...]
    lost: tuple[str, ...]
    folders: int
    differences: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty place to work in")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # The first run warms the disk's cache.
    seconds = [timed(DIGITS, arguments.folder / f"timed-{number}") for number in range(3)][1:]
    outcome = crash(
        DIGITS,
        arguments.folder,
        arguments.kills,
        arguments.seed,
        at_any_time(min(seconds), random.Random(arguments.seed)),
    )
    between = outcome.kills - outcome.early - outcome.late
    print(
        f"{outcome.kills} kills in {outcome.runs} runs, of which one left alone takes {min(seconds):.1f} s:"
    )
    print(
        f"{outcome.early} before a run's first image, {between} between images, {outcome.late} after the last one"
    )
    print(f"samples twice in a journal: {len(outcome.doubles)}; lost from one: {len(outcome.lost)}")
    print(
        f"files unlike an undisturbed run's in {outcome.folders} folders: {len(outcome.differences)}"
    )
    sys.exit(bool(outcome.doubles or outcome.lost or outcome.differences))


def crash(source: Path, folder: Path, kills: int, seed: int, wait: Wait) -> Outcome:
    """Recover a dataset undisturbed and with kills, and compare.

    Args:
        source: The dataset.
        folder: Where to work.
        kills: How many runs are to die.
        seed: Seed of the order of the folders.
        wait: Returns when a run is to be killed.

    Raises:
        RuntimeError: A run failed by itself.
    """
    chance = random.Random(seed)
    timed(source, folder / "whole")
    samples = len(keys(folder / "whole"))
    runs, folders, moments = 0, 0, Counter[str]()
    doubles, lost, differences = list[str](), list[str](), list[str]()
    while moments.total() < kills:
        # Three folders, so that a finished one is not all that is left to kill.
        output = folder / f"killed-{chance.randrange(3)}"
        if (output / "manifest.json").exists():
            folders += 1
            differences += ended(source, output, folder / "whole")
        before, runs = keys(output), runs + 1
        if not killed(source, output, wait):
            continue
        found = keys(output)
        moments["late" if len(found) >= samples else "early" if found == before else "between"] += 1
        doubles += [key for key, count in Counter(found).items() if count > 1]
        lost += [key for key in before if key not in found]
        print(
            f"kill {moments.total()}: {len(before)} samples were there, {len(found)} are now",
            file=sys.stderr,
            flush=True,
        )
    for output in sorted(folder.glob("killed-*")):
        folders += 1
        differences += ended(source, output, folder / "whole")
    return Outcome(
        runs,
        moments.total(),
        moments["early"],
        moments["late"],
        tuple(doubles),
        tuple(lost),
        folders,
        tuple(differences),
    )


def ended(source: Path, output: Path, whole: Path) -> list[str]:
    """Leave a recovery to end, return the files that are unlike an undisturbed run's, and delete its folder."""
    timed(source, output)
    differences = different(whole, output)
    shutil.rmtree(output)
    return differences


def killed(source: Path, output: Path, wait: Wait) -> bool:
    """Start a recovery, kill it when it is time, and return whether it died of that."""
    with (output.parent / "log").open("w+b") as log:
        process = subprocess.Popen(
            command(source, output), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait(process, output)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode not in (0, -signal.SIGKILL):
            log.seek(0)
            raise RuntimeError(
                f"a run ended by itself with {process.returncode}: {log.read().decode()[-500:]}"
            )
    return process.returncode == -signal.SIGKILL


def at_any_time(seconds: float, chance: random.Random) -> Wait:
    """Kill at any moment of so many seconds."""
    return lambda *_: time.sleep(chance.uniform(0, seconds))


def after_some_images(most: int, chance: random.Random) -> Wait:
    """Kill as soon as a run has written some images, 0 to `most`, however fast or slow it is."""

    def wait(process: subprocess.Popen[bytes], output: Path) -> None:
        wanted = len(keys(output)) + chance.randint(0, most)
        while process.poll() is None and len(keys(output)) < wanted:
            time.sleep(0.002)

    return wait


def timed(source: Path, output: Path) -> float:
    """Recover undisturbed and return how many seconds it took."""
    started = time.monotonic()
    subprocess.run(command(source, output), check=True, capture_output=True)
    return time.monotonic() - started


def command(source: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "diver_trt",
        "recover",
        str(source),
        str(output),
        *RECIPE,
        "--batch",
        "4",
    ]


def keys(output: Path) -> list[str]:
    """Return the samples that a journal has, whole lines only, or the manifest that has taken its place."""
    with suppress(FileNotFoundError):
        return [
            sample["key"]
            for sample in json.loads((output / "manifest.json").read_bytes())["samples"]
        ]
    with suppress(FileNotFoundError):
        return [
            json.loads(line)["key"]
            for line in (output / "journal.jsonl").read_bytes().split(b"\n")[1:-1]
        ]
    return []


def different(first: Path, second: Path) -> list[str]:
    """Return the files that are not the same to the byte in both folders."""
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (first, second)
    ]
    return [
        str(path)
        for path in contents[0].keys() | contents[1].keys()
        if contents[0].get(path) != contents[1].get(path)
    ]


if __name__ == "__main__":
    main()
