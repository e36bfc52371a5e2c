"""The distilled images of a job, read while they are recovered: they may have changed by then."""

from __future__ import annotations

from contextlib import suppress

from diver_trt.distilled.dataset import Sample
from diver_trt.errors import DatasetError
from diver_trt.pixels import Pixels
from diver_trt.recovered.job import Job

_TRIED = 16
"""Other images that are tried where one cannot be read."""


class DistilledInput:
    """Reads the distilled images of a job, and refuses those that have changed since the check."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def read(self, sample: Sample) -> Pixels:
        """Return the pixels of a sample, [H, W, 3] uint8.

        Raises:
            DatasetError: If it cannot be read, or is not the image that was checked.
        """
        images, checked = self._job.dataset.images, self._job.checked[sample.position]
        if checked.problem:
            raise DatasetError(checked.problem)
        # The manifest records the hash from the check; one made of other bytes would not match it.
        if images.sha256(sample.position) != checked.sha256:
            path = self._job.base / images.name(sample.position)
            raise DatasetError(
                f"{path}: has changed while it was being recovered; run again on a copy that "
                "nothing modifies"
            )
        return images.read(sample.position)

    def is_gone(self, unreadable: Sample) -> bool:
        """Return whether the whole input has become unreadable, not only this image.

        An unmounted drive is not the fault of one image: leaving its images out one by one would
        finish a dataset without them.
        """
        images, checked = self._job.dataset.images, self._job.checked
        # It was bad at the check already, when the rest could be read.
        if checked[unreadable.position].problem:
            return False
        # By position: copies of one image would be tried in place of others.
        tried = {unreadable.position}
        for position in (sample.position for sample in self._job.samples):
            if position in tried or checked[position].problem:
                continue
            if len(tried) > _TRIED:
                break
            tried.add(position)
            with suppress(DatasetError):
                # One that can still be read shows that the input is there.
                images.sha256(position)
                return False
        return True
