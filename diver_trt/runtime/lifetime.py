"""What becomes of open engines when the process forks, and when it ends.

Up to Python 3.13 a daemon thread that comes back from a call once the process is ending is ended by
pthread_exit, and C++ code that the thread is in then aborts the process:
https://github.com/python/cpython/issues/87135
So the end of the process waits for threads that are in an engine, and lets no daemon thread in.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from diver_trt.runtime.networks import Networks

# Weak, so that networks that nobody refers to any more are freed.
_opened: WeakSet[Networks] = WeakSet()
_stops: list[Callable[[], None]] = []
_changed = threading.Condition()
_uses, _ending = 0, False


def watch(networks: Networks) -> None:
    """Never free these networks where their threads are gone."""
    _opened.add(networks)
    if _ending:
        _keep()


def stop_at_end(stop: Callable[[], None]) -> None:
    """Call a function when the process ends, after all threads have left the engines."""
    _stops.append(stop)


def stopped(stop: Callable[[], None]) -> None:
    """Forget a function of `stop_at_end`."""
    with suppress(ValueError):
        _stops.remove(stop)


@contextmanager
def in_use() -> Iterator[None]:
    """Let the process end only after the block, in which a thread calls engines.

    Raises:
        SystemExit: If the process is ending and this is a daemon thread, which ends by it.
    """
    global _uses
    with _changed:
        if _ending and threading.current_thread().daemon:
            raise SystemExit
        _uses += 1
    try:
        yield
    finally:
        with _changed:
            _uses -= 1
            _changed.notify_all()


@atexit.register
def _end() -> None:
    global _ending
    with _changed:
        _ending = True
        # A daemon thread that ends now may be the last to refer to them.
        _keep()
        _changed.wait_for(lambda: _uses <= 0)
    while _stops:
        _stops.pop()()


def _after_fork() -> None:
    """Forget the threads that a forked process does not have."""
    global _changed, _uses
    _changed, _uses = threading.Condition(), 0
    _stops.clear()
    _keep()  # freeing them would wait for their threads


def _keep() -> None:
    for networks in tuple(_opened):  # another thread may open some meanwhile
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(networks))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
