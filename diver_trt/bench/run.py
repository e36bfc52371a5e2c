"""A benchmark from beginning to end: every network and the whole recovery, batch by batch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diver_trt.bench.ceiling import (
    Ceiling,
    Limit,
    host_ceiling,
    limit_of,
    measure_product,
    sum_of_limits,
)
from diver_trt.bench.contestants import Contestant
from diver_trt.bench.cost import Cost, count
from diver_trt.bench.graph import Graph, read_graph
from diver_trt.bench.jobs import OpenNetwork, Work, python_overhead, work_for
from diver_trt.bench.machine import Machine
from diver_trt.bench.peaks import Peaks, measure_peaks
from diver_trt.bench.recovery import Files, Recovered, write_input
from diver_trt.bench.result import RECOVERY, Plan, Result, Row
from diver_trt.bench.timing import Job, Ratio, Timing, alternate, speed_ratio
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.counted import counted
from diver_trt.errors import EngineError, first_line
from diver_trt.progress import OnProgress

RECOVERY_SHARE = 2
"""Parts of a batch's time that its recovery gets; each network gets one."""
DRIFT = 0.1
"""A larger change of the matrix product's rate during the run is noted."""


def benchmark(
    plan: Plan,
    machine: Machine,
    device_ceiling: Ceiling | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Result:
    """Measure everything in a plan, or until it is interrupted.

    Args:
        plan: What to measure.
        machine: The machine, as inspected before measuring.
        device_ceiling: The NVIDIA GPU's ceilings, or None where they cannot be measured: what runs
            there then gets no limit.
        on_progress: Receives how far it has come.

    Raises:
        EngineError: If nothing at all could be measured.
        BundleError: If the bundle has changed since the export.
        KeyboardInterrupt: If it is interrupted before the first network has been measured.
    """
    result = Result(plan, machine)
    result.notes.extend(_doubts(machine))
    on_progress("ceilings", 0, 1)
    host = host_ceiling()
    run = _Run(result, host, device_ceiling, on_progress)
    try:
        for batch in plan.batches:
            run.measure_batch(batch)
    except KeyboardInterrupt:
        if not result.rows:
            raise
        result = replace(result, interrupted=True)
        result.notes.append(f"interrupted: {run.measuring} and what follows was not measured")
    if not result.rows:
        raise EngineError("\n".join(["nothing could be measured", *result.absent]))
    drift = measure_product() / host.flops_per_second - 1
    if abs(drift) > DRIFT:
        result.notes.append(
            f"the rate of the matrix product changed by {drift:+.0%} from the beginning to the "
            "end: the machine was not steady, and percentages of the limit are off by as much"
        )
    processors = {contestant.processor for contestant in plan.contestants}
    result.ceilings.extend([host.description] if "cpu" in processors else [])
    result.ceilings.extend([device_ceiling.description] if device_ceiling else [])
    if "cuda" in processors and device_ceiling is None:
        result.notes.append(
            "no ceiling was measured on the GPU, so what runs there gets no limit; "
            "`--against torch` measures them"
        )
    if "other" in processors:
        result.notes.append(
            "no ceiling can be measured on a GPU or NPU that is not NVIDIA's, so what runs there "
            "gets no limit"
        )
    return result


def _doubts(machine: Machine) -> Iterator[str]:
    """Yield what casts doubt on every figure that this machine gives."""
    if machine.busy:
        yield (
            f"the machine was busy before this began: load average {machine.load_average:.2f} on "
            f"{counted(machine.cores, 'core')}; times are too long, and ratios are off too, since "
            "contestants wait for their threads in different ways"
        )
    for name, number in machine.threads.items():
        if number != str(machine.cores):
            yield (
                f"{name} is {number}, but the machine has {counted(machine.cores, 'core')}: NumPy "
                "and torch follow it, but not every engine does"
            )


class _RecoveryError(EngineError):
    """The failure of a contestant's recovery."""

    def __init__(self, contestant: Contestant, reason: str) -> None:
        super().__init__(reason)
        self.contestant = contestant


class _Run:
    """The benchmark on its way: ceilings, graphs, and rows so far.

    Attributes:
        measuring: What is measured now, in words.
    """

    measuring = ""

    def __init__(
        self, result: Result, host: Ceiling, device: Ceiling | None, on_progress: OnProgress
    ) -> None:
        self._result, self._plan = result, result.plan
        self._ceilings = {"cpu": host, "cuda": device}
        self._on_progress = on_progress
        self._first = self._plan.contestants[0].name
        bundle = self._plan.bundle
        self._graphs: dict[NetworkName, Graph] = {
            name: read_graph(bundle.verified(name)) for name in NETWORKS
        }
        shares = len(self._plan.batches) * (len(NETWORKS) + RECOVERY_SHARE)
        self._share_s = self._plan.seconds / shares
        self._done, self._parts = 0, len(self._plan.batches) * (len(NETWORKS) + 2)
        for name, graph in self._graphs.items():
            # Which operators are unknown does not depend on the size.
            for kind, number in count(graph, 1).uncounted.items():
                result.notes.append(
                    f"{name}: the work of {number} operators {kind} is not counted, so its limit "
                    "is too low"
                )

    def measure_batch(self, batch: int) -> None:
        """Measure memory, every network and the recovery at one batch size."""
        plan = self._plan
        work = work_for(plan.bundle, batch, plan.recipe)
        self._step(f"memory, batch {batch}")
        peaks: dict[str, Peaks] = {}
        for contestant in plan.contestants:
            try:
                specification = contestant.specification(batch, plan.images_in(batch), plan.recipe)
                # In a child, and first: what fails or is killed there is left out, and the others
                # are measured.
                peaks[contestant.name] = measure_peaks(specification)
            except EngineError as error:
                self._leave_out(contestant, f"batch {batch}", error)
        present = [one for one in plan.contestants if one.name in peaks]
        limits: dict[tuple[str, NetworkName], Limit] = {}
        for name in NETWORKS:
            self._step(f"{name}, batch {batch}")
            self._measure_network(name, work, present, peaks, limits)
        self._step(f"recovery, batch {batch}")
        if present:
            self._measure_recovery(batch, present, peaks, limits)

    def _step(self, text: str) -> None:
        self.measuring = text
        self._on_progress(text, self._done, self._parts)
        self._done += 1

    def _leave_out(self, contestant: Contestant, what: str, error: EngineError) -> None:
        self._result.absent.append(f"{contestant.name}, {what}: {first_line(error)}")

    def _measure_network(
        self,
        name: NetworkName,
        work: Work,
        contestants: Sequence[Contestant],
        peaks: dict[str, Peaks],
        limits: dict[tuple[str, NetworkName], Limit],
    ) -> None:
        batch = len(work.labels)
        with ExitStack() as stack:
            networks: dict[str, OpenNetwork] = {}
            for contestant in contestants:
                try:
                    # All stay open together: rounds alternate between them.
                    network = stack.enter_context(contestant.open(name, work))
                except EngineError as error:
                    self._leave_out(contestant, f"{name}, batch {batch}", error)
                    continue
                if network is not None:
                    networks[contestant.name] = network
            if not networks:
                return
            timings = dict(
                zip(networks, alternate(list(networks.values()), self._share_s), strict=True)
            )
        for contestant in contestants:
            if contestant.name not in networks:
                continue
            cost, limit = self._limit(contestant, name, networks[contestant.name])
            if limit is not None:
                limits[contestant.name, name] = limit
            self._result.rows.append(
                Row(
                    subject=name,
                    batch=batch,
                    contestant=contestant.name,
                    timing=timings[contestant.name],
                    images=batch,
                    cost=cost,
                    limit=limit,
                    ratio=self._ratio(timings, contestant.name),
                    python_s=self._python_seconds(
                        contestant, name, networks[contestant.name], work
                    ),
                    host_bytes=peaks[contestant.name].host_bytes.get(name),
                    device_bytes=peaks[contestant.name].device_bytes.get(name),
                )
            )

    def _limit(
        self, contestant: Contestant, name: NetworkName, network: OpenNetwork
    ) -> tuple[Cost | None, Limit | None]:
        """Return the work of a bundle's network and its limit; torch does not run the bundle."""
        if contestant.is_torch:
            return None, None
        cost = count(self._graphs[name], network.run_size)
        ceiling = self._ceilings.get(contestant.processor)
        limit = None if ceiling is None else limit_of(cost, ceiling).times(network.runs)
        return cost.times(network.runs), limit

    def _python_seconds(
        self, contestant: Contestant, name: NetworkName, network: OpenNetwork, work: Work
    ) -> float | None:
        # A denoiser that computes ahead runs a loop of its own, which this does not measure.
        if name != "denoiser" or not contestant.steps_in_python or network.ahead:
            return None
        job = python_overhead(self._plan.bundle, work)
        (timing,) = alternate([job], seconds=0)
        return timing.median

    def _measure_recovery(
        self,
        batch: int,
        contestants: Sequence[Contestant],
        peaks: dict[str, Peaks],
        limits: dict[tuple[str, NetworkName], Limit],
    ) -> None:
        plan, images = self._plan, self._plan.images_in(batch)
        with tempfile.TemporaryDirectory(prefix="diver-trt-bench-") as folder:
            files = write_input(Path(folder) / "distilled", plan.bundle, images)
            outputs = {one.name: Path(folder) / f"{i}" for i, one in enumerate(contestants)}
            try:
                timings, middles = self._time_recoveries(contestants, files, outputs, batch)
            except _RecoveryError as error:
                failed = error.contestant
                self._leave_out(failed, f"recovery, batch {batch}", error)
                # Again without it: rounds in alternation need every contestant.
                if others := [one for one in contestants if one is not failed]:
                    self._measure_recovery(batch, others, peaks, limits)
                return
            differences = {
                name: largest_difference(outputs[name], outputs[self._first], list(files))
                for name in outputs
                if self._first in outputs and name != self._first
            }
        classes = len({label for _, label in files.values()}) + 1  # the null class too
        for contestant in contestants:
            middle = middles[contestant.name]
            if (lost := images - middle.images) > 0:
                self._result.notes.append(
                    f"{contestant.name}, batch {batch}: {lost} of {images} images were in a single "
                    "colour or not finite, and were not written"
                )
            self._result.rows.append(
                Row(
                    subject=RECOVERY,
                    batch=batch,
                    contestant=contestant.name,
                    timing=timings[contestant.name],
                    images=images,
                    limit=self._recovery_limit(contestant, batch, images, classes, limits),
                    ratio=self._ratio(timings, contestant.name),
                    host_bytes=peaks[contestant.name].host_bytes.get(RECOVERY),
                    device_bytes=peaks[contestant.name].device_bytes.get(RECOVERY),
                    phases=middle.phases,
                    largest_difference=differences.get(contestant.name),
                )
            )

    def _time_recoveries(
        self,
        contestants: Sequence[Contestant],
        files: Files,
        outputs: dict[str, Path],
        batch: int,
    ) -> tuple[dict[str, Timing], dict[str, Recovered]]:
        """Recover in alternation; return each one's timing, and its recovery of median duration.

        Raises:
            _RecoveryError: If a contestant cannot recover.
        """
        runs: dict[str, list[Recovered]] = {one.name: [] for one in contestants}

        def job_of(contestant: Contestant) -> Job:
            def job() -> float:
                output = outputs[contestant.name]
                try:
                    done = contestant.recover(files, output, self._plan.recipe, batch)
                except EngineError as error:
                    raise _RecoveryError(contestant, str(error)) from error
                runs[contestant.name].append(done)
                return done.after_start_up

            return job

        jobs = [job_of(contestant) for contestant in contestants]
        timings = dict(zip(runs, alternate(jobs, RECOVERY_SHARE * self._share_s), strict=True))
        middles = {}
        for name, timing in timings.items():
            # The last ones: `alternate` does not count those that warm up.
            measured = runs[name][-len(timing.seconds) :]
            measured.sort(key=lambda one: one.after_start_up)
            middles[name] = measured[len(measured) // 2]
        return timings, middles

    def _recovery_limit(
        self,
        contestant: Contestant,
        batch: int,
        images: int,
        classes: int,
        limits: dict[tuple[str, NetworkName], Limit],
    ) -> Limit | None:
        """Return the limit of a recovery: of every network, as often as it runs."""
        # A batch that is not full has as many steps.
        batches = -(-images // batch)
        times = {
            # The limits are those of the rows above, of `batch` images or classes.
            "encoder": images / batch,
            "conditioner": classes / batch,
            "denoiser": batches * self._plan.recipe.start_step,
            "decoder": images / batch,
        }
        parts = [
            limits[contestant.name, name].times(times[name])
            for name in NETWORKS
            if (contestant.name, name) in limits
        ]
        return sum_of_limits(parts) if len(parts) == len(NETWORKS) else None

    def _ratio(self, timings: dict[str, Timing], name: str) -> Ratio | None:
        """Return a contestant's speed against the first's, which may lack this network."""
        if name == self._first or self._first not in timings:
            return None
        return speed_ratio(timings[name], timings[self._first])


def largest_difference(one: Path, other: Path, keys: Sequence[str]) -> int | None:
    """Return the largest difference of a pixel value between two recoveries, 0 to 255.

    Args:
        one: A folder of recovered images.
        other: The other folder.
        keys: The images: PNG files `KEY.png`, of which those in both folders are compared.

    Returns:
        The difference, or None if no image is in both.
    """
    differences = []
    for pair in ([folder / f"{key}.png" for folder in (one, other)] for key in keys):
        if all(path.exists() for path in pair):
            # Differences of uint8 would wrap around.
            ours, theirs = (np.asarray(Image.open(path)).astype(int) for path in pair)
            differences.append(int(np.abs(ours - theirs).max()))
    return max(differences, default=None)
