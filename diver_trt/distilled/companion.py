"""Tensor files that a recovery wrote beside its images, with the facts that its manifest states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.options import ReadOptions
from diver_trt.manifest import is_recovered, open_recovered


def options_beside(path: Path, options: ReadOptions) -> ReadOptions:
    """Return the options for a tensor file, completed by the manifest beside it.

    A manifest that does not list the file is ignored. The user's options take precedence.

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
        # A recovery's images are whole, although `data.pt` is IDC's, whose images are collages.
        collage=options.collage or 1,
        classes=options.classes or (named if named in imagenet_subsets() else None),
    )
