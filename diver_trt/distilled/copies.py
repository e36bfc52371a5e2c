"""Recovering every distilled image several times, each time with noise of its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from diver_trt.distilled.dataset import Dataset, Sample
from diver_trt.distilled.options import require_count
from diver_trt.errors import UsageError, shown_value

MAX_COPIES = 1000
"""More images of one distilled image than any trainer wants; a typing error should be refused."""


def with_copies(dataset: Dataset, copies: int) -> Dataset:
    """Return a dataset with every image several times.

    Noise follows from a sample's key, so a copy needs a key of its own: in a class of n images,
    copy c of image i is number `c n + i`. The first n keep their keys, so the images of a smaller
    number of copies are among those of a larger one.

    Args:
        dataset: The distilled images.
        copies: How often each is recovered, 1 to `MAX_COPIES`.

    Raises:
        UsageError: If `copies` is not such a number.
        DatasetError: If there would be too many images.
    """
    if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= MAX_COPIES:
        raise UsageError(
            f"copies is {shown_value(copies)}; expected a whole number from 1 to {MAX_COPIES:,}"
        )
    require_count(dataset.root, len(dataset.samples) * copies)
    classes: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        classes[sample.index].append(sample)
    samples = [
        replace(sample, key=f"{index:05d}/{copy * len(members) + number:05d}")
        for index, members in classes.items()
        for copy in range(copies)
        for number, sample in enumerate(members)
    ]
    return replace(dataset, samples=tuple(samples), copies=copies)
