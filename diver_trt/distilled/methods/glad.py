"""GLaD, which distils into the latents of a generator.

It pads its iterations to five digits (`images_05000.pt`) and has its own names for data sets. Its
variants of DC and DM write `res_*.pt` files of those data sets.
"""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import Found, Method, Stored, by_side

_DATASETS = r"imagenet-(fruits|yellow|cats|birds|[a-e])"
"""Names of data sets that GLaD's code alone has."""


def _recognises(found: Found) -> bool:
    if found.structure == "experiments":
        return bool(re.match(rf"res_[^_]+_{_DATASETS}_", found.path.stem))
    # `images_best` is not numbered, but its siblings are.
    padded = any(
        re.fullmatch(r"images_0\d{4}", sibling.stem)
        for sibling in found.folder.glob("images_0????.*")
    )
    # Its runs lie in `logged_files/imagenet-fruits/RUN`. The folder is resolved and not the file,
    # which may be a symlink into a cache.
    folders = [part.lower() for part in found.folder.resolve().parts[-4:]]
    named = any(
        re.search(r"(^|[^a-z])glad([^a-z]|$)", part) or re.fullmatch(_DATASETS, part)
        for part in folders
    )
    return padded or named


def _normalisation(stored: Stored) -> str:
    usual = by_side(stored)
    # For CIFAR-10, its code overwrites the mean.
    return "glad" if usual == "imagenet" and stored.side > 32 else usual


GLAD = Method(
    name="glad",
    title="GLaD",
    structures=("tensor", "experiments"),
    recognises=_recognises,
    # ImageNet's deviation with SVHN's mean, which its code applies to the decoder's output.
    # https://github.com/georgecazenavette/glad
    statistics={"glad": ((0.4377, 0.4438, 0.4728), (0.229, 0.224, 0.225))},
    normalisation=_normalisation,
    advice=(
        "GLaD's latents (--space wp) are normalised with SVHN's mean; for --space p set "
        "--normalisation imagenet"
    ),
)
