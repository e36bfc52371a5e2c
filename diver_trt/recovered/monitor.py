"""Reporting the progress of a recovery: its engine, and every step."""

from __future__ import annotations

import time

from diver_trt.counted import counted
from diver_trt.progress import OnProgress
from diver_trt.recovered.checking import Notes
from diver_trt.recovered.events import Event, Finished, Opened, StepDone
from diver_trt.recovered.gallery.contents import Contents
from diver_trt.runtime.backends.tensorrt.memory import format_bytes


class Monitor:
    """Reports the engine each time the model is opened, and counts the steps from there.

    Attributes:
        engine: The engine that was opened last, or None.
        batch: Images per batch, or None.
        notes: Receives reports in words.
        on_progress: Receives the progress of each phase.
        start: What sampling starts from, in words.
        contents: What a gallery shows of the dataset, or None if this run has not finished it.
    """

    def __init__(self, notes: Notes, on_progress: OnProgress) -> None:
        self.engine: str | None = None
        self.batch: int | None = None
        self.start = ""
        self.contents: Contents | None = None
        self.notes, self.on_progress = notes, on_progress
        self._step, self._steps = 0, 0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    def on_event(self, event: Event) -> None:
        """Report one event."""
        if isinstance(event, Opened):
            self._opened(event)
        elif isinstance(event, StepDone):
            self._step += 1
            self.on_progress("recovering", self._step, self._steps)
        elif isinstance(event, Finished):
            self.contents = event.contents

    def _opened(self, event: Opened) -> None:
        self.engine, self.batch = event.engine, event.batch
        # From 0 again: after memory ran out, the batches are smaller and more.
        self._step, self._steps = 0, event.batches * event.steps_per_batch
        self.on_progress("recovering", 0, self._steps)
        self.notes.info(
            f"recovering on {event.engine} in {counted(event.batches, 'batch')} of up to "
            f"{event.batch}, {counted(event.steps_per_batch, 'step')} each, {self.start}"
        )
        if event.memory:
            peak = format_bytes(event.memory.peak_bytes)
            self.notes.info(
                f"networks {event.memory.residency}, {peak} of engine memory at the peak"
            )
