"""What happens during a recovery: `recover_job` yields these events.

The caller owns the progress bar, the stopwatch and the request to stop:

    with closing(recover_job(job, writer, opener)) as events:
        for event in events:
            if isinstance(event, StepDone):
                bar.advance()
            if isinstance(event, BatchStarts) and stop_requested():
                break

A recovery yields `Opened`, and again whenever memory runs out and the model is opened with a
smaller batch; before each batch `BatchStarts`; then a `StepDone` for every denoising step of the
whole batch; at the very end `Finished`. The images of a batch are written on another thread while
the next batch is denoised.

To stop, leave the loop; closing the generator frees the model. At `BatchStarts` no denoising step
is wasted, which is where the first Ctrl-C should stop. At any other event, and with an exception
such as the KeyboardInterrupt of a second Ctrl-C, the current batch is lost and no more: closing
writes the images of the batches before it.
Either way the same job in the same folder resumes.
"""

from __future__ import annotations

from dataclasses import dataclass

from diver_trt.recovered.gallery.contents import Contents
from diver_trt.runtime.backends.tensorrt.memory import MemoryPlan
from diver_trt.runtime.events import BatchStarts as BatchStarts
from diver_trt.runtime.events import StepDone as StepDone


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The model is open.

    Attributes:
        engine: The engine that runs it, a name of `diver_trt.runtime.backends.BACKENDS`.
        batch: Images per batch.
        steps_per_batch: Denoising steps of a batch.
        images: Images that are still to be recovered.
        memory: What the networks take on the device, or None if the engine does not report it.
    """

    engine: str
    batch: int
    steps_per_batch: int
    images: int
    memory: MemoryPlan | None

    @property
    def batches(self) -> int:
        """Batches that the images fill; fewer come if some of the images cannot be read."""
        return -(-self.images // self.batch)


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image is recovered or left out, and the manifest is written.

    Attributes:
        contents: What a gallery shows of the dataset; None if an earlier run finished it.
    """

    contents: Contents | None


Event = Opened | BatchStarts | StepDone | Finished
