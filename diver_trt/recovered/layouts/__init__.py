"""The layouts of a recovered dataset: one file each, and this registry.

Adding a layout is one file that makes a `base.Layout`, and one entry of `LAYOUTS`. All other code
asks the layout and never branches on its name.
"""

from __future__ import annotations

from diver_trt.errors import UsageError, shown_value
from diver_trt.recovered.layouts.base import Layout
from diver_trt.recovered.layouts.huggingface import HUGGINGFACE
from diver_trt.recovered.layouts.index import INDEX
from diver_trt.recovered.layouts.tensors import IDC, NPZ, PT
from diver_trt.recovered.layouts.webdataset import WEBDATASET
from diver_trt.recovered.layouts.wnid import WNID

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (INDEX, WNID, HUGGINGFACE, WEBDATASET, PT, NPZ, IDC)
}


def find_layout(name: object) -> Layout:
    """Return a layout by its name.

    Raises:
        UsageError: If no layout has this name.
    """
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None:
        raise UsageError(f"layout is {shown_value(name)}; expected one of {', '.join(LAYOUTS)}")
    return layout
