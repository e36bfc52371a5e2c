"""Peak memory, measured in a process of its own for each contestant and batch.

    python -m diver_trt.bench.peaks PEAKS.json < specification.json

The benchmark itself holds several contestants at once, and memory that one of them has freed may
stay with the process. So a child opens one network after the other, alone, and recovers as many
images as the benchmark does. Linux keeps a process's high-water mark and resets it on request;
elsewhere there is one mark for the whole process, and on Windows none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread

import diver_trt
from diver_trt.bench.contestants import Contestant, Specification, contestant_for
from diver_trt.bench.jobs import Work, work_for
from diver_trt.bench.recovery import write_input
from diver_trt.bench.result import RECOVERY
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import DiverError, EngineError, first_line, printable, shown
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.tensorrt.cuda import Cuda, find_gpu, import_cuda

_LOOK_SECONDS = 0.002
_SIGKILL = 9  # not defined in `signal` on Windows
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peak memory by network, and of the whole recovery under `RECOVERY`.

    Attributes:
        host_bytes: Resident memory of the process, weights and Python included; empty on Windows.
        device_bytes: By how much the free memory of the device fell; empty without a device.
    """

    host_bytes: dict[str, int]
    device_bytes: dict[str, int]


def measure_peaks(specification: Specification) -> Peaks:
    """Run a child process and return what it measured.

    Raises:
        EngineError: If the child fails; the message is its own.
    """
    # The child must find this package where its parent did, which may be a checkout.
    places = [str(Path(diver_trt.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    # A file, since libraries print lines of their own on standard output.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peaks.json"
        child = subprocess.run(
            [sys.executable, "-m", "diver_trt.bench.peaks", str(path)],
            input=json.dumps(asdict(specification)),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        )
        _require_success(child)
        found = json.loads(path.read_bytes())
    return Peaks(found["host_bytes"], found["device_bytes"])


def _require_success(child: subprocess.CompletedProcess[str]) -> None:
    """Refuse a child that failed.

    Raises:
        EngineError: If it did; the message is its own.
    """
    if child.returncode < 0:
        # https://docs.python.org/3/library/subprocess.html#subprocess.CompletedProcess.returncode
        number = -child.returncode
        # The OOM killer of Linux sends SIGKILL, which a process cannot handle.
        cause = ", probably for lack of memory" if number == _SIGKILL else ""
        raise EngineError(f"the process that measures memory was killed by signal {number}{cause}")
    if child.returncode != 0:
        # Warnings of libraries come before the message.
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"the process that measures memory failed: {shown(last)}")


class _Meter:
    """High-water marks of the host, and the memory in use on a device that CUDA reports."""

    def __init__(self, *, device: bool) -> None:
        self.peaks = Peaks({}, {})
        # None without an NVIDIA GPU: CUDA reports the memory of its own devices only.
        self._device = _open_device() if device else None
        self._free = self._device.memory()[0] if self._device else 0

    def measure(self, name: str, work: Callable[[], object]) -> None:
        """Run a piece of work and keep its peaks under a name."""
        resettable = self._reset()
        with self._watching() as lowest:
            work()
        # A mark that cannot be reset is the whole process's, and the recovery comes last.
        if resettable or name == RECOVERY:
            mark = _high_water_bytes()
            if mark is not None:
                self.peaks.host_bytes[name] = mark
        if self._device:
            self.peaks.device_bytes[name] = self._free - min(lowest)

    @contextmanager
    def _watching(self) -> Iterator[list[int]]:
        """Look at the device's free memory again and again while the block runs."""
        lowest, done = [self._free], Event()

        def look() -> None:
            while self._device and not done.wait(_LOOK_SECONDS):
                lowest.append(self._device.memory()[0])

        watcher = Thread(target=look)
        watcher.start()
        try:
            yield lowest
        finally:
            done.set()
            watcher.join()

    @staticmethod
    def _reset() -> bool:
        """Set the high-water mark to what is in use now; return whether the system can."""
        try:
            _CLEAR.write_text("5")  # https://docs.kernel.org/filesystems/proc.html
        except OSError:
            return False
        return True


def _open_device() -> Cuda | None:
    try:
        api = import_cuda()
        return Cuda(api) if find_gpu(api) else None
    except DiverError:
        return None


def _high_water_bytes() -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    # Kilobytes on Linux and the BSDs, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_child(specification: Specification) -> Peaks:
    """Open each network alone, recover the images, and return the peaks of each."""
    bundle, batch = Bundle.open(specification.bundle), specification.batch
    recipe = Recipe.from_json(specification.recipe)
    # Before the contestant: a model in torch is on the device from the moment it is loaded.
    meter = _Meter(device=specification.processor == "cuda")
    contestant = contestant_for(specification, bundle)
    work = work_for(bundle, batch, recipe)
    # One network after the other, so that each mark is that of one network.
    for name in NETWORKS:
        meter.measure(name, partial(_run_alone, contestant, name, work))
    with tempfile.TemporaryDirectory() as folder:
        files = write_input(Path(folder) / "in", bundle, specification.images)
        output = Path(folder) / "out"
        meter.measure(RECOVERY, lambda: contestant.recover(files, output, recipe, batch))
    return meter.peaks


def _run_alone(contestant: Contestant, name: NetworkName, work: Work) -> None:
    with contestant.open(name, work) as network:
        if network is not None:
            network()


def main() -> None:
    """Read a specification from standard input, and write the peaks to a file as JSON."""
    given = json.loads(sys.stdin.read())
    if given["model"] is not None:
        # JSON turns tuples into lists.
        given["model"] = tuple(given["model"])
    try:
        peaks = run_child(Specification(**given))
    except DiverError as error:
        sys.exit(printable(first_line(error)))
    Path(sys.argv[1]).write_text(json.dumps(asdict(peaks)))


if __name__ == "__main__":
    main()
