"""Streaming recovered images into a training: whole epochs, the same with any number of workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diver_trt import Bundle, Recipe, Recoverer
from diver_trt.distilled.dataset import Dataset, read_dataset
from examples import streaming
from examples.dataset import load_dataset, to_tensor
from examples.streaming import RecoveredStream

RECIPE = Recipe(steps=2, inherit_step=1, start_step=2, window=(2, 1))

# Other workers would not have the engine that the tests keep to, and another's images differ by
# rounding.
FORK: dict[str, Any] = {"multiprocessing_context": "fork"}

pytestmark = [
    # From Python 3.12 on, forking a process that has threads warns.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # Two are more than the one core that a test has.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def distilled(digits: Bundle) -> Dataset:
    return read_dataset(load_dataset("digits").distilled("dm", 1), digits)


def recovered(bundle: Bundle, dataset: Dataset, seed: int) -> dict[int, Tensor]:
    """The images that a Recoverer makes of the set with a seed, by class."""
    images = [dataset.images.read(sample.position) for sample in dataset.samples]
    with Recoverer(bundle, RECIPE) as recoverer:
        samples = recoverer(images, [sample.label for sample in dataset.samples], seed=seed)
        return {sample.label: to_tensor(sample.image[None])[0] for sample in samples}


def epoch_of(loader: DataLoader[Any]) -> dict[int, Tensor]:
    found = [
        (int(label), image)
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(label for label, _ in found) == list(range(10)), "one digit per class, each once"
    return dict(found)


def require_same(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert all(torch.equal(found[label], image) for label, image in expected.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_image_that_a_recovery_makes(
    digits: Bundle, distilled: Dataset, workers: int
) -> None:
    stream = RecoveredStream(digits, distilled, RECIPE, seed=5)
    loader = DataLoader(stream, batch_size=4, num_workers=workers, **(FORK if workers else {}))
    expected = recovered(digits, distilled, seed=5)
    require_same(epoch_of(loader), expected)
    require_same(epoch_of(loader), expected)


def test_fresh_epochs_have_the_noise_of_the_seed_plus_the_epoch(
    digits: Bundle, distilled: Dataset
) -> None:
    """Also in workers that live on from epoch to epoch."""
    stream = RecoveredStream(digits, distilled, RECIPE, seed=5, fresh=True)
    loader = DataLoader(stream, batch_size=4, num_workers=1, persistent_workers=True, **FORK)
    for epoch in range(2):
        stream.set_epoch(epoch)
        require_same(epoch_of(loader), recovered(digits, distilled, seed=5 + epoch))


def test_the_order_changes_from_epoch_to_epoch(digits: Bundle, distilled: Dataset) -> None:
    stream = RecoveredStream(digits, distilled, RECIPE)
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append([label for _, label in stream])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process opens and closes."""
    events: list[str] = []

    class Watched(Recoverer):
        def __init__(self, *args: Any, **options: Any) -> None:
            events.append("open")
            super().__init__(*args, **options)

        def close(self) -> None:
            events.append("close")
            super().close()

    monkeypatch.setattr(streaming, "Recoverer", Watched)
    return events


def test_images_that_are_kept_need_no_engine(
    digits: Bundle, distilled: Dataset, opened: list[str]
) -> None:
    stream = RecoveredStream(digits, distilled, RECIPE)
    epoch_of(
        DataLoader(stream, num_workers=2, **FORK)
    )  # in workers, which leave what they made to others
    loader = DataLoader(stream)
    epoch_of(loader)
    epoch_of(loader)
    assert opened == []


def test_an_epoch_that_is_left_in_the_middle_closes_its_engine(
    digits: Bundle, distilled: Dataset, opened: list[str]
) -> None:
    stream = RecoveredStream(digits, distilled, RECIPE)
    batches: Iterator[Any] | None = iter(DataLoader(stream, batch_size=4))
    assert batches is not None
    next(batches)
    assert opened == ["open"]
    batches = None
    assert opened == ["open", "close"]
    epoch_of(DataLoader(stream))
    assert opened == ["open", "close", "open", "close"]


def test_workers_open_their_own_engine_while_this_process_has_one_open(
    digits: Bundle, distilled: Dataset
) -> None:
    expected = recovered(digits, distilled, seed=0)
    stream = RecoveredStream(digits, distilled, RECIPE)
    here = iter(stream)
    next(here)
    require_same(epoch_of(DataLoader(stream, num_workers=1, **FORK)), expected)
    assert len(list(here)) == 9


def test_a_stream_can_be_sent_to_workers_that_are_not_forked(
    digits: Bundle, distilled: Dataset
) -> None:
    """As on Windows and macOS, and on Linux from Python 3.14 on."""
    stream = RecoveredStream(digits, distilled, RECIPE)
    here = iter(stream)
    next(here)
    assert ForkingPickler.dumps(stream)


def test_the_example_prints_the_accuracy_of_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    distilled = Path(load_dataset("digits").distilled("dm", 1))
    streaming.main(
        ["--distilled", str(distilled), "--steps", "5", "--workers", "0", "--epochs", "2"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"epoch \d: [\d.]+ % of 360 test digits", line) for line in lines)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--distilled", "nope", "nope: no such file or folder"),
        ("--steps", "1", "steps is 1"),
        ("--steps", "1001", "steps is 1001"),
        ("--workers", "-1", "--workers is -1; expected a whole number, 0 or more"),
        ("--epochs", "0", "--epochs is 0; expected a whole number, 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_in_a_line(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        streaming.main([option, value])
    assert end.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err
