"""Counting the bytes of downloads, in the place of the hub client's own progress bars."""

from __future__ import annotations

from typing import Any

from diver_trt.progress import OnProgress

PHASE = "MB downloaded"


class Transfer:
    """The progress of several files that are downloaded one after the other.

    Args:
        total_bytes: Their sizes together.
        on_progress: Receives it, in MB.
    """

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self._total, self._on_progress = total_bytes, on_progress
        self._before, self._now = 0, 0

    def bar(self) -> type:
        """Return the class of bars for the client, one for each file."""
        from tqdm.auto import tqdm

        count = self._count

        class Bar(tqdm):  # type: ignore[misc]  # tqdm is not typed
            """A bar that draws nothing."""

            def __init__(self, *arguments: Any, **settings: Any) -> None:
                # A tqdm, since the client calls more of it than `update`; disabled, it draws
                # nothing.
                super().__init__(*arguments, **{**settings, "disable": True})

            def update(self, n: float | None = 1) -> None:
                # May be negative: a download that starts anew takes back what it had counted.
                count(int(n or 0))

            def update_transfer(self, n: int) -> None:
                """Take what Xet received, which it passes to `update` when it is written."""

        return Bar

    def file_done(self, size_bytes: int) -> None:
        """Count a file as a whole, whatever its bar has counted."""
        self._before, self._now = self._before + size_bytes, 0
        self._show()

    def _count(self, size_bytes: int) -> None:
        self._now += size_bytes
        self._show()

    def _show(self) -> None:
        done = min(self._before + self._now, self._total)
        # Rounded up, so that a small file is not 0 of 0 MB.
        self._on_progress(PHASE, *(-(-size // 1_000_000) for size in (done, self._total)))
