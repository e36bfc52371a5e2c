"""A batch on several cores: each core takes some of the images, through all steps on its own.

With one run of the whole batch, all cores share each node of the graph and wait for each other
after it. A step of a small network has hundreds of nodes of a few microseconds, many of which (a
copy, a bias, a small softmax) are not worth sharing. Here the cores wait for each other every few
steps, and what a few images need fits a core's cache (benchmarks/README.md, "Does it pay to cut a
batch?").
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError
from diver_trt.runtime.engine import Conditions, Engine, Latents, copy_checked
from diver_trt.runtime.lifetime import stop_at_end, stopped
from diver_trt.threads import join_all, start_all

LARGEST = 8
"""Maximum number of images in a microbatch.

With more, a core's cache is too small for what passes through (benchmarks/microbatches.py).
"""

LEAD = 8
"""Steps that a core may be ahead of the slowest one, or of a caller who handles a step."""


def microbatch_size(batch: int, cores: int) -> int:
    """Return how many images of a batch a core takes at a time, evenly.

    With fewer images than cores the batch stays whole, for all cores together.
    """
    if batch < cores:
        return batch
    # As few rounds as `LARGEST` allows, and then all equally full.
    rounds = math.ceil(batch / (cores * LARGEST))
    return math.ceil(batch / (cores * rounds))


class MicrobatchedDenoiser:
    """Engines that share the images of a batch; see `Denoiser` for the contract.

    Args:
        engines: The denoiser for one microbatch, opened once for each core that takes some.
        bundle: Its bundle.
        batch: Images per batch.
        table: The step table, [K, C] float32.
        steps: Steps to run, from `steps` down to 1.
    """

    stepwise = True
    ahead = True

    def __init__(
        self,
        engines: Sequence[Engine],
        bundle: Bundle,
        batch: int,
        table: NDArray[np.float32],
        steps: int,
    ) -> None:
        self._engines, self._batch = engines, batch
        self._table, self._steps = table, steps
        size = engines[0].batch
        slots = math.ceil(batch / size) * size
        # Of as many steps as may lie between what the caller sees and what is being written.
        self._latents = np.zeros((LEAD + 2, slots, *bundle.latent_shape), np.float32)
        self._anchor, self._noise = np.zeros((2, slots, *bundle.latent_shape), np.float32)
        # After the buffers: of a batch that no memory holds, not even the slices fit.
        self._microbatches = [slice(first, first + size) for first in range(0, slots, size)]
        self._pairs = [bundle.condition_pair.allocate(size) for _ in engines]
        self._tables: Sequence[Conditions] = ()
        self._null: Conditions = self._pairs[0][:0]
        # No threads: before the first run there is nothing to stop.
        self._lanes = _Lanes(0, 0, lambda *_: None)

    def load(
        self,
        start: Latents,
        anchor: Latents,
        noise: Latents,
        tables: Sequence[Conditions],
        null: Conditions,
    ) -> None:
        """Take a batch."""
        # The threads of a run that was left half-way still use these buffers.
        self._lanes.stop()
        for name, values, buffer in (
            ("latent", start, self._latents[0]),
            ("anchor", anchor, self._anchor),
            ("noise", noise, self._noise),
        ):
            copy_checked(name, values, buffer[: self._batch])
        self._tables, self._null = tables, null

    def run(self) -> Iterator[int]:
        """Run every step, yielding its number when it is done for all images."""
        return self._run(self._steps, self._steps)

    def step(self, k: int, latent: Latents) -> Latents:
        """Run step k alone on another latent."""
        self._lanes.stop()
        self._latents[0, : self._batch] = latent
        for _ in self._run(k, 1):
            pass
        return self.latent()

    def latent(self) -> Latents:
        """Return the latent after the step that was yielded last."""
        self._engines[0].read("next_latent")  # refused if it is closed
        return self._latents[self._lanes.taken % len(self._latents), : self._batch]

    def close(self) -> None:
        """Free the engines."""
        self._lanes.stop()
        for engine in self._engines:
            engine.close()

    def _run(self, first: int, steps: int) -> Iterator[int]:
        self._lanes.stop()
        self._lanes = lanes = _Lanes(
            len(self._engines), steps, lambda lane, done: self._step(lane, first, done)
        )
        try:
            for done in range(steps):
                lanes.take()
                yield first - done
        finally:
            lanes.stop()

    def _step(self, lane: int, first: int, done: int) -> None:
        """Run a lane's images through the step that comes after `done` others."""
        engine, pair, k = self._engines[lane], self._pairs[lane], first - done
        # The latents are a ring: a step reads one place and writes the next.
        source, target = (self._latents[(done + i) % len(self._latents)] for i in (0, 1))
        pair[1] = self._null[k - 1]
        engine.write("coefficients", self._table[k - 1])
        for rows in self._microbatches[lane :: len(self._engines)]:
            # Slots without an image keep what they had; their outputs are not read.
            tables = self._tables[rows]
            if not tables:
                return
            for slot, table in enumerate(tables):
                pair[0, slot] = table[k - 1]
            engine.write("condition", pair)
            engine.write("latent", source[rows])
            engine.write("anchor", self._anchor[rows])
            engine.write("noise", self._noise[rows])
            engine.run()
            target[rows] = engine.read("next_latent")


class _Lanes:
    """Threads that each run all steps, none more than `LEAD` steps ahead of the caller.

    Args:
        count: How many threads.
        steps: How many steps.
        step: Called with the number of the thread and of the steps that it has done.
    """

    def __init__(self, count: int, steps: int, step: Callable[[int, int], None]) -> None:
        self.taken = 0
        self._steps, self._step = steps, step
        self._done = [0] * count
        self._changed = Condition()
        self._stopped = False
        self._failure: BaseException | None = None
        self._process = os.getpid()
        # A generator that is left half-way keeps its threads waiting; they must not keep the
        # process, but end before the libraries that they run in are unloaded.
        self._threads = [
            Thread(target=self._run, args=(lane,), name=f"diver-trt lane {lane}", daemon=True)
            for lane in range(count)
        ]
        if self._threads:
            stop_at_end(self.stop)
        start_all(self._threads, self.stop)

    def take(self) -> None:
        """Return when every thread has done one step more, or raise what one of them raised.

        Raises:
            EngineError: If the threads were stopped: steps that they had run ahead are void.
        """
        with self._changed:
            # The slowest thread decides: the caller is shown a step of the whole batch.
            self._changed.wait_for(lambda: self._stopped or min(self._done) > self.taken)
            if self._stopped:
                raise self._failure or EngineError(
                    "the denoiser was closed, or has begun another run, since this step's run "
                    "began; load the batch again"
                )
            self.taken += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """End every thread after the step that it is in.

        Until then it reads and writes buffers that the caller is about to free or to use again. A
        forked process has no such threads, and stops nothing.
        """
        if os.getpid() != self._process:
            return  # one of them may have held the lock, which nobody would release here
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        join_all(self._threads)
        stopped(self.stop)

    def _run(self, lane: int) -> None:
        try:
            for done in range(self._steps):
                with self._changed:
                    self._changed.wait_for(partial(self._may_run, done))
                    if self._stopped:
                        return
                self._step(lane, done)
                with self._changed:
                    self._done[lane] = done + 1
                    self._changed.notify_all()
        except BaseException as failure:  # the caller's thread raises it
            with self._changed:
                self._failure, self._stopped = failure, True
                self._changed.notify_all()

    def _may_run(self, done: int) -> bool:
        return self._stopped or done <= self.taken + LEAD
