"""A pool of threads, for as long as any thread of the process runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from diver_trt.threads import ThreadPool


def test_results_come_in_the_order_of_the_values_from_other_threads() -> None:
    barrier = threading.Barrier(3)  # passed only if three calls run at a time

    def number_and_thread(number: int) -> tuple[int, int]:
        barrier.wait(60)
        return number, threading.get_ident()

    with closing(ThreadPool(3, "counting")) as pool:
        numbers, threads = zip(*pool.map(number_and_thread, range(9)), strict=True)
    assert numbers == tuple(range(9))
    assert len(set(threads)) == 3
    assert threading.get_ident() not in threads


def test_a_failure_is_raised_and_what_was_not_begun_is_left() -> None:
    ran, raised = [], threading.Event()

    def fails_at_two(number: int) -> None:
        ran.append(number)
        if number == 2:
            raise ValueError("two")
        if number == 3:
            raised.wait(60)

    with closing(ThreadPool(1, "failing")) as pool:
        with pytest.raises(ValueError, match="two"):
            pool.map(fails_at_two, range(9))
        raised.set()
    assert ran in ([0, 1, 2], [0, 1, 2, 3])


def threads_named(start: str) -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith(start)]


def test_closing_waits_for_every_call_and_ends_the_threads() -> None:
    gate = threading.Event()
    pool = ThreadPool(2, "closing")
    calls = [pool.submit(gate.wait) for _ in range(5)]
    gate.set()
    pool.close()
    pool.close()
    assert [call.result(0) for call in calls] == [True] * 5
    assert not threads_named("closing")


def test_no_thread_is_left_of_a_pool_that_is_interrupted_while_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr("diver_trt.threads.Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        ThreadPool(2, "interrupted")
    assert not threads_named("interrupted")


_MAIN_ENDS = """
import sys, threading
from diver_trt import recover

def work():
    threading.main_thread().join()
    print(recover("digits", sys.argv[1], recipe="matched", engine="onnx").images)

threading.Thread(target=work).start()
"""


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="Python 3.12 starts no thread once the main one has ended",
)
def test_a_thread_recovers_though_the_main_one_has_ended(tmp_path: Path) -> None:
    """The pools of the standard library take no more calls by then."""
    done = subprocess.run(
        [sys.executable, "-c", _MAIN_ENDS, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr


def test_a_pool_that_is_never_closed_ends_what_was_begun_and_lets_the_process_end() -> None:
    code = """
import os, time
from diver_trt.threads import ThreadPool
pool = ThreadPool(1, "open")
pool.submit(lambda: (time.sleep(0.2), os.write(1, b"ended")))
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        raise SystemExit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "ended"), done.stderr
