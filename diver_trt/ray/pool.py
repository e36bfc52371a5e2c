"""Workers that recover the batches of one run; the process that began the run reads and writes.

Not Ray Data: what its datasets read is fixed before they run, so batches that this process reads
as they are needed cannot be their source, and batches of an actor that died wait until that actor
has been restarted somewhere. Here another worker takes them at once.

At most two tasks per worker are under way, so the memory of both sides does not depend on the
number of images.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError, first_line, shown
from diver_trt.ray.plan import WorkerPlan
from diver_trt.ray.worker import Failure, Ready, Recovered, Worker
from diver_trt.recipe import Recipe
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.events import BatchStarts, RecoveredSample, StepDone
from diver_trt.runtime.samples import Sample

_TASKS_PER_WORKER = 2
"""One that is computed, and one that waits there, so that no worker waits for this process."""

_MOST_DEATHS = 3
"""Workers that may die of one task, and per worker of the pool in a row without a result.

A higher number is not chance: the images, the model or the machine would kill every later worker
as well.
"""

_PATIENCE_S = 30.0
"""After so long without any worker a note says what is being waited for."""

_CANNOT_START = "error raised in its creation task"
"""What Ray reports of a worker whose class cannot be loaded or made, before a traceback."""

_SEE_LOGS = "Ray's logs on that node have more, in /tmp/ray/session_latest/logs"

_POLL_S = 0.5


@dataclass(slots=True)
class _Task:
    """Samples that a worker recovers at a time.

    Attributes:
        samples: The samples.
        deaths: How many workers died of it.
    """

    samples: list[Sample]
    deaths: int = 0


@dataclass(slots=True)
class _Member:
    """A worker of the pool.

    Attributes:
        actor: Ray's handle.
        calls: Calls that are not answered yet, oldest first, each with its task; opening has none.
        ready: What it reported when it had opened the model.
    """

    actor: Any
    calls: deque[tuple[Any, _Task | None]] = field(default_factory=deque)
    ready: Ready | None = None


class WorkerPool:
    """A model that is open on several workers; an `OpenModel`.

    Args:
        ray: The module `ray`, connected.
        bundle: The model, whose folder every node has.
        recipe: The method's settings.
        placement: Where each worker runs, and within which limits.
        plan: The workers.
        stopping: Whether the run has been asked to stop; no task is begun then.
        say: Receives notes.
        disconnect: Called when the pool closes.

    Attributes:
        engine: Name of the engine that the workers opened.
        batch: Images per batch.
        memory: The memory plan that the first worker follows, or None.

    Raises:
        EngineError: If no worker can be started, or the engine cannot run there.
        BundleError: If the bundle is missing on a worker, or is another one there.
        DeviceMemoryError: If a single image does not fit into the device's memory.
    """

    def __init__(
        self,
        ray: Any,
        bundle: Bundle,
        recipe: Recipe,
        placement: Placement,
        plan: WorkerPlan,
        *,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
        disconnect: Callable[[], None],
    ) -> None:
        self._ray, self._plan, self._disconnect = ray, plan, disconnect
        self._bundle, self._recipe, self._placement = bundle, recipe, placement
        self._stopping, self._say = stopping, say
        # No retries by Ray: they would wait until the same actor is running again.
        self._actor = ray.remote(Worker).options(
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            max_restarts=0,
            max_task_retries=0,
            # Over all nodes: https://docs.ray.io/en/latest/ray-core/scheduling/index.html#spread
            scheduling_strategy="SPREAD",
        )
        self._members: list[_Member] = []
        self._lost: deque[_Task] = deque()
        self._deaths_in_a_row = 0
        self._alone_since, self._waiting_noted = time.monotonic(), False
        try:
            for _ in range(plan.count):
                self._start()
            while not (first := self._first_ready()):
                # Only openings are in progress, so no image can be ready.
                for _ in self._answers():
                    pass
        except BaseException:
            self.close()
            raise
        self.engine, self.batch, self.memory = first.engine, first.batch, first.memory
        self._task_images = first.task

    @property
    def steps_per_batch(self) -> int:
        """Denoising steps of a batch."""
        return self._recipe.start_step

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for member in self._members:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(member.actor)
        self._members.clear()
        self._disconnect()

    def events(
        self, samples: Iterable[Sample]
    ) -> Iterator[BatchStarts | StepDone | RecoveredSample]:
        """Recover samples and yield the results in the order in which workers return them.

        `BatchStarts` comes when no worker has a task: at the beginning and at the end. The steps of
        a task are reported when it is done.

        Raises:
            EngineError: If an engine fails, or workers die again and again.
            DeviceMemoryError: If a single image does not fit into a device's memory.
        """
        unread = iter(samples)
        yield BatchStarts()
        # A run that is asked to stop still waits for the batches that workers have begun.
        while not self._stopping() or self._under_way():
            if self._stopping():
                self._withdraw_waiting()
            else:
                self._hand_out(unread)
            if not self._lost and not self._under_way():
                break
            for images in self._answers():
                # A task may be several batches, and progress counts the steps of batches.
                for _ in range(self.steps_per_batch * -(-len(images) // self.batch)):
                    yield StepDone()
                yield from images
        yield BatchStarts()

    def _under_way(self) -> bool:
        return any(task for member in self._members for _, task in member.calls)

    def _hand_out(self, unread: Iterator[Sample]) -> None:
        """Give tasks to workers that have room for one, the least busy first."""
        for busy in range(_TASKS_PER_WORKER):
            for member in self._members:
                if member.ready is None or len(member.calls) > busy:
                    continue
                task = self._next_task(unread)
                if task is None:
                    return
                member.calls.append((member.actor.recover.remote(task.samples), task))

    def _next_task(self, unread: Iterator[Sample]) -> _Task | None:
        if self._lost:
            return self._lost.popleft()
        samples = list(islice(unread, self._task_images))
        return _Task(samples) if samples else None

    def _withdraw_waiting(self) -> None:
        """Take back the tasks that no worker has begun."""
        for member in self._members:
            while len(member.calls) > 1:
                # From the end: the first call may have begun.
                call, task = member.calls.pop()
                self._ray.cancel(call)
                if task:
                    self._lost.append(task)

    def _answers(self) -> Iterator[list[RecoveredSample]]:
        """Wait a moment, and yield the images of each task that has been done.

        Raises:
            DiverError: What a worker reported.
        """
        # The oldest call of each: Ray runs the calls of an actor in order.
        waiting = {member.calls[0][0]: member for member in self._members if member.calls}
        # With a time limit, so that a request to stop is noticed and long waiting is reported.
        ready, _ = self._ray.wait(list(waiting), timeout=_POLL_S)
        self._note_waiting()
        for call in ready:
            member = waiting[call]
            try:
                answer = self._ray.get(call)
            # First, since it is a RayError too: the worker lives, and its code raised something.
            except self._ray.exceptions.RayTaskError as error:
                raise EngineError(f"a worker failed: {shown(first_line(error.cause))}") from error
            except self._ray.exceptions.RayError as error:
                self._died(member, error)
                continue
            member.calls.popleft()
            if isinstance(answer, Failure):
                raise answer.kind(f"on {answer.node}: {answer.text}")
            if isinstance(answer, tuple):
                _require_same_version(*answer)
            elif isinstance(answer, Ready):
                self._opened(member, answer)
            else:
                assert isinstance(answer, Recovered)
                self._deaths_in_a_row = 0
                _warn(answer.warnings)
                yield answer.images

    def _first_ready(self) -> Ready | None:
        return next((member.ready for member in self._members if member.ready), None)

    def _start(self) -> None:
        """Add a worker, which starts as soon as the cluster has room for it."""
        member = _Member(self._actor.remote())
        # Answered before `open`, so that another version is reported and not what it breaks there.
        member.calls.append((member.actor.version.remote(), None))
        opening = member.actor.open.remote(
            self._bundle.path.resolve(), self._bundle.sha256, self._recipe, self._placement
        )
        member.calls.append((opening, None))
        self._members.append(member)

    def _opened(self, member: _Member, ready: Ready) -> None:
        _warn(ready.warnings)
        # Images of one run come from one engine: `auto` may not choose another one on some nodes.
        if (first := self._first_ready()) and first.engine != ready.engine:
            raise EngineError(
                f"engine auto is {first.engine} on {first.node} and {ready.engine} on "
                f"{ready.node}; choose one that runs on both with --engine"
            )
        # Workers that start later open this engine, whatever `auto` would be on their nodes.
        self._placement = replace(self._placement, engine=ready.engine)
        member.ready = ready

    def _died(self, member: _Member, error: Exception) -> None:
        """Start another worker in the place of one that died, and keep its tasks for others.

        Raises:
            EngineError: If too many have died.
        """
        self._members.remove(member)
        # It may be alive behind a broken connection.
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)
        if _CANNOT_START in str(error):
            raise EngineError(
                f"a worker cannot start ({shown(str(error).splitlines()[-1])}); install diver-trt "
                f"{__version__} and the extra of its engine on every machine of the cluster"
            )
        tasks = [task for _, task in member.calls if task]
        node = member.ready.node if member.ready else "a node"
        reason = f"a worker on {node} died ({shown(first_line(error))})"
        self._deaths_in_a_row += 1
        if tasks:
            # Only the first was being recovered; the second waited behind it.
            tasks[0].deaths += 1
        if tasks and tasks[0].deaths >= _MOST_DEATHS:
            first = shown(tasks[0].samples[0].key)
            raise EngineError(f"{reason}, the third one on the batch of {first}; {_SEE_LOGS}")
        if self._deaths_in_a_row >= _MOST_DEATHS * self._plan.count:
            raise EngineError(
                f"{reason}, as did {self._deaths_in_a_row - 1} before it; {_SEE_LOGS}"
            )
        warnings.warn(f"{reason}; another does its images", RuntimeWarning, stacklevel=2)
        self._lost.extend(tasks)
        self._start()

    def _note_waiting(self) -> None:
        """Report once, after a while, that no worker has started or has opened the model."""
        if self._first_ready():
            self._alone_since, self._waiting_noted = time.monotonic(), False
        elif not self._waiting_noted and time.monotonic() - self._alone_since > _PATIENCE_S:
            self._waiting_noted = True
            # A worker that has reported its version runs, and only its `open` is unanswered.
            started = any(len(member.calls) == 1 for member in self._members)
            what = "a worker to open the model" if started else f"Ray to start {self._plan}"
            self._say(f"waiting for {what}")


def _require_same_version(node: str, version: str) -> None:
    if version != __version__:
        raise EngineError(
            f"{node} has diver-trt {version}, and this machine {__version__}; install one version "
            "on every machine"
        )


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
