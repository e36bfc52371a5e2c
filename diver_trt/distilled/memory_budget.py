"""A memory limit that several threads share: each takes its part before it allocates, or waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class MemoryBudget:
    """Bytes that may be in use at a time, over all threads.

    Args:
        total: The limit in bytes. Nothing larger may be taken.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = Condition()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and hold them during the block.

        A block must not take a second part: two threads that do so can deadlock.

        Raises:
            ValueError: If `size` exceeds the total, for which it would wait for ever.
        """
        if size > self.total:
            raise ValueError(f"{size} bytes are more than the budget of {self.total}")
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                # All, since the threads wait for different sizes: a single notification could reach
                # one that still lacks room.
                self._changed.notify_all()
