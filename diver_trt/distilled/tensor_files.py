"""Choosing the files of images that a path stands for.

Methods leave many files: one for every iteration, labels and learning rates beside them, parts in
folders.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from diver_trt.distilled.array_file import SUFFIXES
from diver_trt.distilled.folder_names import require_printable
from diver_trt.distilled.folder_tree import holds_images
from diver_trt.distilled.left_out import is_system_file, is_system_folder
from diver_trt.distilled.methods import (
    are_parts,
    is_beside_images,
    is_named_as_images,
    parts_examples,
    series_of,
)
from diver_trt.distilled.methods.base import Series
from diver_trt.distilled.methods.frepo import is_flax_checkpoint
from diver_trt.distilled.natural_order import natural
from diver_trt.distilled.regular_file import require_file_or_folder
from diver_trt.distilled.structure import may_hold_images
from diver_trt.errors import DatasetError
from diver_trt.files import reported

_PREVIEWS = re.compile(r"images?|img|imgs|png|vis|figures?|plots?", re.IGNORECASE)
"""Folders of pictures for people that methods write beside their tensors."""


def find_tensor_files(path: Path) -> list[Path]:
    """Return the files of images that a path stands for.

    Returns:
        The path itself, the best file of a folder, or the best file of each part in it.

    Raises:
        DatasetError: If a folder holds several that differ in more than their iteration, or several
            runs, or the path is missing or neither a folder nor a regular file.
    """
    require_file_or_folder(
        path, "expected a file of tensors, or a folder of images or of such files"
    )
    if path.is_file():
        return [path]
    # A run's file beside folders of previews decides; only without one are the folders searched.
    best = _best_of(path)
    folders = sorted(
        (
            folder
            for folder in path.iterdir()
            if folder.is_dir()
            and not (is_system_file(folder.name) or is_system_folder(folder.name))
        ),
        key=natural,
    )
    # Parts are named in notes and in the manifest.
    for folder in folders:
        require_printable(folder)
    pictures = [folder for folder in folders if holds_images(folder)]
    if not all(_PREVIEWS.fullmatch(folder.name) for folder in pictures):
        if best:
            raise DatasetError(
                f"{path}: holds class folders and {best.name}; name the file, or move it elsewhere"
            )
        return []
    if best:
        return [best]
    found = [best for folder in folders if folder not in pictures and (best := _best_of(folder))]
    # Several runs of one method lie side by side in the same way.
    if len(found) > 1 and not are_parts([file.parent.name for file in found]):
        names = ", ".join(file.parent.name for file in found[:6])
        raise DatasetError(
            f"{path}: holds several sets ({names}); name one of them (parts of one set are called "
            f"{parts_examples()})"
        )
    if found or folders:
        return found
    return _tensors_in(path)[:1]  # so that the error describes its content


def find_one_tensor_file(path: Path) -> Path:
    """Return the one file of images that a path stands for.

    Raises:
        DatasetError: If there is not exactly one.
    """
    files = find_tensor_files(path)
    if len(files) != 1:
        found = ", ".join(str(file) for file in files[:5]) or "no file of tensors"
        raise DatasetError(f"{path}: holds {found}; name one file of images")
    return files[0]


def _best_of(folder: Path) -> Path | None:
    """Return a folder's file of images.

    Returns:
        The file that is not whitened if there are both, the best if it is marked, else that of the
        last iteration. None without a file of images.
    """
    families: dict[Series | None, list[Path]] = {}
    for file in _tensors_in(folder):
        if is_beside_images(file):
            continue
        series = series_of(file)
        # A file without a known name is opened: runs also save networks, optimisers, learning rates
        # and trajectories, under countless names.
        if series or is_named_as_images(file) or may_hold_images(file):
            families.setdefault(series, []).append(file)
    if len(families) > 1 or len(families.get(None, [])) > 1:
        names = ", ".join(sorted(file.name for found in families.values() for file in found)[:6])
        raise DatasetError(f"{folder}: holds several files of images ({names}); name one of them")
    for series, files in families.items():
        suffixes = {file.suffix for file in files if file.name.lower().endswith(SUFFIXES)}
        # A set and its converted twin have the same name; which one is meant is not guessed.
        if len(suffixes) > 1:
            kinds = ", ".join(sorted(suffixes))
            raise DatasetError(
                f"{folder}: holds files of images of several kinds ({kinds}); name one of them, "
                f"such as {files[0].name}"
            )
        return series.choose(files) if series else files[0]
    return None


def _tensors_in(folder: Path) -> list[Path]:
    with reported(folder, "listed", DatasetError), os.scandir(folder) as entries:
        files = [file for file in map(Path, entries) if _is_of_tensors(file)]
    for file in files:
        require_printable(file)
    return sorted(files, key=natural)


def _is_of_tensors(file: Path) -> bool:
    return file.is_file() and (file.name.lower().endswith(SUFFIXES) or is_flax_checkpoint(file))
