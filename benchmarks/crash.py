"""Kill a recovery at random moments, start it again each time, and see whether anything is lost.

`recover` runs on the hundred distilled digits and is killed (SIGKILL, to its whole process group) at a random moment of its run, as often
as is asked for; then it is left to end. The folder must be the same to the byte as that of a run that nobody disturbed, and no journal may
ever have had a sample twice.
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
from dataclasses import dataclass
from pathlib import Path

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits" / "distilled" / "ipc10"
RECIPE = ("--steps", "4", "--inherit-step", "2", "--start-step", "4", "--window", "3:2")


@dataclass(frozen=True)
class Outcome:
    """What a series of kills led to.

    Attributes:
        kills: How many processes were killed.
        interrupted: How many of them had images on disk, but not all.
        doubles: Samples that a journal had more than once.
        differences: Files that differ from those of an undisturbed run, or are missing, or too many.
    """

    kills: int
    interrupted: int
    doubles: tuple[str, ...]
    differences: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty place to work in")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcome = crash(DIGITS, arguments.folder, arguments.kills, arguments.seed)
    print(f"{outcome.kills} kills, {outcome.interrupted} of them with some images on disk")
    print(f"samples twice in a journal: {len(outcome.doubles)}; files unlike an undisturbed run's: {len(outcome.differences)}")
    sys.exit(bool(outcome.doubles or outcome.differences))


def crash(source: Path, folder: Path, kills: int, seed: int) -> Outcome:
    """Recover a dataset undisturbed and with kills, and compare."""
    chance = random.Random(seed)
    started = time.monotonic()
    subprocess.run(command(source, folder / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    interrupted, doubles = 0, []
    for number in range(kills):
        output = folder / f"killed-{chance.randrange(3)}"  # three folders, so that a finished one is not all that is left to kill
        if (output / "manifest.json").exists():
            shutil.rmtree(output)
        process = subprocess.Popen(command(source, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0.3, 1.1) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        interrupted += (output / "journal.jsonl").exists() and len(keys(output)) > 0
        doubles += [key for key, count in Counter(keys(output)).items() if count > 1]
        print(f"kill {number + 1}: {len(keys(output))} samples in the journal", file=sys.stderr)
    differences = []
    for output in sorted(folder.glob("killed-*")):
        subprocess.run(command(source, output), check=True, capture_output=True)
        differences += different(folder / "whole", output)
    return Outcome(kills, interrupted, tuple(doubles), tuple(differences))


def command(source: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "diver_trt", "recover", str(source), str(output), *RECIPE, "--batch", "4"]


def keys(output: Path) -> list[str]:
    """Return the samples that a journal has, whole lines only."""
    journal = output / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return [json.loads(line)["key"] for line in lines]


def different(first: Path, second: Path) -> list[str]:
    """Return the files that are not the same to the byte in both folders."""
    contents = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (first, second)]
    return [str(path) for path in contents[0].keys() | contents[1].keys() if contents[0].get(path) != contents[1].get(path)]


if __name__ == "__main__":
    main()
