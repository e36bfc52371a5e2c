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
the next batch is denoised, so the `ImageDone` of each comes between later events; a `Skipped` comes
for every image that is left out.

To stop, leave the loop; closing the generator frees the model. At `BatchStarts` no denoising step
is wasted, which is where the first Ctrl-C should stop. At any other event, and with an exception
such as the KeyboardInterrupt of a second Ctrl-C, the current batch is lost and no more: closing
writes the images of the batches before it, also those whose `ImageDone` had not come.
Either way the same job in the same folder resumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from diver_trt.distilled.dataset import Sample
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
class ImageDone:
    """An image is recovered and on disk.

    Attributes:
        sample: The distilled image that it was made from.
        path: The recovered image.
        engine: What recovered it, as the manifest records it.
    """

    sample: Sample
    path: Path
    engine: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image is left out.

    Attributes:
        sample: The distilled image.
        problem: Why, as the manifest records it.
    """

    sample: Sample
    problem: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image is recovered or left out.

    Attributes:
        manifest: The manifest, which is written last.
        contents: What a gallery shows of the dataset; None if an earlier run finished it.
    """

    manifest: Path
    contents: Contents | None = field(default=None, compare=False)


Event = Opened | BatchStarts | StepDone | ImageDone | Skipped | Finished
