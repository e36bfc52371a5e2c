"""Which file a path stands for, where methods leave many: one for every iteration, labels and rates beside them, parts in folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from diver_trt.distilled.flax_checkpoint import is_flax_checkpoint
from diver_trt.distilled.folders import holds_images, natural
from diver_trt.distilled.left_out import is_system_file, is_system_folder
from diver_trt.distilled.stored_array import SUFFIXES, StoredArray, open_stored
from diver_trt.errors import DatasetError

_PART = re.compile(r"S\d+(_.*)?|(?P<stem>.+)_phase\d+")
"""How the folders of the parts of one set are called: SeqMatch's `S1`, `S2`; IDC's `NAME_phase0`, `NAME_phase1`."""

_PREVIEWS = re.compile(r"images?|img|imgs|png|vis|figures?|plots?", re.IGNORECASE)
"""Folders of pictures for people that methods write beside their tensors."""


def find_tensor_files(path: Path) -> list[Path]:
    """Return the files of images that a path stands for: itself, the best one of a folder, or the best one of each part in it.

    Raises:
        DatasetError: If a folder holds several that differ in more than their iteration, or several runs, or the
            path is neither a folder nor a regular file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DatasetError(
            f"{path}: is neither a regular file nor a folder; expected a file of tensors, or a folder of images or of such files"
        )
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
    for folder in folders:
        _require_printable(folder)
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
    if len(found) > 1 and not _are_parts([file.parent.name for file in found]):
        names = ", ".join(file.parent.name for file in found[:6])
        raise DatasetError(
            f"{path}: holds several sets ({names}); name one of them (parts of one set are called S1, S2 or …_phase0, …_phase1)"
        )
    return found


def _are_parts(names: list[str]) -> bool:
    matches = [_PART.fullmatch(name) for name in names]
    return len({match and match["stem"] for match in matches}) == 1 and all(matches)


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


def _best_of(folder: Path) -> Path | None:
    """Return a folder's file of images: the un-whitened if there are both, the best if it is marked, else of the last iteration."""
    try:
        with os.scandir(folder) as entries:
            files = [file for file in map(Path, entries) if _is_of_tensors(file)]
    except OSError as cause:
        raise DatasetError(f"{folder}: cannot be listed ({cause.strerror})") from cause
    for file in files:
        _require_printable(file)
    families: dict[str, list[Path]] = {}
    for file in files:
        if family := "checkpoint" if is_flax_checkpoint(file) else _family(file.stem):
            families.setdefault(family, []).append(file)
    if "images_zca" in families:
        families.pop("images", None)
    if len(families) > 1 or any(
        len(found) > 1 for family, found in families.items() if family == "other"
    ):
        names = ", ".join(sorted(file.name for found in families.values() for file in found)[:6])
        raise DatasetError(f"{folder}: holds several files of images ({names}); name one of them")
    if not families:
        return None
    (kept,) = families.values()
    last = (
        max(kept, key=natural)
        if "checkpoint" in families
        else max(kept, key=lambda file: _rank(file.stem))
    )
    best = last.with_name(f"images_best{last.suffix}")
    return (best.is_file() and unwhitened_twin(best)) or last


def unwhitened_twin(best: Path) -> Path | None:
    """Return the `images_zca_N` of the iteration that `images_best` holds, if the whitened `images_N` is still there to tell which."""
    for file in sorted(best.parent.glob(f"images_zca_*{best.suffix}"), key=natural):
        whitened = file.with_name(file.name.replace("_zca", ""))
        if whitened.is_file() and _same_array(best, whitened):
            return file
    return None


def _same_array(first: Path, second: Path) -> bool:
    ours, theirs = open_stored(first), open_stored(second)
    if not (
        isinstance(ours, (StoredArray, np.ndarray))
        and isinstance(theirs, (StoredArray, np.ndarray))
    ):
        return False
    return ours.shape == theirs.shape and all(
        np.array_equal(ours[i], theirs[i], equal_nan=True) for i in range(len(ours))
    )


def _is_of_tensors(file: Path) -> bool:
    return file.is_file() and (file.name.lower().endswith(SUFFIXES) or is_flax_checkpoint(file))


def _require_printable(path: Path) -> None:
    if not path.name.isprintable():
        raise DatasetError(
            f"{path.parent}: holds a name that cannot be printed, {path.name!a}; rename it"
        )


def _family(stem: str) -> str | None:
    """Return which files belong to one run and differ in their iteration only; None for labels and learning rates."""
    if re.match(
        r"(ema_)?(labels?|lr|best_lr|soft_labels|weights|styles|data_com)(_|$)", stem
    ) or stem in ("data_init", "data0"):
        return None
    for family, pattern in (
        ("images_zca", r"images_zca_\d+"),
        ("images", r"images(_(\d+|best))?"),
        ("ema_images", r"ema_images(_(\d+|best))?"),
        ("data", r"data(_?(\d+|best))?"),
        ("step", r"step\d+"),
    ):
        if re.fullmatch(pattern, stem):
            return family
    return "other"


def _rank(stem: str) -> tuple[bool, int]:
    digits = re.findall(r"\d+", stem)
    return stem.endswith("best"), int(digits[-1]) if digits else -1
