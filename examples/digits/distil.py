"""Distil the digits from random noise with distribution matching on a ConvNet-3.

The method is DM (Zhao & Bilen 2023, arXiv 2110.04181).

    python examples/digits/distil.py --output examples/digits/distilled

Writes `ipc1/{class}/{number}.png` and `ipc10/...`: 32-pixel images that train a ConvNet well and
hardly look like digits. Takes a few minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from convnet import ConvNet
from handwritten import IMAGE_SIZE, NUM_CLASSES, jitter, load_splits, to_images, to_tensor
from PIL import Image
from torch import Tensor

IMAGES_PER_CLASS = (1, 10)


def distil(
    images: Tensor, labels: Tensor, *, per_class: int, iterations: int, real_batch: int, seed: int
) -> Tensor:
    """Return distilled images, [10 * per_class, 3, 32, 32] float32, class by class.

    Each iteration draws a new random ConvNet and moves the distilled images so that the mean
    embedding of each class matches that of a batch of real images (DM, Eq. 4).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    real = [images[labels == label] for label in range(NUM_CLASSES)]
    distilled = torch.randn(
        NUM_CLASSES * per_class, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator
    ).requires_grad_()
    optimizer = torch.optim.SGD([distilled], lr=1.0, momentum=0.5)
    for iteration in range(iterations):
        net = ConvNet().requires_grad_(False)
        batch = torch.cat(
            [part[torch.randint(len(part), (real_batch,), generator=generator)] for part in real]
        )
        target = net.embed(jitter(batch, generator)).unflatten(0, (NUM_CLASSES, real_batch)).mean(1)
        found = (
            net.embed(jitter(distilled, generator)).unflatten(0, (NUM_CLASSES, per_class)).mean(1)
        )
        loss = (found - target).square().sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if iteration % 100 == 99:
            print(
                f"{per_class} per class, {iteration + 1}/{iterations}: loss {loss.item():.2f}",
                flush=True,
            )
    return distilled.detach()


def save(distilled: Tensor, folder: Path, per_class: int) -> None:
    for number, image in enumerate(to_images(distilled)):
        path = folder / str(number // per_class) / f"{number % per_class}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--real-batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    train, _ = load_splits()
    images, labels = to_tensor(train.images), torch.from_numpy(train.labels)
    for per_class in IMAGES_PER_CLASS:
        distilled = distil(
            images,
            labels,
            per_class=per_class,
            iterations=args.iterations,
            real_batch=args.real_batch,
            seed=args.seed,
        )
        save(distilled, args.output / f"ipc{per_class}", per_class)


if __name__ == "__main__":
    main()
