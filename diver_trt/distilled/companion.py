"""Files that a recovery wrote beside its images: they are recognised by the manifest there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from diver_trt.files import file_sha256, reported
from diver_trt.manifest import is_recovered, open_recovered


def recovered_folder(path: Path) -> Path | None:
    """Return the recovered dataset that a path stands for, or None if it is of another kind.

    A recovered folder stands for itself, and so does each file that its manifest lists beside the
    images, such as `data.pt`: the images, classes and names in them are the same.

    Raises:
        DatasetError: If the manifest beside a file is damaged, or the file has changed since.
    """
    if is_recovered(path):
        return path
    root = path.parent
    if not path.is_file() or not is_recovered(root):
        return None
    # Read by itself, such a file has lost its class map, and its labels would be taken for classes
    # of the model.
    listed = {entry.file: entry.sha256 for entry in open_recovered(root).manifest.companions}
    if path.name not in listed:
        return None
    with reported(path, "read", DatasetError):
        found = file_sha256(path)
    # Not ignored: the images of another file would be read in place of the ones that it holds.
    if found != listed[path.name]:
        raise DatasetError(
            f"{path}: is not the file that was written, although the manifest beside it lists it; "
            "move it to another folder to read it as another method's"
        )
    return root


def options_beside(path: Path, options: ReadOptions) -> ReadOptions:
    """Return the options for a tensor file, completed by the manifest beside it.

    A manifest that does not list the file is ignored. The user's options take precedence.

    Raises:
        DatasetError: If the manifest is damaged, or the file has changed since it was written.
    """
    root = recovered_folder(path)
    if root is None:
        return options
    manifest = open_recovered(root).manifest
    named = manifest.class_map
    return replace(
        options,
        normalisation=options.normalisation or manifest.layout.normalisation,
        # A recovery's images are whole, although `data.pt` is IDC's, whose images are collages.
        collage=options.collage or 1,
        classes=options.classes or (named if named in imagenet_subsets() else None),
    )
