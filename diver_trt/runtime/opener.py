"""Opening the model of a job, in smaller batches each time that memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from diver_trt.bundle import Bundle
from diver_trt.errors import DeviceMemoryError, EngineError
from diver_trt.recipe import Recipe
from diver_trt.runtime.engine import DEFAULT_BATCH, Placement
from diver_trt.runtime.events import BatchStarts, RecoveredSample, StepDone
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.samples import Sample

if TYPE_CHECKING:
    from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan


class OpenModel(Protocol):
    """What a recovery needs of an open model: `Recoverer` is one, Ray's workers are another.

    Attributes:
        engine: Name of the engine that was opened.
        batch: Images per batch.
        memory: The memory plan that is followed, or None if the engine has none.
    """

    engine: str
    batch: int
    memory: MemoryPlan | None

    @property
    def steps_per_batch(self) -> int:
        """Denoising steps of a batch."""

    def events(
        self, samples: Iterable[Sample]
    ) -> Iterator[BatchStarts | StepDone | RecoveredSample]:
        """Recover samples, which are pulled on the caller's thread; results may come in any order.

        Stopping at `BatchStarts` loses no work.

        Raises:
            EngineError: If the engine fails.
            DeviceMemoryError: If there is no room for such a batch, on the device or on the host.
        """

    def __enter__(self) -> OpenModel: ...

    def __exit__(self, *_: object) -> None: ...


class Opener(Protocol):
    """What opens the model of a recovery."""

    def prepare(self) -> None:
        """Open the model ahead of the first `open`."""

    def open(self) -> OpenModel:
        """Open the model."""

    def halve(self, shortage: DeviceMemoryError) -> None:
        """Halve the batch of the next `open`, or raise if that is impossible."""

    def close(self) -> None:
        """Close a model that was prepared and not opened since."""


class ModelOpener:
    """Opens the model of a job, with half the batch each time that memory runs out.

    It stays on the engine that was opened first.

    Args:
        bundle: The model.
        recipe: The method's settings.
        placement: Where it runs, and within which limits.
    """

    def __init__(self, bundle: Bundle, recipe: Recipe, placement: Placement) -> None:
        self._bundle, self._recipe, self._placement = bundle, recipe, placement
        self._ready: Recoverer | None = None
        self._shortage = ""

    def prepare(self) -> None:
        """Open the model ahead of the first `open`; raises what `open` does."""
        self._ready = self.open()

    def open(self) -> Recoverer:
        """Open the model.

        Raises:
            BundleError: If its files have changed since the export.
            EngineError: If the engine cannot run here.
            DeviceMemoryError: If there is no room even for one image at a time, or for the smallest
                batch that the engine takes.
        """
        recoverer, self._ready = self._ready, None
        while recoverer is None:
            try:
                recoverer = self._open()
            except DeviceMemoryError as error:
                if error.engine:
                    self._placement = replace(self._placement, engine=error.engine)
                # --batch may be far larger than the dataset: halving starts at what would run.
                batch, images = self._placement.batch or DEFAULT_BATCH, self._placement.images
                self._limit(batch if images is None else min(batch, max(1, images)))
                self.halve(error)
            except EngineError as error:
                # TensorRT engines are built for some batches only: a shortage is the real reason
                # why a smaller one was tried.
                if not self._shortage:
                    raise
                raise DeviceMemoryError(
                    f"{self._shortage}; and in smaller batches: {error}"
                ) from error
        # Images of one run come from one engine: `auto` may not choose another one later.
        self._placement = replace(self._placement, engine=recoverer.engine, batch=recoverer.batch)
        return recoverer

    def _open(self) -> Recoverer:
        placement = self._placement
        return Recoverer(
            self._bundle,
            self._recipe,
            engine=placement.engine,
            batch=placement.batch,
            memory_budget=placement.memory_budget,
            images=placement.images,
            trust=placement.trust,
        )

    def halve(self, shortage: DeviceMemoryError) -> None:
        """Halve the batch of the next `open`.

        Raises:
            DeviceMemoryError: If it is one image already; the message is that of the first
                shortage.
        """
        half = (self._placement.batch or DEFAULT_BATCH) // 2
        if not half:
            raise DeviceMemoryError(self._shortage or str(shortage)) from shortage
        self._limit(half)
        if not self._shortage:
            # Only the text is kept: the error's traceback would keep alive what its frames have
            # opened, and with it the memory that is short.
            self._shortage = str(shortage)
            warnings.warn(
                "out of memory: continuing in smaller batches", RuntimeWarning, stacklevel=2
            )

    def close(self) -> None:
        """Close a model that was prepared and not opened since."""
        if self._ready is not None:
            self._ready.close()

    def _limit(self, batch: int) -> None:
        self._placement = replace(self._placement, batch=batch)
