"""Threads that run calls until they are closed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")


class ThreadPool:
    """Threads that take calls in the order in which they come.

    Not a ThreadPoolExecutor, which takes no more calls once the main thread has ended: another
    thread of the program may still be recovering images.

    Args:
        count: How many threads.
        name: What their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        # A pool that is never closed must not keep the process alive; `close` runs at its end.
        self._threads = [
            Thread(target=self._run, name=f"{name} {number}", daemon=True)
            for number in range(count)
        ]
        self._process = os.getpid()
        atexit.register(self.close)
        start_all(self._threads, self.close)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Let a thread call a function."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def map(self, function: Callable[[S], T], values: Iterable[S]) -> list[T]:
        """Return what a function returns for each of some values, or raise what it raises."""
        futures = [self.submit(partial(function, value)) for value in values]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # after a failure, or Ctrl-C

    def close(self) -> None:
        """Wait for every call, and end the threads; closing twice is allowed."""
        # A forked process has the object without its threads.
        if os.getpid() == self._process:
            for _ in self._threads:
                self._calls.put(None)
            join_all(self._threads)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while entry := self._calls.get():
            future, call = entry
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as failure:  # whoever asks for the result raises it
                    future.set_exception(failure)
            del entry, future, call  # the image in them is not kept until the next call


def start_all(threads: Iterable[Thread], stop: Callable[[], None]) -> None:
    """Start threads, or stop those that were started and raise what came in between."""
    try:
        for thread in threads:
            thread.start()
    except BaseException:  # Ctrl-C, or a limit on threads: nobody else can stop them
        stop()
        raise


def join_all(threads: Iterable[Thread]) -> None:
    """Wait for threads to end; those that were never started are passed over."""
    for thread in threads:
        if thread.is_alive():
            thread.join()
