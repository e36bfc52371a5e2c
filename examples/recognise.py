"""Count the plain samples of an example's model that a network trained on real images recognises.

    python -m examples.recognise digits
    python -m examples.recognise fashion --bundle engines/fashion

Plain sampling has neither inheritance nor semantic guidance: the class is all that the model is
given. The judge is a ConvNet-3 trained on the data set's training images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from diver_trt import Bundle, Recipe, Recoverer
from examples.convnet import accuracy, train_classifier
from examples.dataset import DATASETS, IMAGE_SIZE, NUM_CLASSES, Split, load_dataset

PLAIN = Recipe(inherit_step=None, gamma=0.0)
ENGINES = Path(__file__).parent.parent / "engines"


def plain_samples(bundle: Bundle, recipe: Recipe, count: int, *, seed: int) -> Split:
    labels = np.arange(count) % NUM_CLASSES
    # A recipe without inheritance and guidance does not use the pixels.
    blank = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with Recoverer(bundle, recipe, batch=10) as recoverer:
        images = [sample.image for sample in recoverer(blank, labels.tolist(), seed=seed)]
    return Split(np.stack(images), labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--bundle", type=Path, help="default: engines/DATASET")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 4.0])
    args = parser.parse_args()
    dataset = load_dataset(args.dataset)
    splits = dataset.load()
    judge = train_classifier(splits.train, dataset.augment, seed=0)
    print(
        f"The judge, trained on {len(splits.train):,} real images, is right on "
        f"{100 * accuracy(judge, splits.test):.1f} % of the {len(splits.test):,} of the test set."
    )
    bundle = Bundle.open(args.bundle or ENGINES / dataset.name)
    for scale in args.scales:
        samples = plain_samples(bundle, replace(PLAIN, cfg_scale=scale), args.samples, seed=1)
        found = 100 * accuracy(judge, samples)
        print(f"Plain sampling, w = {scale:g}: {found:.1f} % of {args.samples} recognised.")


if __name__ == "__main__":
    main()
