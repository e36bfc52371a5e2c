"""What a recovery needs of an engine: the protocols that every backend implements.

`diver_trt.runtime.backends` is the registry of the engines that do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.contract import NetworkName
from diver_trt.errors import DeviceMemoryError, EngineError, UsageError, shown_value
from diver_trt.tensors import describe
from diver_trt.whole_number import at_least

if TYPE_CHECKING:
    from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan

Latents = NDArray[np.float32]
Conditions = NDArray[np.generic]


DEFAULT_BATCH = 8
"""Images per batch where nothing limits it."""
# On two cores nearly as fast as a hundred (benchmarks/README.md, "Does it pay to cut a batch?").


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a recovery runs, and within which limits.

    Attributes:
        engine: A name of `diver_trt.runtime.backends.BACKENDS`, or `"auto"`.
        batch: Images per batch, 1 or more; None leaves it to the engine.
        memory_budget: Limit on engine memory in bytes, or None for what is free on the device.
        images: How many images there are, or None if that is unknown; no batch is larger.
        trust: Whether TensorRT engines that were not built on this machine may run; they are
            recorded as trusted.

    Raises:
        UsageError: If a number is not a whole one, or too small, or `trust` is not a bool.
    """

    engine: str = "auto"
    batch: int | None = None
    memory_budget: int | None = None
    images: int | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("memory_budget", 1), ("images", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            # An int from here on: numpy's cannot be written as JSON.
            object.__setattr__(self, name, at_least(least, name, value, also=", or None"))
        if not isinstance(self.trust, bool):  # a text such as "no" would count as true
            raise UsageError(f"trust is {shown_value(self.trust)}; expected True or False")

    def balanced_batch(self, default: int = DEFAULT_BATCH) -> int:
        """Return the batch for an engine that takes any, evenly filled.

        Ten images become two batches of five, not one of eight and one of two.

        Args:
            default: The largest batch if none was given.
        """
        if self.batch is None:
            if not self.images:
                return default
            # A batch that is not full costs as much as a full one.
            return math.ceil(self.images / math.ceil(self.images / default))
        return min(self.batch, self.images or self.batch)


class Engine(Protocol):
    """One network of a bundle, opened for a fixed batch, its buffers allocated then.

    A protocol and not a base class: the engines have nothing in common but these methods, and
    torch's, which a comparison runs, must not be imported here.
    """

    batch: int

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values of exactly the input's type and shape into its buffer, else EngineError."""

    def run(self) -> None:
        """Run the network once on what its input buffers hold."""

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output as an array on the host; the next run overwrites it."""

    def close(self) -> None:
        """Free everything; closing twice is allowed, using a closed engine raises EngineError."""


class Denoiser(Protocol):
    """All denoising steps of a batch; a backend may replay them as one CUDA graph."""

    @property
    def stepwise(self) -> bool:
        """Whether `latent` shows every step of `run`; a replayed graph only shows the last one."""

    @property
    def ahead(self) -> bool:
        """Whether `run` computes beyond the step it yields, so that no step can be timed alone."""

    def load(
        self,
        start: Latents,
        anchor: Latents,
        noise: Latents,
        tables: Sequence[Conditions],
        null: Conditions,
    ) -> None:
        """Load a batch.

        Latents and noise are [batch, c, h, w] float32; conditions of all steps, [steps, M], per
        image and null class.
        """

    def run(self) -> Iterator[int]:
        """Run the steps from the first down to 1, yielding each one's number when it is done."""

    def latent(self) -> Latents:
        """Return the current latent, [batch, c, h, w] float32; the next step overwrites it."""

    def step(self, k: int, latent: Latents) -> Latents:
        """Run step k alone on another latent, with the loaded batch's anchor, noise and conditions.

        Comparisons ask every engine for the same step of the same latent this way. The next `run`
        needs a `load` before it.

        Returns:
            The next latent, [batch, c, h, w] float32; the next step overwrites it.
        """

    def close(self) -> None:
        """Free everything."""


class Session(Protocol):
    """A bundle opened on one backend for one batch size; it owns what its networks share."""

    name: str
    batch: int

    def open(self, network: NetworkName) -> Engine:
        """Open the encoder, conditioner or decoder for one run (`diver_trt.contract.run_size`).

        Raises:
            BundleError: If the network's files have changed since the export, or belong to another
                network.
            EngineError: If the backend cannot run it here, or its engine is not the one that was
                built.
            DeviceMemoryError: If it does not fit in memory, on the device or on the host.
            MissingExtraError: If the backend's package is not installed.
        """

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> Denoiser:
        """Open the denoiser for steps `steps` down to 1 of a step table, [K, C] float32.

        Raises:
            BundleError, EngineError, DeviceMemoryError, MissingExtraError: See `open`.
        """

    def close(self) -> None:
        """Free what the networks share; they must be closed already."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and the memory plan that it follows if its engines have one."""

    session: Session
    memory: MemoryPlan | None

    @property
    def resident(self) -> bool:
        """Whether all networks stay loaded."""
        return self.memory is None or self.memory.residency == "resident"


@contextmanager
def within_host_memory() -> Iterator[None]:
    """Re-raise MemoryError as DeviceMemoryError, so that the caller retries a smaller batch.

    Raises:
        DeviceMemoryError: If the block raises a MemoryError.
    """
    try:
        yield
    except MemoryError as cause:
        raise DeviceMemoryError(
            f"out of memory on the host ({str(cause) or 'no size is known'}); use a smaller --batch"
        ) from cause


def copy_checked(name: str, values: NDArray[np.generic], buffer: NDArray[np.generic]) -> None:
    """Copy an array into the buffer of the input it is meant for.

    Raises:
        EngineError: If its type or shape differs from the buffer's.
    """
    require_fit(name, values, buffer)
    np.copyto(buffer, values)


def require_fit(name: str, values: NDArray[np.generic], buffer: NDArray[np.generic]) -> None:
    """Refuse an array that is not of an input's type and shape.

    Raises:
        EngineError: If its type or shape differs from the buffer's.
    """
    # numpy would broadcast a smaller array and cast another type, both silently.
    if values.dtype != buffer.dtype or values.shape != buffer.shape:
        raise EngineError(
            f"{name}: got {describe(values)}, but the engine was opened for {describe(buffer)}; "
            "open it for that batch, or convert"
        )
