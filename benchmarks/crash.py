"""Kill a recovery at random moments, start it again each time, and check that nothing is lost.

`recover` runs on the hundred distilled digits and is killed (SIGKILL, to its whole process group)
at a random moment within the duration of a whole run, until the requested number of runs has died.
Then it is left to finish. Every finished folder must be identical to the byte to that of an
undisturbed run, and no journal may ever contain a sample twice, or lose one.
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
RECIPE = (
    *("--steps", "4", "--inherit-step", "2", "--start-step", "4", "--window", "3:2"),
    # One engine by name: folders of two engines differ, and `auto` depends on what is installed.
    *("--engine", "onnx"),
)

Wait = Callable[["subprocess.Popen[bytes]", Path], None]
"""Waits until it is time to kill a run that writes into a folder."""


@dataclass(frozen=True)
class Outcome:
    """The result of a series of kills.

    Attributes:
        runs: Number of processes started.
        kills: Number of them that died of the kill; the others had finished.
        early: Number of kills before the run had written its first image.
        late: Number of kills after the last image, while companion files were being written or the
            process was ending.
        doubles: Samples that a journal contained more than once.
        lost: Samples that a journal contained before a kill and not after it.
        folders: Number of finished folders, each compared with that of an undisturbed run.
        differences: Files that differ from that run's, are missing, or are additional.
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
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
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
        f"{outcome.kills} kills in {outcome.runs} runs; an undisturbed one takes "
        f"{min(seconds):.1f} s:"
    )
    print(
        f"{outcome.early} before a run's first image, {between} between images, {outcome.late} "
        "after the last one"
    )
    print(f"samples twice in a journal: {len(outcome.doubles)}; lost from one: {len(outcome.lost)}")
    differences = len(outcome.differences)
    print(f"files unlike an undisturbed run's in {outcome.folders} folders: {differences}")
    sys.exit(bool(outcome.doubles or outcome.lost or outcome.differences))


def crash(source: Path, folder: Path, kills: int, seed: int, wait: Wait) -> Outcome:
    """Recover a dataset undisturbed and with kills, and compare.

    Args:
        source: The dataset.
        folder: Where to work.
        kills: Number of runs to kill.
        seed: Seed of the order of the folders.
        wait: Returns when it is time to kill a run.

    Raises:
        RuntimeError: If a run fails by itself.
    """
    chance = random.Random(seed)
    timed(source, folder / "whole")
    samples = len(keys(folder / "whole"))
    runs, folders, moments = 0, 0, Counter[str]()
    doubles, lost, differences = list[str](), list[str](), list[str]()
    while moments.total() < kills:
        # Three folders in different states, so that kills also hit resumed runs.
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
            f"kill {moments.total()}: {len(before)} samples before, {len(found)} now",
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
    """Let a recovery finish, delete its folder, and return its differences from the whole one."""
    timed(source, output)
    differences = different(whole, output)
    shutil.rmtree(output)
    return differences


def killed(source: Path, output: Path, wait: Wait) -> bool:
    """Start a recovery, kill it when `wait` returns, and return whether it died of that."""
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
    """Kill at a random moment within some seconds."""
    return lambda *_: time.sleep(chance.uniform(0, seconds))


def after_some_images(most: int, chance: random.Random) -> Wait:
    """Kill once a run has written a random number of images, 0 to `most`, at any speed."""

    def wait(process: subprocess.Popen[bytes], output: Path) -> None:
        wanted = len(keys(output)) + chance.randint(0, most)
        while process.poll() is None and len(keys(output)) < wanted:
            time.sleep(0.002)

    return wait


def timed(source: Path, output: Path) -> float:
    """Recover undisturbed and return the duration in seconds."""
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
    """Return the samples of a journal's whole lines, or of the manifest that replaced it."""
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
    """Return the files that are not identical to the byte in both folders."""
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
