"""Ctrl-C while TensorRT runs, which calls Python and discards the exceptions raised there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold back the KeyboardInterrupt of a signal until the end of the block.

    A handler runs wherever Python code happens to run: within TensorRT, in its logger and its
    progress monitor. An interrupt that is raised there is printed and dropped, or becomes an error
    of the compiler. So it is raised here, at the end of the block, which may ask whether one is
    held back, in order to end early. Outside the main thread nothing is held back.
    """
    held: list[int] = []
    before: dict[int, Any] = {}
    # Python runs signal handlers in the main thread, and lets no other thread set them:
    # https://docs.python.org/3/library/signal.html#signals-and-threads
    if threading.current_thread() is threading.main_thread():
        for number in signal.valid_signals():
            # The handler that raises KeyboardInterrupt; a signal that is ignored or handled in
            # another way stays so.
            if (handler := signal.getsignal(number)) is signal.default_int_handler:
                before[number] = handler
                signal.signal(number, lambda number, _: held.append(number))
    try:
        yield lambda: bool(held)
    finally:
        for held_back, handler in before.items():
            signal.signal(held_back, handler)
        # In place of whatever the block returned or raised.
        if held:
            raise KeyboardInterrupt
