"""SRe2L and its relatives, which optimise images through a network's batch statistics.

`new007/class007_id003.jpg`, as SRe2L's `data_synthesis.py` saves them.
"""

from __future__ import annotations

import re

from diver_trt.distilled.methods.base import STALE_LABELS, Found, Method


def _recognises(found: Found) -> bool:
    return bool(
        # CDA writes five digits for ImageNet-21K.
        re.fullmatch(r"new\d{3,5}", found.folder.name)
        # A prefix: EDC may add `_iter0000`, and G-VBSM and EDC write PNG for small images.
        and re.match(r"class\d+_id\d+", found.path.name)
    )


SRE2L = Method(
    name="sre2l",
    title="SRe2L, CDA, DWA, G-VBSM or EDC",
    structures=("folders",),
    recognises=_recognises,
    statistics={"cifar100-dwa": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))},
    advice=f"{STALE_LABELS}; EDC's ImageNet images are collages: --collage 2",
)
