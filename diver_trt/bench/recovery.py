"""A whole recovery as a job, reading and writing included: the input folder, and one run."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diver_trt.bench.phases import OPENING, Record, seconds_by_phase, timed
from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import distilled_inputs
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.recovered.run import recover

OTHER = "other"
"""What no phase covers: decoding and encoding images, the journal, waiting for the disk."""


Files = Mapping[str, tuple[Path, int]]
"""The file and the label of each image by its key: `"00003/00007"`."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """One whole recovery.

    Attributes:
        seconds: From the call to its return.
        phases: Seconds by phase; they add up to `seconds`. `"opening"` opens the networks.
        images: How many images were written; others came out unusable.
    """

    seconds: float
    phases: dict[str, float]
    images: int

    @property
    def after_start_up(self) -> float:
        """Seconds without the opening of the networks."""
        return self.seconds - self.phases.get(OPENING, 0.0)


def distilled_batch(bundle: Bundle, count: int) -> tuple[tuple[Pixels, ...], tuple[int, ...]]:
    """Return so many distilled images and their labels: the digits, over and over.

    Args:
        bundle: The model; images have its size, labels are classes that it has.
        count: How many.
    """
    inputs = distilled_inputs(bundle, count)
    images = tuple(inputs.images[i % len(inputs)] for i in range(count))
    return images, tuple(inputs.labels[i % len(inputs)] for i in range(count))


def write_input(folder: Path, bundle: Bundle, count: int) -> Files:
    """Write a distilled dataset: PNG files in folders that are numbered as the model's classes.

    Args:
        folder: Where; it is made.
        bundle: The model.
        count: How many images.
    """
    in_class: Counter[int] = Counter()
    files = {}
    for image, label in zip(*distilled_batch(bundle, count), strict=True):
        path = folder / f"{label}" / f"{in_class[label]:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        # The key that a recovery gives the image: it names the output and decides the noise, so
        # torch's loop makes the same image.
        files[f"{label:05d}/{in_class[label]:05d}"] = path, label
        in_class[label] += 1
    return files


def recover_once(
    engine: str, bundle: Bundle, recipe: Recipe, batch: int, source: Path, output: Path
) -> Recovered:
    """Recover a folder into another as `diver-trt recover` does.

    Args:
        engine: A name of `diver_trt.runtime.backends.BACKENDS`.
        bundle: The model.
        recipe: The method's settings.
        batch: Images per batch.
        source: The distilled dataset, from `write_input`.
        output: The folder to write; what is there is deleted first, which does not count.

    Raises:
        EngineError: If the engine cannot run here.
    """
    shutil.rmtree(output, ignore_errors=True)
    checking: list[float] = []

    def on_progress(phase: str, *_: int) -> None:
        if phase == "checking":
            checking.append(time.perf_counter())

    with timed(engine) as record:
        started = time.perf_counter()
        recovery = recover(
            source,
            output,
            bundle=bundle,
            recipe=recipe,
            # `write_input` numbers its folders as the model's classes
            classes="model",
            engine=engine,
            batch=batch,
            on_error="skip",  # a model with random weights may decode to a single colour
            gallery=False,  # what it is compared with writes images alone
            on_note=lambda _: None,
            on_progress=on_progress,
        )
        seconds = time.perf_counter() - started
    # Images are checked outside the engine: only the progress shows this phase.
    record.intervals.append(("reading", checking[0], checking[-1]))
    return Recovered(seconds, phases_of(record, seconds), recovery.images)


def phases_of(record: Record, seconds: float) -> dict[str, float]:
    """Return the seconds of every phase of a run, and of the rest of it."""
    phases = seconds_by_phase(record.intervals)
    return {**phases, OTHER: seconds - sum(phases.values())}
