"""Checking every image of a distilled dataset before any work, and reporting what was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import Dataset
from diver_trt.distilled.image_doubts import image_doubts
from diver_trt.distilled.source import Checked
from diver_trt.errors import DatasetError
from diver_trt.progress import OnProgress
from diver_trt.recovered.job import mean_clipped

Note = Callable[[str], None]
"""Receives one line of text."""


class Notes:
    """Receiver of notes; without one, doubts about the input become Python warnings.

    Args:
        receive: Receives one line of text, or None.
    """

    def __init__(self, receive: Note | None) -> None:
        self._receive = receive

    def info(self, text: str) -> None:
        """Pass on what was found or what happens."""
        if self._receive:
            self._receive(text)

    def warn(self, text: str) -> None:
        """Pass on why the images may not be what they were taken for."""
        if self._receive:
            self._receive(text)
        else:
            # The warning points at whoever called `recover`: it comes from this method, what calls
            # it, `recover`, and then its caller.
            warnings.warn(text, UserWarning, stacklevel=4)


def check_images(
    dataset: Dataset,
    model: Bundle,
    notes: Notes,
    on_progress: OnProgress,
    *,
    skip_bad: bool = False,
) -> list[Checked]:
    """Report what a dataset was found to be, and check every image of it.

    Raises:
        DatasetError: If an image cannot be read; with `skip_bad` its problem is in the result.
    """
    # A dataset that is one file is named by its path.
    files = dataset.origin.files if dataset.root.is_dir() else ()
    where = f"{dataset.root} ({', '.join(files)})" if files else str(dataset.root)
    notes.info(f"{where}: {dataset.summary}; model {model.model_id} {model.precision}")
    for note in dataset.origin.notes:
        notes.warn(f"note: {note}")
    notes.info("if that is wrong: --format, --classes, --normalisation, --collage")
    checked: list[Checked] = []
    count = len(dataset.images)  # with copies, there are more samples
    on_progress("checking", 0, count)
    for found in dataset.images.check():
        if found.problem and not skip_bad:
            raise DatasetError(found.problem)
        checked.append(found)
        on_progress("checking", len(checked), count)
    if clipped := mean_clipped(checked):
        notes.warn(
            f"{clipped:.1%} of the values lie outside the range of pixels, as unclamped "
            "optimisation leaves them, and are clipped"
        )
    for doubt in image_doubts(dataset, checked):
        notes.warn(f"note: {doubt}")
    return checked
