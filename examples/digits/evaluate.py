"""Measure the digits example: plain sampling, and learning from distilled and recovered images.

    python examples/digits/evaluate.py

The committed bundle generates everything on ONNX Runtime. Recognition is the share of plain samples
whose class a ConvNet trained on real digits recognises. Learning is the test accuracy of networks
trained on distilled or recovered images alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from convnet import ConvNet, accuracy, train_classifier
from handwritten import IMAGE_SIZE, NUM_CLASSES, jitter, load_splits, to_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from diver_trt import PRESETS, Bundle, Recipe, Recoverer

HERE = Path(__file__).parent
PLAIN = Recipe(inherit_step=None, gamma=0.0)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut: [n, i, H, W] => [n, o, H / 2, W / 2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet() -> nn.Module:
    """A residual network of seven convolutions with batch normalisation."""
    return nn.Sequential(
        Residual(3, 32),
        Residual(32, 64),
        Residual(64, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, NUM_CLASSES),
    )


def mlp() -> nn.Module:
    """A perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * IMAGE_SIZE**2, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, NUM_CLASSES),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"ConvNet": ConvNet, "ResNet": resnet, "MLP": mlp}


def read_set(folder: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the distilled images of a folder and their classes."""
    paths = sorted(folder.glob("*/*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]), [
        int(path.parent.name) for path in paths
    ]


def recover(
    bundle: Bundle, images: NDArray[np.uint8], labels: list[int], recipe: Recipe, seed: int
) -> NDArray[np.uint8]:
    with Recoverer(bundle, recipe, batch=10) as recoverer:
        return np.stack([sample.image for sample in recoverer(images, labels, seed=seed)])


def learn(
    build: Callable[[], nn.Module],
    images: NDArray[np.uint8],
    labels: list[int],
    test: tuple[Tensor, Tensor],
    seed: int,
) -> float:
    """Train a new network on a small set for 200 steps; return its test accuracy in percent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, x, y = build().train(), to_tensor(images), torch.tensor(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(200):
        index = torch.randint(len(x), (min(64, 4 * len(x)),), generator=generator)
        loss = F.cross_entropy(net(jitter(x[index], generator)), y[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return 100 * accuracy(net.eval(), *test)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=HERE.parent.parent / "engines" / "digits")
    parser.add_argument("--distilled", type=Path, default=HERE / "distilled")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    train, held_out = load_splits()
    test = to_tensor(held_out.images), torch.from_numpy(held_out.labels)

    judge = train_classifier(to_tensor(train.images), torch.from_numpy(train.labels), seed=0)
    found = 100 * accuracy(judge, *test)
    print(
        f"The judge, a ConvNet-3 trained on the {len(train.labels)} real digits, is right on "
        f"{found:.1f} % of {len(test[1])} held-out ones."
    )
    labels = [i % NUM_CLASSES for i in range(args.samples)]
    blank = np.zeros((args.samples, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for scale in (1.0, 4.0):
        samples = recover(bundle, blank, labels, PLAIN.with_settings(cfg_scale=scale), seed=1)
        found = 100 * accuracy(judge, to_tensor(samples), torch.tensor(labels))
        print(f"Plain sampling, w = {scale:g}: {found:.1f} % of {args.samples} recognised.")

    recipes = {
        "+ DIVER, paper": PRESETS["paper"],
        "+ DIVER, matched start": PRESETS["matched"],
        "plain sampling": PLAIN,
    }
    print(
        f"\nTest accuracy in %, mean ± deviation over {args.seeds} seeds of noise and training:\n"
    )
    print("| | " + " | ".join(f"{name}, IPC {ipc}" for name in NETWORKS for ipc in (1, 10)) + " |")
    print("|---|" + "---|" * 2 * len(NETWORKS))
    sets = {ipc: read_set(args.distilled / f"ipc{ipc}") for ipc in (1, 10)}
    for title, recipe in {"distilled (DM)": None, **recipes}.items():
        cells = []
        trained = {
            ipc: [
                images if recipe is None else recover(bundle, images, classes, recipe, seed)
                for seed in range(args.seeds)
            ]
            for ipc, (images, classes) in sets.items()
        }
        for build in NETWORKS.values():
            for ipc, (_, classes) in sets.items():
                scores = [
                    learn(build, images, classes, test, seed)
                    for seed, images in enumerate(trained[ipc])
                ]
                cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
