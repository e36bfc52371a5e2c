"""RDED, which composes collages of real images.

`exp/imagenet-nette_resnet18_f2_mipc300_ipc10_cr5/syn_data/00007/class00007_id00003.jpg`; the
collage factor is the `f2` of the folder.
"""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import Found, Method


def _recognises(found: Found) -> bool:
    return bool(
        re.fullmatch(r"\d{5}", found.folder.name)
        and re.fullmatch(r"class\d{5}_id\d{5}", found.path.stem)
    )


RDED = Method(
    name="rded",
    title="RDED",
    structures=("folders",),
    recognises=_recognises,
    # RDED has factor 2 on ImageNet, and 1 on CIFAR and Tiny-ImageNet.
    collage=1,
    large_collage=2,
    collage_names=r"_f([1-9])_mipc\d+_",
)
