"""IDC, and DREAM and SeqMatch-IDC, which are built on its code.

A list of images and labels in one file, `data.pt`, or `data1200.pt` and `data_best.pt`, with pixels
in [0, 1]. Images are collages, and a folder's name states their factor:
`conv3in_grad_mse_nd2000_cut_niter2000_factor2_lr0.005_ipc10/data.pt`.
"""

from __future__ import annotations

import re
from pathlib import Path

from diver_trt.distilled.methods.base import Found, Method, Parts, Series, latest, stems

_FACTOR = r"_factor([1-9])(_|$)"
DATA = Series(stems(r"data(_?(\d+|best))?"), latest)
"""The states of a run, NCFM's too."""


def initialisation(path: Path) -> str | None:
    """Return a remark if a file holds the images from which an optimisation starts."""
    if path.stem in ("data0", "data_init"):
        return "it is the initialisation, from before any distillation"
    return None


def _is_dreams(found: Found) -> bool:
    return bool(re.fullmatch(r"data(\d+|_best|_com_best)", found.path.stem))


IDC = Method(
    name="idc",
    title="IDC",
    structures=("list",),
    # IDC's factor is 3 on ImageNet and 2 elsewhere.
    collage=2,
    large_collage=3,
    collage_names=_FACTOR,
    series=(DATA,),
    # ImageNet-100 is distilled in five phases of 20 classes, whose labels count all 100.
    parts=Parts(r"(?P<set>.+)_phase(?P<number>\d+)", first=0, example="…_phase0, …_phase1"),
    remark=initialisation,
)

DREAM = Method(
    name="dream",
    title="DREAM or SeqMatch-IDC",
    structures=("list",),
    recognises=_is_dreams,
    collage=2,
    large_collage=2,
    collage_names=_FACTOR,
    series=(DATA,),
    # `data0` is the initialisation: next to the states of a run it is never the one to read.
    beside=r"data_com(_|$)|data0$",
    remark=initialisation,
)
