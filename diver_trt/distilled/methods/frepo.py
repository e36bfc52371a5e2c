"""KIP and FRePo, which distil by kernel regression.

Named arrays of floats with the channels last, and labels that are regression targets: one-hot rows
minus their mean, perhaps trained further. FRePo calls them `image` and `label`, in `step500000.npz`
or in a training state of flax, `checkpoint_500000`; KIP calls them `images` and `labels`.
"""

from __future__ import annotations

import re
from pathlib import Path

from diver_trt.distilled.methods.base import (
    Found,
    Kind,
    Method,
    Series,
    Stored,
    Whitens,
    latest,
    stems,
)
from diver_trt.errors import DatasetError

_CHECKPOINT = r"checkpoint_\d+(\.\d+)?"
"""The names that flax gives to checkpoints: by the step, or by the metric."""
# https://flax.readthedocs.io/en/v0.8.3/api_reference/flax.training.html

_ROWS = 16
"""Labels that are looked at; all rows of a set are of one form."""

_HEAD_BYTES = 64
"""Bytes within which the key `params` of a training state lies."""


def is_flax_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint, by its name, or its first bytes without a suffix."""
    if re.fullmatch(_CHECKPOINT, path.name):
        return True
    if path.suffix:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    # A msgpack fixmap (0x80 to 0x8f) and a fixstr of six bytes (0xa6):
    # https://github.com/msgpack/msgpack/blob/master/spec.md
    return head[:1] in {bytes([0x80 + count]) for count in range(16)} and b"\xa6params" in head


def _are_regression_targets(found: Found) -> bool:
    # Here and below, not at the top: `diver-trt --help` imports this module, and must not load
    # numpy.
    from diver_trt.distilled.image_array import channels_last

    assert found.images is not None and found.labels is not None, "tensors have both"
    return (
        found.images.dtype.kind == found.labels.dtype.kind == "f"
        and len(found.labels.shape) == 2
        and channels_last(found.path, found.images)
    )


def _is_frepos(found: Found) -> bool:
    if found.name != "image" or not _are_regression_targets(found):
        return False
    import numpy as np

    assert found.labels is not None, "tensors have labels"
    rows = np.stack([found.labels[row] for row in range(min(_ROWS, len(found.labels)))])
    # Anybody's soft labels: regression targets are centred, and have negative values.
    return not ((rows >= 0).all() and np.abs(rows.sum(axis=1, dtype=np.float64) - 1).max() < 0.02)


def _is_kips(found: Found) -> bool:
    if found.name != "images":
        return False
    # KIP's published names: `kip_cifar10_ConvNet3_ssize500_zca_nol_noaug_ckpt1000.npz`.
    if re.search(r"^kip_|_ssize\d+_", found.path.stem):
        return True
    # Under another name, it is only KIP's if it is whitened: other sets are floats called `images`
    # and `labels`, with the channels last, too.
    return _are_regression_targets(found) and found.looks_whitened()


def _frepo_statistics(stored: Stored) -> str:
    # At 32 pixels it is CIFAR, or a small ImageNet; ImageNette and ImageWoof share 128.
    names = {10: "frepo-cifar10", 100: "frepo-cifar100"}
    if stored.side != 32 or stored.num_classes not in names:
        raise DatasetError(
            f"{stored.path}: FRePo normalises each data set with its own statistics; name them, "
            "such as --normalisation frepo-imagenette"
        )
    return names[stored.num_classes]


FREPO = Method(
    name="frepo",
    title="FRePo",
    structures=("arrays",),
    recognises=_is_frepos,
    statistics={
        "frepo-cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "frepo-cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        "frepo-imagenette": ((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973)),
        "frepo-imagewoof": ((0.4917, 0.4613, 0.3931), (0.2513, 0.2442, 0.2530)),
    },
    normalisation=_frepo_statistics,
    subsets={"imagewoof": (182, 167, 207, 159, 229, 193, 162, 273, 258, 155)},
    # Trained labels may not look centred.
    centred_labels=True,
    whitens=Whitens(kind=Kind.FREPO, usual=lambda _: True),
    series=(
        # Not `latest`, which would take the decimals of a metric for a step.
        Series(is_flax_checkpoint, lambda files: files[-1]),
        Series(stems(r"step\d+"), latest),
    ),
)

KIP = Method(
    name="kip",
    title="KIP",
    structures=("arrays",),
    recognises=_is_kips,
    centred_labels=True,
    whitens=Whitens(kind=Kind.KIP, usual=lambda _: True, names="_zca_"),
    file_names="kip_",
)
