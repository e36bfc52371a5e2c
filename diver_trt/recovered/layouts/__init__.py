"""The layouts of a recovered dataset: one file each, and this registry.

Adding a layout is one file that makes a `base.Layout`, and one entry of `LAYOUTS`. All other code
asks the layout and never branches on its name.
"""

from __future__ import annotations

from diver_trt.recovered.layouts.base import Layout
from diver_trt.recovered.layouts.huggingface import HUGGINGFACE
from diver_trt.recovered.layouts.index import INDEX
from diver_trt.recovered.layouts.tensors import IDC, NPZ, PT
from diver_trt.recovered.layouts.webdataset import WEBDATASET
from diver_trt.recovered.layouts.wnid import WNID

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (INDEX, WNID, HUGGINGFACE, WEBDATASET, PT, NPZ, IDC)
}
