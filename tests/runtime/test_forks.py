"""What processes can do that are forked from one that has recovered images."""

from __future__ import annotations

import sys

import pytest

from tests.runtime.python import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")

_OPENED_AGAIN = """
import os, signal
import numpy as np
from diver_trt import PRESETS, Bundle, Recoverer
from diver_trt.digits import default_bundle

def recovered():
    bundle = Bundle.open(default_bundle())
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    with Recoverer(bundle, PRESETS["matched"].scaled_to(4), engine={engine!r}) as recoverer:
        return [sample.image.tobytes() for sample in recoverer(images, [0, 1, 2])]

def fork(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a process that waits for threads it does not have
        work()
        raise SystemExit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def recover_again():
    assert recovered() == expected

def recover_and_fork():
    recover_again()
    assert fork(recover_again) == 7

expected = recovered()
print(fork(recover_and_fork))
"""


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_forked_process_recovers_what_the_first_one_has_recovered(engine: str) -> None:
    """OpenVINO reuses the threads of closed networks, which a fork does not copy."""
    done = run_python(_OPENED_AGAIN.format(engine=engine))
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


_FORKED_WHILE_LOCKED = """
import os, signal
from threading import Event, Thread
from diver_trt.runtime.microbatches import _Lanes

lanes = _Lanes(1, 100, lambda *_: None)
locked, forked = Event(), Event()

def lock():
    with lanes._changed:
        locked.set()
        forked.wait()

Thread(target=lock).start()
locked.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    raise SystemExit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
forked.set()
"""


def test_a_process_ends_that_is_forked_while_a_thread_recovers() -> None:
    """At its end it would wait for a lock that a thread held which it does not have."""
    done = run_python(_FORKED_WHILE_LOCKED)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


_FORKED_WHILE_OPEN = """
import os
from diver_trt import Bundle, Recipe, Recoverer
from diver_trt.digits import default_bundle
recoverer = Recoverer(Bundle.open(default_bundle()), Recipe(), batch=1)
child = os.fork()
if child == 0:
    raise SystemExit(7)  # frees everything, unlike os._exit
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_ends_though_the_engines_threads_are_not_in_it() -> None:
    done = run_python(_FORKED_WHILE_OPEN)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
