"""Recovering every distilled image several times, each time with noise of its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from diver_trt.distilled.dataset import Dataset, Sample
from diver_trt.distilled.options import require_count
from diver_trt.errors import UsageError, shown_value
from diver_trt.whole_number import whole_number

MAX_COPIES = 1000
"""More images of one distilled image than any trainer wants, so that a typo is refused."""


def with_copies(dataset: Dataset, copies: int) -> Dataset:
    """Return a dataset with every image several times, each with a key of its own (`copy_key`).

    Args:
        dataset: The distilled images.
        copies: How often each is recovered, 1 to `MAX_COPIES`.

    Raises:
        UsageError: If `copies` is not such a number.
        DatasetError: If there would be too many images.
    """
    count = whole_number(copies)
    if count is None or not 1 <= count <= MAX_COPIES:
        raise UsageError(
            f"copies is {shown_value(copies)}; expected a whole number from 1 to {MAX_COPIES:,}"
        )
    require_count(dataset.root, len(dataset.samples) * count)
    classes: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        classes[sample.index].append(sample)
    samples = [
        replace(sample, key=copy_key(index, number, copy, len(members)))
        for index, members in classes.items()
        # Copy by copy, so that the samples of a class are in the order of their keys.
        for copy in range(count)
        for number, sample in enumerate(members)
    ]
    return replace(dataset, samples=tuple(samples), copies=count)


def copy_key(index: int, number: int, copy: int, members: int) -> str:
    """Return the key of a copy, which its noise follows from.

    In a class of n images, copy c of image i is number `c n + i`. Copy 0 is the image itself, so
    the images of a smaller number of copies are among those of a larger one.

    Args:
        index: The class in the dataset's order.
        number: The image in its class, from 0.
        copy: The copy, from 0.
        members: How many images the class has.
    """
    # Not `number * copies + copy`, with which every key would depend on the number of copies.
    return f"{index:05d}/{copy * members + number:05d}"
