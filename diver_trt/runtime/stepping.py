"""The denoising loop over any engine: each step writes its conditions and its table row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from diver_trt.runtime.engine import Conditions, Engine, Latents
from diver_trt.tensors import TensorSpec

Carry = tuple[str, str]
"""An output and the input that the next run reads it as."""

CARRY: Carry = ("next_latent", "latent")

T = TypeVar("T")


def turns(buffers: dict[str, T], carry: Carry | None) -> list[dict[str, T]]:
    """Return the buffers of the runs that alternate, one set without a carry and two with one.

    In the second set, output and input are swapped: each run's output is the next one's input.

    Args:
        buffers: A buffer for each input and output.
        carry: An output and the input that the next run reads it as, or None.
    """
    if carry is None:
        return [buffers]
    output, source = carry
    return [buffers, {**buffers, output: buffers[source], source: buffers[output]}]


class SteppedDenoiser:
    """One run per step; see `diver_trt.runtime.engine.Denoiser` for the contract.

    Args:
        engine: The denoiser, carrying `next_latent` into `latent`.
        pair: Its condition input, [2, n, M].
        table: The step table, [K, C] float32.
        steps: Steps to run, from `steps` down to 1.
    """

    stepwise = True
    ahead = False

    def __init__(
        self, engine: Engine, pair: TensorSpec, table: NDArray[np.float32], steps: int
    ) -> None:
        self._engine, self._table, self._steps = engine, table, steps
        self._pair = pair.allocate(engine.batch)
        self._tables: Sequence[Conditions] = ()
        self._null: Conditions = self._pair[:0]

    def load(
        self,
        start: Latents,
        anchor: Latents,
        noise: Latents,
        tables: Sequence[Conditions],
        null: Conditions,
    ) -> None:
        """Take a batch."""
        self._engine.write("latent", start)
        self._engine.write("anchor", anchor)
        self._engine.write("noise", noise)
        self._tables, self._null = tables, null

    def run(self) -> Iterator[int]:
        """Run every step, yielding its number."""
        for k in range(self._steps, 0, -1):
            self._run_step(k)
            yield k

    def step(self, k: int, latent: Latents) -> Latents:
        """Run step k alone on another latent."""
        self._engine.write("latent", latent)
        self._run_step(k)
        return self.latent()

    def latent(self) -> Latents:
        """Return the current latent."""
        return self._engine.read("next_latent").astype(np.float32, copy=False)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _run_step(self, k: int) -> None:
        # Copied into one buffer that lives as long as this: a step allocates nothing. In a batch
        # that is not full, the last slots keep what they had; their images are not read.
        for slot, table in enumerate(self._tables):
            self._pair[0, slot] = table[k - 1]
        self._pair[1] = self._null[k - 1]
        self._engine.write("condition", self._pair)
        self._engine.write("coefficients", self._table[k - 1])
        self._engine.run()
