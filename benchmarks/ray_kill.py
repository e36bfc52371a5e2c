"""Kill a node of a Ray cluster at random moments of recoveries, and check that nothing is lost.

A cluster of two nodes runs on this machine. `recover --ray` runs on the hundred distilled digits
with a worker on each node. Once a random number of images is on disk, 0 to 99, and up to half a
second has passed, the second node is killed (SIGKILL to its raylet, and with it its worker); every
second time another node joins. The run must end by itself, and its folder must be identical to the
byte to that of a run without Ray.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crash import DIGITS, different, keys

STARTED = "Ray: 2 workers"
"""What a run reports when it has divided the cluster; from then on a node may die."""


@dataclass(frozen=True)
class Kill:
    """One recovery during which a node was killed.

    Attributes:
        before: Images that were on disk by then.
        hit: Whether a worker died of it before the run had ended.
        differences: Files that differ from those of a run without Ray.
    """

    before: int
    hit: bool
    differences: list[str]


class TwoNodes:
    """A cluster of two nodes, each with the cores that one worker takes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
        )
        self.address: str = self._cluster.address
        self._second: Any = None

    def complete(self) -> None:
        """Add the second node if it is missing."""
        if self._second is None:
            self._second = self._cluster.add_node(**NODE)

    def kill(self) -> None:
        """Kill the second node."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = None

    def close(self) -> None:
        self._cluster.shutdown()


NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with two_nodes() as cluster:
        whole = arguments.folder / "whole"
        subprocess.run(command(whole), check=True, capture_output=True)
        kills = []
        for number in range(arguments.kills):
            kill = killed(
                cluster,
                arguments.folder / "killed",
                whole,
                images=chance.randrange(100),
                pause=chance.uniform(0, 0.5),
                rejoin=number % 2 == 1,
            )
            kills.append(kill)
            print(
                f"killed after {kill.before} images: {'a' if kill.hit else 'no'} worker was "
                f"replaced, {len(kill.differences)} files differ",
                flush=True,
            )
    sys.exit(any(kill.differences for kill in kills))


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handler = signal.getsignal(signal.SIGTERM)
    cluster = TwoNodes()
    try:
        yield cluster
    finally:
        cluster.close()
        signal.signal(signal.SIGTERM, handler)  # every node that is started replaces it


def killed(
    cluster: TwoNodes, output: Path, whole: Path, *, images: int, pause: float, rejoin: bool
) -> Kill:
    """Recover on the cluster, kill its second node, and compare the folder.

    Args:
        cluster: The cluster.
        output: Where to recover; deleted afterwards.
        whole: The folder of a run without Ray.
        images: How many images are on disk when the kill is due.
        pause: Seconds from then to the kill.
        rejoin: Whether another node joins at once.

    Raises:
        RuntimeError: If the run fails.
    """
    cluster.complete()
    with running(cluster, output) as process:
        while process.poll() is None and len(keys(output)) < images:
            time.sleep(0.02)
        time.sleep(pause)
        before = len(keys(output))
        cluster.kill()
        if rejoin:
            cluster.complete()
        _, notes = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the run ended with {process.returncode}: {notes[-500:]}")
    differences = different(whole, output)
    shutil.rmtree(output)
    return Kill(before, " died (" in notes, differences)


@contextmanager
def running(cluster: TwoNodes, output: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a recovery, and wait until it has divided the cluster."""
    process = subprocess.Popen(
        [*command(output), "--ray", cluster.address, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if STARTED in line:
                break
        else:
            raise RuntimeError("".join(lines)[-500:])
        yield process
    finally:
        process.kill()
        process.wait()


def command(output: Path) -> list[str]:
    recover = [sys.executable, "-m", "diver_trt", "recover", str(DIGITS), str(output)]
    # One engine by name: folders of two engines differ, and `auto` depends on what is installed.
    return [*recover, "--engine", "onnx", "--batch", "4"]


if __name__ == "__main__":
    main()
