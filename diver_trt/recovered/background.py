"""Writing on a thread beside the engine, which leaves Python's lock to others while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial

from diver_trt.threads import ThreadPool

MOST_WAITING = 256
"""Maximum number of tasks that wait. Several engines can be faster than one writer, and each task
holds an image: 200 MB in all at 512 x 512 pixels.
"""


class Background:
    """One thread that runs tasks one after the other, in the order in which they were added.

    After a task that fails no other one starts; its exception is raised on the thread that checks
    for failures.
    """

    def __init__(self) -> None:
        # One thread: the journal takes one line at a time, and in the order of the images.
        self._thread = ThreadPool(1, "diver-trt writer")
        self._tasks: deque[Future[None]] = deque()
        self._failed = False

    def add(self, task: Callable[[], object]) -> None:
        """Run a task after those added before it; first wait while very many are unfinished."""
        if len(self._tasks) >= MOST_WAITING:
            # Not the oldest: tasks that are done stay in the deque until `check` takes them out.
            wait([self._tasks[-MOST_WAITING]])
        self._tasks.append(self._thread.submit(partial(self._run, task)))

    def check(self) -> None:
        """Look for a failure among the tasks that are done.

        Raises:
            Exception: What a task raised, once.
        """
        while self._tasks and self._tasks[0].done():
            try:
                self._tasks.popleft().result()
            except BaseException:
                # The tasks after it do not run, so they have no failure of their own to report.
                self.wait()
                self._tasks.clear()
                raise

    def wait(self) -> None:
        """Wait for every task, whether it fails or not."""
        wait(self._tasks)

    def close(self) -> None:
        """Wait for every task, and end the thread.

        Raises:
            Exception: What a task raised that was not checked since.
        """
        try:
            self.wait()
            self.check()
        finally:
            self._thread.close()

    def _run(self, task: Callable[[], object]) -> None:
        if self._failed:
            # Never reported: the task that failed comes first.
            raise RuntimeError("a task before this one failed")
        try:
            task()
        except BaseException:
            self._failed = True
            raise
