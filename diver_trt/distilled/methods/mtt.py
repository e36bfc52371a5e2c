"""MTT and what is built on its code: TESLA, FTD, DATM, EDF and SeqMatch.

`images_best.pt` with `labels_best.pt` beside it, and the same of other iterations. MTT whitens
CIFAR (DATM Tiny-ImageNet, too) and saves each iteration twice: `images_500.pt` holds the optimised
values, which may be whitened; `images_zca_500.pt`, despite its name, is never whitened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diver_trt.distilled.methods.base import (
    Kind,
    Method,
    Parts,
    Series,
    Stored,
    Whitens,
    by_side,
    latest,
    stems,
)
from diver_trt.distilled.natural_order import natural
from diver_trt.errors import DatasetError

_UNWHITENED = "images_zca_"
_TINY_IMAGENET_CLASSES = 200


def _whitens(stored: Stored) -> bool:
    # TESLA normalises ImageNet-1K, whose 64 pixels are as few as those of a whitened set.
    return stored.num_classes <= _TINY_IMAGENET_CLASSES


def _unwhitened(path: Path) -> str:
    twins = _numbered(path.parent, "")
    if twins:
        return f"{twins[-1].name}, which is not whitened"
    return "the file that is not whitened (images_zca_*.pt, if there is one)"


def _numbered(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"{_UNWHITENED}*{suffix}"), key=natural)


def _choose(files: Sequence[Path]) -> Path:
    """Return the best or last file, preferably one that is not whitened."""
    last = latest([file for file in files if file.stem.startswith(_UNWHITENED)] or files)
    best = last.with_name(f"images_best{last.suffix}")
    # The best iteration before the last one, where the files show which one it is.
    return (best.is_file() and _unwhitened_twin(best)) or last


def _unwhitened_twin(best: Path) -> Path | None:
    """Return the `images_zca_N` of the iteration of `images_best`, or None if it is unknown."""
    # `images_best` does not state its iteration; comparing it with each `images_N` does.
    for file in _numbered(best.parent, best.suffix):
        whitened = file.with_name(file.name.replace("_zca", ""))
        if whitened.is_file() and _same_array(best, whitened):
            return file
    return None


def _same_array(first: Path, second: Path) -> bool:
    import numpy as np  # here, since `diver-trt --help` imports this module and must stay light

    from diver_trt.distilled.array_file import open_stored
    from diver_trt.distilled.stored_array import is_array

    try:
        ours, theirs = open_stored(first), open_stored(second)
        if not (is_array(ours) and is_array(theirs)):
            return False
        return ours.shape == theirs.shape and all(
            np.array_equal(ours[i], theirs[i], equal_nan=True) for i in range(len(ours))
        )
    # The file that is read is intact, even if that of another iteration is damaged.
    except DatasetError:
        return False


def _remark(path: Path) -> str | None:
    best = path.with_name(f"images_best{path.suffix}")
    if not path.stem.startswith(_UNWHITENED) or not best.is_file() or _unwhitened_twin(best):
        return None
    return (
        f"{best.name} is whitened and its iteration is unknown; {path.name} may come from a "
        "different one"
    )


MTT = Method(
    name="mtt",
    title="MTT, TESLA, FTD, DATM, EDF or SeqMatch",
    structures=("tensor",),
    normalisation=by_side,
    whitens=Whitens(kind=Kind.KORNIA, usual=_whitens, instead=_unwhitened),
    series=(
        Series(stems(r"images(_(zca_\d+|\d+|best))?"), _choose),
        # FTD saves the average of its images, in files of their own.
        Series(stems(r"ema_images(_(\d+|best))?"), latest),
    ),
    # Weights and styles are HaBa's, whose images cannot be read without its networks.
    beside=r"(ema_)?(labels?|lr|best_lr|soft_labels|weights|styles)(_|$)",
    # SeqMatch distils in stages, and trains on all of them together.
    parts=Parts(r"S(?P<number>\d+)(_.*)?", first=1, example="S1, S2"),
    remark=_remark,
)
