"""D4M, which generates images from class prompts: `7/7-image03.png`."""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import STALE_LABELS, Found, Method


def _recognises(found: Found) -> bool:
    index = found.folder.name
    # The class number comes again, unpadded, in the file's name.
    return index.isdecimal() and bool(re.fullmatch(rf"{int(index[:9])}-image\d+", found.path.stem))


D4M = Method(
    name="d4m",
    title="D4M",
    structures=("folders",),
    recognises=_recognises,
    advice=f"{STALE_LABELS}; D4M's prompts swap ImageNet's two cranes, 134 and 517",
)
