"""All denoising steps of a batch on TensorRT, as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.errors import EngineError
from diver_trt.runtime.backends.tensorrt.cuda import Cuda, aligned
from diver_trt.runtime.backends.tensorrt.engine import TrtEngine
from diver_trt.runtime.engine import Conditions, Latents


class TrtDenoiser:
    """All denoising steps of a batch, captured once as a CUDA graph and replayed for every batch.

    Step k reads row k - 1 of the coefficient table on the device, and its conditions from
    page-locked host memory: for DiT-XL/2 those of 50 steps are 20 MB per class in fp16, more than a
    small card should keep for a batch, and copying one step's share takes a fraction of a step. The
    latent alternates between two buffers. Where capture is refused, the same calls are enqueued
    step by step.

    Args:
        engine: The denoiser; closed with this.
        cuda: Its stream.
        table: The step table, [K, C] float32.
        steps: Steps to run, from `steps` down to 1.
    """

    def __init__(
        self, engine: TrtEngine, cuda: Cuda, table: NDArray[np.float32], steps: int
    ) -> None:
        self._engine, self._cuda, self._steps, self._batch = engine, cuda, steps, engine.batch
        self._latents = (engine.address("latent"), engine.address("next_latent"))
        self._done = 0
        pair = engine.spec("condition")
        width = pair.concrete(1)[2]
        self._row_bytes = width * np.dtype(pair.dtype).itemsize
        self._classes = cuda.allocate_host((self._batch, steps, width), pair.dtype)
        self._null = cuda.allocate_host((steps, width), pair.dtype)
        # A row is bound where it lies in the table, so each begins at an aligned address.
        self._stride = aligned(table.shape[1] * table.itemsize)
        self._rows = cuda.allocate_host((steps, self._stride // table.itemsize), "float32")
        # [K, C] => [K, stride]: each row padded to the alignment
        self._rows[:, : table.shape[1]] = table[:steps]
        self._table = cuda.allocate(self._rows.nbytes)
        cuda.upload(self._table, self._rows)
        self._loaded: list[Conditions] = []
        self._loaded_null: Conditions | None = None
        # The first run of a context may still allocate, which a capture does not allow.
        self._enqueue_step(1)
        self._cuda.synchronize()
        self._graph = self._capture()

    def load(
        self,
        start: Latents,
        anchor: Latents,
        noise: Latents,
        tables: Sequence[Conditions],
        null: Conditions,
    ) -> None:
        """Bring a batch to the device, and its conditions to where the steps copy them from."""
        self._engine.write("latent", start)
        self._engine.write("anchor", anchor)
        self._engine.write("noise", noise)
        # Copies of the batch before may still read the page-locked tables that are written now.
        self._cuda.synchronize()
        for slot, table in enumerate(tables):
            # Neighbouring batches mostly share their classes. Identity is enough: a table that
            # `_loaded` refers to cannot be freed, and another be at its address.
            if slot >= len(self._loaded) or self._loaded[slot] is not table:
                self._classes[slot] = table[: self._steps]
        if self._loaded_null is not null:
            self._null[:] = null[: self._steps]
        self._loaded, self._loaded_null = list(tables), null
        self._done = 0

    def run(self) -> Iterator[int]:
        """Run every step, yielding its number; a replayed graph yields them all when it is done."""
        replayed = self._graph is not None
        if replayed:
            self._cuda.launch(self._graph)
            self._cuda.synchronize()
        for k in range(self._steps, 0, -1):
            # Also in the middle of a run: the steps copy from memory that `close` has freed.
            if not self._table:
                raise EngineError("the denoiser is closed; open a new one")
            if not replayed:
                self._enqueue_step(k)
                self._cuda.synchronize()
            self._done = self._steps if replayed else self._done + 1
            yield k

    def latent(self) -> Latents:
        """Return the current latent; with a replayed graph, the one after the last step."""
        return self._engine.fetch("next_latent", self._latents[self._done % 2]).astype(
            np.float32, copy=False
        )

    def step(self, k: int, latent: Latents) -> Latents:
        """Enqueue step k alone on another latent; the captured graph keeps its own addresses."""
        # Where step k reads in a run, since `_enqueue_step` binds it by its number.
        source = self._latents[(self._steps - k) % 2]
        self._engine.place("latent", latent, source)
        self._enqueue_step(k)
        self._cuda.synchronize()
        self._done = self._steps - k + 1
        return self.latent()

    @property
    def stepwise(self) -> bool:
        """Whether steps are enqueued one by one, since there is no graph."""
        return self._graph is None

    @property
    def ahead(self) -> bool:
        """Whether the steps are one graph."""
        return self._graph is not None

    def close(self) -> None:
        """Free the graph, the buffers and the engine."""
        if self._graph is not None:
            self._cuda.free_graph(self._graph)
            self._graph = None
        if self._table:
            for address in (
                self._table,
                *(array.ctypes.data for array in (self._classes, self._null, self._rows)),
            ):
                self._cuda.free(address)
            self._table = 0
        self._engine.close()

    def _enqueue_step(self, k: int) -> None:
        """Enqueue step k: its conditions, class then null, and the network on its addresses."""
        pair, offset = self._engine.address("condition"), (k - 1) * self._row_bytes
        stride = self._steps * self._row_bytes
        self._cuda.copy_rows_to_device(
            pair, self._classes.ctypes.data + offset, stride, self._row_bytes, self._batch
        )
        # One row into every slot. A strided copy cannot do this: cudaMemcpy2DAsync refuses a source
        # pitch that is smaller than a row.
        for slot in range(self._batch):
            self._cuda.copy_to_device(
                pair + (self._batch + slot) * self._row_bytes,
                self._null.ctypes.data + offset,
                self._row_bytes,
            )
        done = self._steps - k
        # A step reads one of the two latents and writes the other, in turn.
        self._engine.bind("latent", self._latents[done % 2])
        self._engine.bind("next_latent", self._latents[(done + 1) % 2])
        self._engine.bind("coefficients", self._table + (k - 1) * self._stride)
        self._engine.enqueue()

    def _enqueue_all(self) -> None:
        for k in range(self._steps, 0, -1):
            self._enqueue_step(k)

    def _capture(self) -> Any:
        """Return the steps as a graph, or None where this engine or driver refuses."""
        try:
            if not self._engine.capturable():
                raise EngineError("TensorRT reports that this engine cannot be captured")
            return self._cuda.capture(self._enqueue_all)
        except EngineError as reason:
            warnings.warn(
                f"CUDA graph capture was refused ({reason}); running step by step",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
