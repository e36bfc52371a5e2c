"""Tensor files that a recovery wrote beside its images: the manifest says what their own formats leave open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.options import ReadOptions
from diver_trt.manifest import is_recovered, open_recovered


def options_beside(path: Path, options: ReadOptions) -> ReadOptions:
    """Return the options for a tensor file, completed by the manifest beside it where that lists the file.

    The images of a recovery are whole, whatever methods put into files of that format: `data.pt` is IDC's, whose
    images are collages. What the user says counts first.

    Raises:
        DatasetError: If the manifest is damaged.
    """
    root = path.parent
    if not path.is_file() or not is_recovered(root):
        return options
    manifest = open_recovered(root).manifest
    if path.name not in {entry.file for entry in manifest.companions}:
        return options
    named = manifest.class_map
    return replace(
        options,
        normalisation=options.normalisation or manifest.layout.normalisation,
        collage=options.collage or 1,
        classes=options.classes or (named if named in imagenet_subsets() else None),
    )
