"""`index`: a folder per class, named by its index in the dataset's own order."""

from __future__ import annotations

from diver_trt.recovered.layouts.base import Layout, write_soft_labels

INDEX = Layout(
    name="index",
    help="torchvision's ImageFolder, RDED, DD-Ranking",
    write=write_soft_labels,
)
