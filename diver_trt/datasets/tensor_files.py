"""Which file a path stands for, where methods leave many: one for every iteration, labels and rates beside them, parts in folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

from diver_trt.datasets.folder_reader import natural
from diver_trt.datasets.image_file import SUFFIXES as IMAGE_SUFFIXES
from diver_trt.datasets.stored_array import SUFFIXES
from diver_trt.errors import DatasetError


def find_tensor_files(path: Path) -> list[Path]:
    """Return the files of images that a path stands for: itself, the best one of a folder, or the best one of each folder in it.

    Raises:
        DatasetError: A folder holds several that differ in more than their iteration.
    """
    if path.is_file():
        return [path]
    best = _best_of(path)
    folders = sorted((folder for folder in path.iterdir() if folder.is_dir()), key=natural)
    for folder in folders:
        _require_printable(folder)
    if any(map(_holds_images, folders)):
        if best:
            raise DatasetError(f"{path}: holds class folders and {best.name}; name the file, or move it elsewhere")
        return []
    return [best] if best else [found for folder in folders if (found := _best_of(folder))]


def find_one_tensor_file(path: Path) -> Path:
    """Return the one file of images that a path stands for.

    Raises:
        DatasetError: There is none, or there are several.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    files = find_tensor_files(path)
    if len(files) != 1:
        found = ", ".join(str(file) for file in files[:5]) or "no file of tensors"
        raise DatasetError(f"{path}: holds {found}; name one file of images")
    return files[0]


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)
    except OSError:
        return False


def _best_of(folder: Path) -> Path | None:
    """Return a folder's file of images: the un-whitened if there are both, the best if it is marked, else of the last iteration."""
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry) for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    except OSError as cause:
        raise DatasetError(f"{folder}: cannot be listed ({cause.strerror})") from cause
    for file in files:
        _require_printable(file)
    families: dict[str, list[Path]] = {}
    for file in files:
        if family := _family(file.stem):
            families.setdefault(family, []).append(file)
    if "images_zca" in families:
        families.pop("images", None)
    if len(families) > 1 or any(len(found) > 1 for family, found in families.items() if family == "other"):
        names = ", ".join(sorted(file.name for found in families.values() for file in found)[:6])
        raise DatasetError(f"{folder}: holds several files of images ({names}); name one of them")
    return max(next(iter(families.values())), key=lambda file: _rank(file.stem)) if families else None


def _require_printable(path: Path) -> None:
    if not path.name.isprintable():
        raise DatasetError(f"{path.parent}: holds a name that cannot be printed, {path.name!a}; rename it")


def _family(stem: str) -> str | None:
    """Return which files belong to one run and differ in their iteration only; None for labels and learning rates."""
    if re.match(r"(labels?|lr|best_lr|soft_labels|weights|styles|data_com)(_|$)", stem) or stem in ("data_init", "data0"):
        return None
    for family, pattern in (
        ("images_zca", r"images_zca_\d+"),
        ("images", r"images(_(\d+|best))?"),
        ("data", r"data(_?(\d+|best))?"),
        ("step", r"step\d+"),
    ):
        if re.fullmatch(pattern, stem):
            return family
    return "other"


def _rank(stem: str) -> tuple[bool, int]:
    digits = re.findall(r"\d+", stem)
    return stem.endswith("best"), int(digits[-1]) if digits else -1
