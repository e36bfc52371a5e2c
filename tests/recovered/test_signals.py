"""Signals, kills and second processes lose no image that was recovered."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.crash import RECIPE, after_some_images, crash
from diver_trt.recovered.distilled_input import DistilledInput
from tests.conftest import DISTILLED, ROOT, default_signals
from tests.recovered.commands import journal_keys, recover

pytestmark = pytest.mark.slow

IN_FRONT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""
"""Code that restores signals which a process in the background or under nohup inherits ignored."""


def started(
    source: Path, output: Path, *options: str, after_images: int = 1
) -> subprocess.Popen[str]:
    """Start a recovery as a process of its own and wait until it has some images on disk."""
    command = [
        sys.executable,
        "-c",
        f"{IN_FRONT}from diver_trt.cli import main; main()",
        "recover",
        str(source),
        str(output),
        "--batch",
        "2",
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=default_signals,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "journal.jsonl").exists() and len(
            (output / "journal.jsonl").read_text().splitlines()
        ) > after_images:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_current_batch(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = started(DISTILLED, tmp_path / "out")
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    keys = journal_keys(tmp_path / "out")
    assert 0 < len(keys) < 100
    assert len(keys) % 2 == 0
    assert (
        f"interrupted: {len(keys)} of 100 images are done; the same command resumes it" in printed
    )
    assert "Traceback" not in printed


def test_a_stop_request_while_a_batch_is_read_waits_for_that_batch(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = DistilledInput.read

    def counted(self: DistilledInput, sample: Any) -> Any:
        reads.append(sample)
        return read(self, sample)

    @contextmanager
    def asked_while_the_fifth_is_read() -> Iterator[Callable[[], bool]]:
        yield lambda: len(reads) >= 5

    monkeypatch.setattr(DistilledInput, "read", counted)
    monkeypatch.setattr("diver_trt.cli.recover.stop_requested", asked_while_the_fifth_is_read)
    result = recover(few, tmp_path / "out", "--batch", 3)
    assert (result.exit_code, len(journal_keys(tmp_path / "out"))) == (130, 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_first_batch_every_signal_interrupts_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    asking = (
        f"run.check_images = lambda *_, **__: (signal.raise_signal({int(number)}), time.sleep(60))"
    )
    code = (
        f"{IN_FRONT}import time; from diver_trt.cli import main; "
        f"from diver_trt.recovered import run; {asking}; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "recover",
        str(DISTILLED),
        str(tmp_path / "out"),
        *RECIPE,
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=default_signals
    )
    assert (result.returncode, result.stderr) == (130, "diver-trt: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_five_kills_lose_nothing(tmp_path: Path) -> None:
    """`benchmarks/crash.py` kills many more."""
    outcome = crash(DISTILLED, tmp_path, kills=5, seed=1, wait=after_some_images(40, Random(1)))
    assert outcome.kills == 5
    assert outcome.early < 5
    assert (outcome.doubles, outcome.lost, outcome.differences) == ((), (), ())


def test_a_run_that_had_finished_does_not_count_as_killed(few: Path, tmp_path: Path) -> None:
    runs = iter(range(10))

    def after_the_end(process: subprocess.Popen[bytes], output: Path) -> None:
        if next(runs) < 2:
            process.wait()

    outcome = crash(few, tmp_path, kills=1, seed=1, wait=after_the_end)
    assert (outcome.runs, outcome.kills, outcome.early, outcome.late) == (3, 1, 1, 0)
