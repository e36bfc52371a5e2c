"""Distil a data set of the examples from random noise, one and ten images per class.

    python -m examples.distil digits dm --output examples/digits/distilled
    python -m examples.distil fashion dm --output examples/fashion/distilled/dm
    python -m examples.distil fashion dc --output examples/fashion/distilled/dc

Writes `ipc1/{class}/{number}.png` and `ipc10/...`: 32-pixel images that train a ConvNet and hardly
look like what they stand for. Takes minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from torch import Tensor

from examples.dataset import DATASETS, load_dataset, to_images
from examples.distillation import Budget, match_distributions, match_gradients

METHODS = {"dm": match_distributions, "dc": match_gradients}

# By data set, method and images per class.
# fmt: off
BUDGETS = {
    ("digits",  "dm",  1): Budget(iterations=600, real_batch=32, channels=3, clipped=False),
    ("digits",  "dm", 10): Budget(iterations=600, real_batch=32, channels=3, clipped=False),
    ("fashion", "dm",  1): Budget(iterations=200, real_batch=32, channels=1, clipped=True,
                                  learning_rate=0.2),
    ("fashion", "dm", 10): Budget(iterations=200, real_batch=32, channels=1, clipped=True,
                                  learning_rate=1.0),
    ("fashion", "dc",  1): Budget(iterations=150, real_batch=32, channels=1, clipped=True,
                                  learning_rate=0.1),
    ("fashion", "dc", 10): Budget(iterations=20,  real_batch=32, channels=1, clipped=True,
                                  learning_rate=0.5, matches=5, net_steps=10),
}
# fmt: on


def save(distilled: Tensor, folder: Path, per_class: int) -> None:
    for number, image in enumerate(to_images(distilled)):
        path = folder / str(number // per_class) / f"{number % per_class}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    budgets = {
        per_class: budget
        for (dataset, method, per_class), budget in BUDGETS.items()
        if (dataset, method) == (args.dataset, args.method)
    }
    if not budgets:
        parser.error(f"{args.dataset} is not distilled with {args.method}.")

    dataset = load_dataset(args.dataset)
    train = dataset.load().train
    for per_class, budget in budgets.items():
        distilled = METHODS[args.method](
            train, dataset.augment, budget, per_class=per_class, seed=args.seed
        )
        save(distilled, args.output / f"ipc{per_class}", per_class)


if __name__ == "__main__":
    main()
