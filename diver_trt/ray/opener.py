"""Opening the model of a recovery on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from diver_trt.bundle import Bundle
from diver_trt.errors import DeviceMemoryError
from diver_trt.ray.cluster import connected, nodes_of
from diver_trt.ray.plan import plan_workers
from diver_trt.ray.pool import WorkerPool
from diver_trt.recipe import Recipe
from diver_trt.runtime.engine import Placement


class RayOpener:
    """Connects to Ray and opens the model on its workers; an `Opener`.

    Args:
        bundle: The model.
        recipe: The method's settings.
        placement: Where each worker runs, and within which limits.
        address: Where Ray is, see `diver_trt.ray.cluster.check_ray`.
        workers: Number of workers, or None for one on each GPU.
        stopping: Whether the run has been asked to stop.
        say: Receives notes.
    """

    def __init__(
        self,
        bundle: Bundle,
        recipe: Recipe,
        placement: Placement,
        address: str,
        workers: int | None,
        stopping: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._bundle, self._recipe, self._placement = bundle, recipe, placement
        self._address, self._workers = address, workers
        self._stopping, self._say = stopping, say
        self._ready: WorkerPool | None = None

    def prepare(self) -> None:
        """Open the model ahead of the first `open`."""
        self._ready = self.open()

    def open(self) -> WorkerPool:
        """Open the model on all workers, and return when the first of them is ready.

        Raises:
            MissingExtraError: If Ray is not installed.
            UsageError: If there are fewer GPUs or cores than workers.
            BundleError, EngineError, DeviceMemoryError: See `WorkerPool`, and if Ray cannot be
                started or reached.
        """
        opened, self._ready = self._ready, None
        return opened or self._open()

    def _open(self) -> WorkerPool:
        with ExitStack() as connection:
            ray = connection.enter_context(connected(self._address))
            plan = plan_workers(self._placement.engine, self._workers, nodes_of(ray))
            self._say(f"Ray: {plan}")
            images = self._placement.images
            # A worker's share of the images, which limits its batch.
            placement = replace(
                self._placement, images=None if images is None else -(-images // plan.count)
            )
            return WorkerPool(
                ray,
                self._bundle,
                self._recipe,
                placement,
                plan,
                stopping=self._stopping,
                say=self._say,
                # Not at the end of this block: the pool closes the connection when it is closed.
                disconnect=connection.pop_all().close,
            )

    def close(self) -> None:
        """Close a model that was prepared and not opened since, and with it Ray."""
        if self._ready is not None:
            self._ready.close()

    def halve(self, shortage: DeviceMemoryError) -> None:
        """Raise the shortage: each worker has halved its own batch already."""
        raise shortage
