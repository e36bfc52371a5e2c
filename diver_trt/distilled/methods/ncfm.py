"""NCFM: a list of images and labels as IDC's, `data_20000.pt`, with pixels in [0, 1]."""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import Found, Method
from diver_trt.distilled.methods.idc import DATA, initialisation


def _recognises(found: Found) -> bool:
    return bool(re.fullmatch(r"data_(\d+|init)", found.path.stem))


NCFM = Method(
    name="ncfm",
    title="NCFM",
    structures=("list",),
    recognises=_recognises,
    # Factor 2 in every configuration of its repository.
    collage=2,
    large_collage=2,
    # NCFM's own: custard apple for Granny Smith, and another corn.
    subsets={
        "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 956),
        "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 74, 11),
    },
    series=(DATA,),
    # The initialisation: next to the states of a run it is never the one to read.
    beside="data_init$",
    remark=initialisation,
)
