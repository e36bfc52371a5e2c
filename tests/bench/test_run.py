"""A benchmark of contestants that take known times: what is compared, left out and drawn."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.bench import ceiling, run, timing
from diver_trt.bench.contestants import EngineContestant, Processor, Specification
from diver_trt.bench.jobs import OpenNetwork, Work
from diver_trt.bench.machine import Machine, let_threads_sleep
from diver_trt.bench.peaks import Peaks
from diver_trt.bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plots_of
from diver_trt.bench.recovery import Files, Recovered
from diver_trt.bench.result import RECOVERY, Plan, Result
from diver_trt.bench.run import benchmark, largest_difference
from diver_trt.bundle import Bundle
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import EngineError
from diver_trt.recipe import Recipe

IDLE = Machine("2026-11-25 12:00", "a machine", None, 2, {}, 0.0, {"Python": "3"})


class Network:
    runs, run_size, ahead = 1, 1, False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        time.sleep(0.001)
        return self.seconds


class Contestant:
    """Every network takes the same time, a recovery ten times as much."""

    is_torch = steps_in_python = False

    def __init__(
        self, name: str, seconds: float, *, processor: Processor = "cpu", lacks: str = ""
    ) -> None:
        self.name, self._seconds, self.processor, self._lacks = name, seconds, processor, lacks

    @contextmanager
    def open(self, name: NetworkName, work: Work) -> Iterator[OpenNetwork]:
        if name == self._lacks:
            raise EngineError(f"no room for the {name}\nuse a smaller batch")
        network = Network(self._seconds)
        yield network
        network.seconds = float("nan")  # a network that is closed must not be timed

    def recover(self, files: Files, output: Path, recipe: Recipe, batch: int) -> Recovered:
        if self._lacks == RECOVERY:
            raise EngineError("no room for a recovery")
        for key in files:
            (output / key).parent.mkdir(parents=True, exist_ok=True)
            level = round(1000 * self._seconds)
            Image.new("RGB", (4, 4), (level, 0, 0)).save(output / f"{key}.png")
        phases = {"opening": 1.0, "denoiser": 10 * self._seconds}
        return Recovered(sum(phases.values()), phases, len(files))

    def specification(self, batch: int, images: int, recipe: Recipe) -> Specification:
        return Specification(
            bundle="", batch=batch, images=images, recipe=recipe.to_json(), engine=self.name
        )


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product of 1 TFLOP/s, free copies, and a process that measures no memory."""

    def peaks(specification: Specification) -> Peaks:
        if specification.engine == "crashes":
            raise EngineError("the process that measures memory failed: out of memory")
        return Peaks(dict.fromkeys((*NETWORKS, "recovery"), specification.images), {})

    monkeypatch.setattr(run, "measure_peaks", peaks)
    monkeypatch.setattr(run, "measure_product", lambda: 1e12)
    monkeypatch.setattr(ceiling, "measure_product", lambda: 1e12)
    monkeypatch.setattr(ceiling, "measure_copy", lambda *_, **__: 1e-12)
    # The times are known, and repeats would not change them.
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.0)


def result_of(
    digits: Bundle,
    *contestants: Contestant | EngineContestant,
    recipe: Recipe | None = None,
    machine: Machine = IDLE,
    device: ceiling.Ceiling | None = None,
) -> Result:
    plan = Plan(
        bundle=digits,
        recipe=recipe or Recipe(),
        contestants=contestants,
        batches=[1, 4],
        seconds=0,
    )
    return benchmark(plan, machine, device)


def test_others_are_compared_with_the_first(digits: Bundle) -> None:
    result = result_of(digits, Contestant("slow", 0.020), Contestant("fast", 0.010))
    assert len(result.rows) == 2 * 2 * (len(NETWORKS) + 1)
    for row in result.rows:
        if row.contestant == "slow":
            assert row.ratio is None
        else:
            assert row.ratio is not None
            assert (row.ratio.low, row.ratio.median, row.ratio.high) == pytest.approx((2, 2, 2))
    assert (result.notes, result.absent) == ([], [])


def test_a_limit_is_the_work_at_the_rate_of_the_product(digits: Bundle) -> None:
    result = result_of(digits, Contestant("one", 0.010))
    rows = {(row.subject, row.batch): row for row in result.rows}
    step = rows["denoiser", 1]
    assert step.cost is not None
    assert step.of_limit == pytest.approx(step.cost.flops / 1e12 / 0.010)
    parts = {name: rows[name, 1].limit for name in NETWORKS}
    whole = rows["recovery", 1].limit
    assert whole is not None
    # Eight images of eight classes, and the null class.
    times = {"encoder": 8, "conditioner": 9, "denoiser": 8 * 50, "decoder": 8}
    expected = sum(limit.seconds * times[name] for name, limit in parts.items() if limit)
    assert whole.seconds == pytest.approx(expected)
    assert rows["recovery", 1].timing.median == pytest.approx(0.1)  # the opening is left out
    assert rows["recovery", 1].host_bytes == 8  # the child had as many images


def test_what_fails_is_left_out_with_its_reason(digits: Bundle) -> None:
    result = result_of(
        digits, Contestant("whole", 0.01), Contestant("half", 0.01, lacks="decoder"),
        Contestant("crashes", 0.01),
    )  # fmt: skip
    assert {row.contestant for row in result.rows} == {"whole", "half"}
    assert not [row for row in result.rows if (row.contestant, row.subject) == ("half", "decoder")]
    assert result.absent[:2] == [
        "crashes, batch 1: the process that measures memory failed: out of memory",
        "half, decoder, batch 1: no room for the decoder",
    ]
    with pytest.raises(EngineError, match="nothing could be measured"):
        result_of(digits, Contestant("crashes", 0.01))


def test_a_recovery_that_fails_costs_only_its_own_row(digits: Bundle) -> None:
    fails = Contestant("fails", 0.01, lacks=RECOVERY)
    result = result_of(digits, fails, Contestant("a", 0.01), Contestant("b", 0.01))
    assert [row.contestant for row in result.rows if row.subject == "decoder"] == [
        "fails", "a", "b", "fails", "a", "b"
    ]  # fmt: skip
    recoveries = [row for row in result.rows if row.subject == RECOVERY]
    assert [row.contestant for row in recoveries] == ["a", "b", "a", "b"]
    # Every ratio and difference is against the first contestant.
    assert {(row.ratio, row.largest_difference) for row in recoveries} == {(None, None)}
    assert result.absent == [
        f"fails, recovery, batch {batch}: no room for a recovery" for batch in (1, 4)
    ]


class Interrupted(Contestant):
    """Ctrl-C is pressed when a network is opened, or when a recovery begins."""

    def __init__(self, at: str) -> None:
        super().__init__("interrupted", 0.010)
        self._at = at

    @contextmanager
    def open(self, name: NetworkName, work: Work) -> Iterator[OpenNetwork]:
        if name == self._at:
            raise KeyboardInterrupt
        with super().open(name, work) as network:
            yield network

    def recover(self, files: Files, output: Path, recipe: Recipe, batch: int) -> Recovered:
        raise KeyboardInterrupt


def test_an_interrupted_benchmark_keeps_what_it_has_measured(digits: Bundle) -> None:
    result = result_of(digits, Contestant("whole", 0.020), Interrupted(at="recovery"))
    assert result.interrupted
    assert [(row.subject, row.batch) for row in result.rows[::2]] == [
        (name, 1) for name in NETWORKS
    ]
    assert result.notes == ["interrupted: recovery, batch 1 and what follows was not measured"]
    assert not result_of(digits, Contestant("whole", 0.020)).interrupted


def test_a_benchmark_that_has_measured_nothing_is_only_interrupted(digits: Bundle) -> None:
    with pytest.raises(KeyboardInterrupt):
        result_of(digits, Interrupted(at="encoder"))


def test_a_gpu_without_a_ceiling_has_no_limits(digits: Bundle) -> None:
    result = result_of(digits, Contestant("gpu", 0.01, processor="cuda"))
    assert all(row.limit is None for row in result.rows)
    assert any("no ceiling was measured on the GPU" in note for note in result.notes)


@pytest.mark.parametrize(
    ("engine", "processor"),
    [
        ("rtx", "cuda"),
        ("onnx-cuda", "cuda"),
        ("onnx", "cpu"),
        ("openvino", "cpu"),
        ("openvino-gpu", "other"),
        ("openvino-npu", "other"),
    ],
)
def test_only_engines_on_nvidia_s_gpus_have_the_ceilings_of_cuda(
    digits: Bundle, engine: str, processor: str
) -> None:
    assert EngineContestant(engine, digits).processor == processor


def test_another_accelerator_gets_no_limit(digits: Bundle) -> None:
    other = Contestant("openvino-gpu", 0.01, processor="other")
    result = result_of(digits, other, device=ceiling.host_ceiling())  # stands for a GPU's
    assert all(row.limit is None for row in result.rows)
    assert any("that is not NVIDIA's" in note for note in result.notes)


def test_a_machine_that_is_busy_or_unsteady_is_noted(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_product", lambda: 0.5e12)
    busy = Machine("", "", None, 2, {"OMP_NUM_THREADS": "1"}, 0.9, {})
    notes = result_of(digits, Contestant("one", 0.01), machine=busy).notes
    assert any("load average 0.90 on 2 cores" in note for note in notes)
    assert any("changed by -50%" in note for note in notes)
    assert any("OMP_NUM_THREADS is 1, but the machine has 2 cores" in note for note in notes)


def test_threads_sleep_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_threads_sleep()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("ACTIVE", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    let_threads_sleep()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")


def test_the_difference_of_two_recoveries(tmp_path: Path) -> None:
    for name, level in (("a", 7), ("b", 250)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((2, 2, 3), level, np.uint8)).save(tmp_path / name / "0.png")
    assert largest_difference(tmp_path / "a", tmp_path / "b", ["0", "1"]) == 243
    assert largest_difference(tmp_path / "a", tmp_path / "b", ["1"]) is None


def test_plots_lie_within_their_frame_with_the_limit_above(digits: Bundle) -> None:
    result = result_of(digits, Contestant("slow", 0.5), Contestant("fast", 0.010))
    plots = list(plots_of(result.rows, ["slow", "fast"]))
    assert [plot.subject for plot in plots] == [*NETWORKS, "recovery"]
    for plot in plots:
        limit, slow, fast = plot.lines
        assert (limit.dashed, slow.dashed, fast.dashed) == (True, False, False)
        for line in plot.lines:
            assert len(line.points) == 2
            assert all(LEFT <= x <= WIDTH - RIGHT for x, _ in line.points)
            assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in line.points)
        # Upwards is a smaller y: the faster one lies higher.
        assert all(a[1] > b[1] for a, b in zip(slow.points, fast.points, strict=True))
        assert [label for _, label in plot.batches] == ["1", "4"]


def test_python_has_no_part_in_steps_that_are_computed_ahead(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A batch of 1 is not cut for two cores, one of 4 is.
    monkeypatch.setattr("diver_trt.runtime.backends.onnx.available_cores", lambda: 2)
    onnx = EngineContestant("onnx", digits)
    result = result_of(digits, onnx, recipe=Recipe().scaled_to(4))
    rows = {(row.subject, row.batch): row for row in result.rows}
    assert rows["denoiser", 1].python_s is not None
    assert rows["denoiser", 4].python_s is None


def test_engines_with_different_ceilings_have_limits_of_their_own(digits: Bundle) -> None:
    contestants = [
        Contestant("onnx", 0.01),
        Contestant("openvino", 0.01),
        Contestant("onnx-cuda", 0.01, processor="cuda"),
    ]
    faster = replace(ceiling.host_ceiling(), flops_per_second=1e13)
    names = [one.name for one in contestants]
    for plot in plots_of(result_of(digits, *contestants, device=faster).rows, names):
        *limits, _, _, gpu = plot.lines
        assert [line.dashed for line in limits] == [True, True]
        # Upwards is a smaller y.
        assert limits[0].points[0][1] > limits[1].points[0][1]
        assert limits[1].colour == gpu.colour
