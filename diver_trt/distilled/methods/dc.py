"""DC, DSA, DM and CAFE: `res_DM_CIFAR10_ConvNet_50ipc.pt`, a dictionary of experiments."""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import Method, Stored, by_side

_DATASETS = {
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100-dc",
    "MNIST": "mnist",
    "FashionMNIST": "fashionmnist",
    "SVHN": "svhn",
}
"""The statistics of each data set, by its name in the file's name."""


def _normalisation(stored: Stored) -> str:
    # `res_METHOD_DATASET_MODEL_...`: the only place that names the data set.
    match = re.match(r"res_[^_]+_([^_]+)_", stored.path.name)
    if match and match[1] in _DATASETS:
        return _DATASETS[match[1]]
    # A renamed file of CIFAR-100, for which DC and its family have statistics of their own.
    if stored.side == 32 and stored.num_classes == 100:
        return "cifar100-dc"
    return by_side(stored)


DC = Method(
    name="dc",
    title="DC, DSA, DM or CAFE",
    structures=("experiments",),
    statistics={"cifar100-dc": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))},
    normalisation=_normalisation,
    file_names="res_",
)
