"""A process ends as it should although a daemon thread of it is using engines."""

from __future__ import annotations

import pytest

from tests.runtime.python import run_python


def test_the_end_waits_for_a_thread_in_an_engine_and_lets_none_in() -> None:
    done = run_python("""
import os, threading, time
from diver_trt.runtime.lifetime import in_use, stop_at_end
inside = threading.Event()

def work():
    with in_use():
        inside.set()
        threading.main_thread().join()
        time.sleep(0.2)  # long enough to end the process, were nothing waited for
        os.write(1, b"left ")
    with in_use():
        os.write(1, b"again ")

stop_at_end(lambda: os.write(1, b"stopped"))
threading.Thread(target=work, daemon=True).start()
inside.wait()
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "left stopped", "")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_daemon_thread_that_recovers_does_not_abort_the_process(engine: str) -> None:
    """Where Python 3.13 or earlier ends a thread that is in C++ code, std::terminate is called."""
    done = run_python(f"""
import threading
import numpy as np
from diver_trt import PRESETS, Bundle, Recoverer
from diver_trt.digits import default_bundle

bundle, images = Bundle.open(default_bundle()), np.zeros((8, 32, 32, 3), np.uint8)
images[:, ::2] = 255
steps = threading.Semaphore(0)

def work():
    with Recoverer(bundle, PRESETS["matched"], engine={engine!r}, batch=4) as recoverer:
        while True:
            list(recoverer(images, range(8), on_step=steps.release))

threading.Thread(target=work, daemon=True).start()
for _ in range(30):
    steps.acquire()
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_program_may_recover_while_it_ends() -> None:
    done = run_python("""
import atexit
import numpy as np
from diver_trt import PRESETS, Bundle, Recoverer
from diver_trt.digits import default_bundle

recipe = PRESETS["matched"].scaled_to(4)
# One image at a time, for which no thread is started: Python 3.12 starts none by then.
recoverer = Recoverer(Bundle.open(default_bundle()), recipe, engine="onnx", batch=1)
images = np.zeros((2, 32, 32, 3), np.uint8)
images[:, ::2] = 255
atexit.register(lambda: print(len(list(recoverer(images, [0, 1])))))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
