"""The process that has an engine: one Ray actor per GPU, or per few cores.

Errors of this package come back as values: exceptions that Ray carries arrive as a traceback of
many lines.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.errors import (
    BundleError,
    DeviceMemoryError,
    DiverError,
    EngineError,
)
from diver_trt.ray.recover_batch import limit_cores_to_assigned
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan
from diver_trt.runtime.chunks import CHUNK_IMAGES
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.events import RecoveredSample
from diver_trt.runtime.opener import ModelOpener
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.samples import Sample

T = TypeVar("T")

_KINDS: tuple[type[DiverError], ...] = (BundleError, DeviceMemoryError)
"""Errors that keep their class; all others become EngineError."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has opened the model.

    Attributes:
        node: Its machine.
        engine: The engine that was opened.
        batch: Images per batch.
        task: Images that it takes at a time: a batch, or more where networks are loaded in turn.
        memory: The memory plan that it follows, or None.
        warnings: What was reported meanwhile.
    """

    node: str
    engine: str
    batch: int
    task: int
    memory: MemoryPlan | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The images of a task, and what was reported meanwhile."""

    images: list[RecoveredSample]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of this package.

    Attributes:
        node: The machine that it happened on.
        kind: Its class.
        text: Its message.
    """

    node: str
    kind: type[DiverError]
    text: str


class Worker:
    """A model on one GPU or a few cores. Ray runs its methods one after the other."""

    _opener: ModelOpener
    _recoverer: Recoverer

    def version(self) -> tuple[str, str]:
        """Return the machine's name and its version of diver-trt."""
        return socket.gethostname(), __version__

    def open(
        self, bundle: Path, sha256: str, recipe: Recipe, placement: Placement
    ) -> Ready | Failure:
        """Open the model.

        Args:
            bundle: Its folder, the same on every machine.
            sha256: Its identity on the machine that began the run.
            recipe: The method's settings.
            placement: Where it runs, and within which limits.
        """
        return _as_values(lambda: self._open(bundle, sha256, recipe, placement))

    def _open(self, bundle: Path, sha256: str, recipe: Recipe, placement: Placement) -> Ready:
        limit_cores_to_assigned()
        with _reported() as texts:
            # Here, since `Bundle.open` would advise to export the model on this machine.
            if not bundle.is_dir():
                raise BundleError(
                    f"{bundle}: is not on this machine; every machine needs the bundle of this run "
                    "at the same path"
                )
            model = Bundle.open(bundle)
            if model.sha256 != sha256:
                raise BundleError(
                    f"{bundle}: is another bundle (SHA-256 {model.sha256[:12]}…, expected "
                    f"{sha256[:12]}…); copy the bundle of this run to every machine"
                )
            self._opener = ModelOpener(model, recipe, placement)
            self._recoverer = self._opener.open()
        batch = self._recoverer.batch
        return Ready(
            node=socket.gethostname(),
            engine=self._recoverer.engine,
            batch=batch,
            # Networks that take turns on the device are loaded once per task: it is a whole chunk.
            task=batch if self._recoverer.resident else max(batch, CHUNK_IMAGES),
            memory=self._recoverer.memory,
            warnings=tuple(texts),
        )

    def recover(self, samples: list[Sample]) -> Recovered | Failure:
        """Recover samples, in smaller batches if memory runs out."""
        return _as_values(lambda: self._recover(samples))

    def _recover(self, samples: list[Sample]) -> Recovered:
        done: dict[str, RecoveredSample] = {}
        with _reported() as texts:
            # What was done before memory ran out is not done again.
            while missing := [sample for sample in samples if sample.key not in done]:
                try:
                    for event in self._recoverer.events(missing):
                        if isinstance(event, RecoveredSample):
                            done[event.key] = event
                except DeviceMemoryError as shortage:
                    # Before the next one is opened: there is not enough memory for one.
                    self._recoverer.close()
                    self._opener.halve(shortage)
                    self._recoverer = self._opener.open()
        return Recovered(list(done.values()), tuple(texts))


def _as_values(work: Callable[[], T]) -> T | Failure:
    try:
        return work()
    except DiverError as error:
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), EngineError)
        return Failure(socket.gethostname(), kind, str(error))


@contextmanager
def _reported() -> Iterator[list[str]]:
    """Collect the warnings of the block, which nobody reads on a worker."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
