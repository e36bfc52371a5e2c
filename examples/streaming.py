"""Train on recovered images while they are made: a `Recoverer` behind a PyTorch `DataLoader`.

    python -m examples.streaming
    python -m examples.streaming --workers 1 --epochs 5 --fresh

Nothing is written to the disk. With one worker or more, the next images are recovered in other
processes while the network trains. Each image has the noise that `diver-trt recover` gives it, so
the images do not depend on the number of workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diver_trt import PRESETS, Bundle, Recipe, Recoverer
from diver_trt.digits import default_bundle
from diver_trt.distilled.dataset import Dataset, Sample, read_dataset
from diver_trt.errors import DiverError
from diver_trt.method.schedule import Schedule
from examples.convnet import ConvNet, accuracy
from examples.dataset import load_dataset, to_tensor


class RecoveredStream(IterableDataset[tuple[Tensor, int]]):
    """The images of a distilled dataset, each recovered when it is its turn.

    An item is an image, [3, S, S] float32 in [-1, 1], and its class in the dataset's order. An
    epoch has every image once, in an order of its own. The workers of a DataLoader divide it.

    Args:
        bundle: The exported model.
        dataset: The distilled images.
        recipe: The method's settings.
        seed: Seed of the noise and of the order.
        fresh: Whether each epoch has noise of its own, that of `seed` plus the epoch. If not, an
            image is recovered in the first epoch and kept in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int = 0,
        fresh: bool = False,
    ) -> None:
        self.bundle, self.dataset, self.recipe = bundle, dataset, recipe
        self.seed, self.fresh = seed, fresh
        # Shared memory: workers see the epoch that the training sets, and each other's images. What
        # only one worker had would be lost with it at the end of the epoch, or dealt to another.
        count, side = len(dataset.samples), bundle.image_size
        self._epoch = shared(torch.int64)
        self._images = shared(torch.uint8, count, side, side, 3)
        self._is_kept = shared(torch.bool, count)

    def set_epoch(self, epoch: int) -> None:
        """State which epoch is next, before the loader is iterated over."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        epoch = int(self._epoch)
        mine = self._share(np.random.default_rng((self.seed, epoch)))
        kept = [number for number in mine if self._is_kept[number]]
        for number in kept:
            yield self._item(number)
        there = set(kept)
        missing = [number for number in mine if number not in there]
        if missing:
            for number in self._recovered(missing, self.seed + epoch * self.fresh):
                yield self._item(number)

    def _share(self, rng: np.random.Generator) -> list[int]:
        """Return the numbers of this worker's images, in this epoch's order."""
        order: list[int] = rng.permutation(len(self.dataset.samples)).tolist()
        worker = get_worker_info()
        return order if worker is None else order[worker.id :: worker.num_workers]

    def _recovered(self, numbers: Sequence[int], seed: int) -> Iterator[int]:
        """Recover images and yield the number of each when it is there."""
        samples: list[Sample] = [self.dataset.samples[number] for number in numbers]
        # Opened here, since the engine of another process cannot be used, and closed even where the
        # loader is left in the middle of an epoch.
        with Recoverer(self.bundle, self.recipe, images=len(samples)) as recoverer:
            recovered = recoverer(
                (self.dataset.images.read(sample.position) for sample in samples),
                [sample.label for sample in samples],
                keys=[sample.key for sample in samples],
                seed=seed,
            )
            for number, image in zip(numbers, recovered, strict=True):
                self._images[number] = torch.from_numpy(image.image)
                self._is_kept[number] = not self.fresh
                yield number

    def _item(self, number: int) -> tuple[Tensor, int]:
        (image,) = to_tensor(self._images[number : number + 1].numpy())
        return image, self.dataset.samples[number].index


def shared(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return zeros in memory that worker processes share."""
    values = torch.zeros(shape, dtype=dtype)
    values.share_memory_()  # type: ignore[no-untyped-call]
    return values


def train(
    stream: RecoveredStream, *, workers: int, epochs: int, batch: int = 10
) -> Iterator[ConvNet]:
    """Train a ConvNet-3 and yield it after each epoch."""
    torch.manual_seed(stream.seed)
    net = ConvNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(
        stream, batch_size=batch, num_workers=workers, persistent_workers=workers > 0
    )
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        net.train()
        for images, labels in loader:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield net.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    digits = load_dataset("digits")
    parser.add_argument("--distilled", type=Path, default=digits.distilled("dm", 10))
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--workers", type=int, default=1, help="processes that recover, or 0")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--fresh", action="store_true", help="noise of its own for each epoch")
    args = parser.parse_args(arguments)
    for option, least in (("workers", 0), ("epochs", 1)):
        if (value := getattr(args, option)) < least:
            parser.error(f"--{option} is {value}; expected a whole number, {least} or more")
    try:
        bundle = Bundle.open(default_bundle())
        dataset = read_dataset(args.distilled, bundle)
        recipe = PRESETS["level"].scaled_to(args.steps)
        Schedule(bundle.process, recipe, bundle.layout)  # else only a worker would refuse it
    except DiverError as error:
        parser.error(str(error))
    stream = RecoveredStream(bundle, dataset, recipe, fresh=args.fresh)
    test = digits.load().test
    for epoch, net in enumerate(train(stream, workers=args.workers, epochs=args.epochs), 1):
        print(f"epoch {epoch}: {100 * accuracy(net, test):.1f} % of {len(test)} test digits")


if __name__ == "__main__":
    main()
