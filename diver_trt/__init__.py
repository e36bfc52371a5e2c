"""Recover distilled datasets with DIVER on small GPUs, Jetsons and CPUs, without torch.

Examples:
    >>> from diver_trt import recover
    >>> recover("distilled", "recovered", bundle="engines/digits").images

    >>> from diver_trt import Bundle, Recipe, Recoverer
    >>> with Recoverer(Bundle.open("engines/digits"), Recipe()) as recoverer:
    ...     for sample in recoverer(images, labels, seed=0):
    ...         save(sample.key, sample.image)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from diver_trt._version import __version__ as __version__

# ONNX Runtime 1.32 keeps a device id and a queue of events under ~/.cache and $TMPDIR, and has an
# endpoint to send them to (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md). It
# reads this variable when it is loaded, so the variable is set before any module of this package
# can import ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle as Bundle
    from diver_trt.recipe import PRESETS as PRESETS
    from diver_trt.recipe import Recipe as Recipe
    from diver_trt.recovered.run import Recovery as Recovery
    from diver_trt.recovered.run import recover as recover
    from diver_trt.runtime.events import RecoveredSample as RecoveredSample
    from diver_trt.runtime.recoverer import Recoverer as Recoverer

__all__ = [
    "PRESETS",
    "Bundle",
    "Recipe",
    "RecoveredSample",
    "Recoverer",
    "Recovery",
    "recover",
]

_HOMES = {
    "Bundle": "diver_trt.bundle",
    "PRESETS": "diver_trt.recipe",
    "Recipe": "diver_trt.recipe",
    "RecoveredSample": "diver_trt.runtime.events",
    "Recoverer": "diver_trt.runtime.recoverer",
    "Recovery": "diver_trt.recovered.run",
    "recover": "diver_trt.recovered.run",
}


def __getattr__(name: str) -> object:
    """Import a public name on first access."""
    # Importing numpy alone takes a third of the time that `diver-trt --help` may take.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
