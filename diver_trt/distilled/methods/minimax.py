"""Minimax and its relatives, which sample from a tuned DiT: `n02086240/3.png`."""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import Found, Method


def _recognises(found: Found) -> bool:
    return bool(
        re.fullmatch(r"n\d{8}", found.folder.name)
        and re.fullmatch(r"\d{1,6}\.png", found.path.name)
    )


MINIMAX = Method(
    name="minimax",
    title="Minimax, IGD or MGD3",
    structures=("folders",),
    recognises=_recognises,
)
