"""The files of recovered folders, verified before `merge` or `convert` copies them.

They may come from other machines, so nothing in them is taken on trust.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.array_file import open_stored
from diver_trt.distilled.npz_file import read_npy_header
from diver_trt.distilled.stored_array import is_array, load
from diver_trt.errors import DatasetError, shown
from diver_trt.files import reported
from diver_trt.manifest import RecoveredFolder, listed_file, require_written
from diver_trt.records import Manifest, Recovered
from diver_trt.recovered.layouts.base import SOFT_LABELS

SoftLabels = NDArray[np.float32]

_PNG = b"\x89PNG\r\n\x1a\n"
_AGAIN = "recover the folder again"


def require_image(root: Path, entry: Recovered, side: int) -> None:
    """Require an image to be the one that was written, and of the size that the manifest gives.

    Raises:
        DatasetError: If it is not, or cannot be read.
    """
    path = listed_file(root, entry.file)
    # The size too: whoever wrote the manifest chose the hash.
    require_written(path, entry.sha256)
    with reported(path, "read", DatasetError), path.open("rb") as file:
        head = file.read(24)
    # Bytes 16 to 24 are IHDR's width and height: https://www.w3.org/TR/png-3/#11IHDR
    if head[:8] != _PNG or head[16:] != struct.pack(">II", side, side):
        raise DatasetError(
            f"{path}: is not a PNG image of {side} x {side} pixels, as the manifest has it; "
            f"{_AGAIN}"
        )


def soft_labels_of_shards(shards: Sequence[RecoveredFolder]) -> SoftLabels | None:
    """Return the soft labels of all shards, which each wrote for its own samples, [n, classes].

    Raises:
        DatasetError: If a file is not the one that was written, if its values are not finite or not
            those of its samples, or if some shards have soft labels and others have none.
    """
    parts: list[SoftLabels] = []
    for shard in shards:
        rows = soft_labels_in(shard, SOFT_LABELS)
        if rows is not None:
            parts.append(rows)
        elif shard.manifest.samples:
            # Has no columns, so that it differs below from shards that have soft labels.
            parts.append(np.empty((0, 0), np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        raise DatasetError(
            "some shards have soft labels and some have none, or for other classes; recover them "
            "again from the same files"
        )
    return np.concatenate(parts) if any(part.size for part in parts) else None


def soft_labels_in(folder: RecoveredFolder, name: str) -> SoftLabels | None:
    """Return the soft labels of a folder's samples, [n, classes].

    Args:
        folder: The folder.
        name: The file that holds them if there are any, `Layout.soft_labels` of its layout.

    Returns:
        Those of the images that were recovered, in the manifest's order; None if the manifest does
        not list the file, or the file holds none.

    Raises:
        DatasetError: If the file is not the one that was written, or its values are not finite or
            not those of the samples.
    """
    manifest = folder.manifest
    hashes = {entry.file: entry.sha256 for entry in manifest.companions}
    if name not in hashes:
        return None
    path = listed_file(folder.root, name)
    require_written(path, hashes[name])
    count = len(manifest.samples)
    # Layouts `pt` and `npz` keep them in their own files.
    rows = read_soft_labels(path, count) if path.suffix == ".npy" else _of_tensors(path, count)
    if rows is not None:
        _require_rows(path, rows, manifest)
    return rows


def _of_tensors(path: Path, rows: int) -> SoftLabels | None:
    """Read the soft labels of a layout's tensors, None if a file of several arrays has none."""
    content = open_stored(path)
    array = content.get("soft_labels") if isinstance(content, Mapping) else content
    if array is None:
        return None
    if not is_array(array) or len(array.shape) != 2 or array.dtype != np.float32:
        raise DatasetError(f"{path}: does not hold an array of soft labels; {_AGAIN}")
    if array.shape[0] != rows:
        raise DatasetError(
            f"{path}: holds soft labels of {array.shape[0]} images, expected {rows}; {_AGAIN}"
        )
    return _finite(path, load(array))


def _require_rows(path: Path, rows: SoftLabels, manifest: Manifest) -> None:
    """Require a column per class, and rows whose hashes match the manifest where it has them."""
    largest = max(entry.index for entry in manifest.classes)
    if rows.shape[1] <= largest:
        raise DatasetError(
            f"{path}: has {rows.shape[1]} columns, expected one for each class, 0 to {largest}; "
            f"{_AGAIN}"
        )
    for row, entry in zip(rows, manifest.samples, strict=True):
        expected = entry.soft_label_sha256
        if expected and hashlib.sha256(row.tobytes()).hexdigest() != expected:
            raise DatasetError(f"{path}: is not the soft label of sample {entry.key}; {_AGAIN}")


def read_soft_labels(path: Path, rows: int) -> SoftLabels:
    """Read a `.npy` file of soft labels, [rows, classes] float32.

    Raises:
        DatasetError: If it holds something other than such an array of finite numbers.
    """
    with reported(path, "read", DatasetError), path.open("rb") as file:
        try:
            shape, fortran, dtype = read_npy_header(file)
        # numpy's readers raise ValueError, EOFError, SyntaxError, TokenError … on damaged files
        except Exception as cause:
            raise DatasetError(
                f"{path}: does not hold an array of soft labels; {_AGAIN}"
            ) from cause
        # The header is compared with the size of the file before anything of that size is
        # allocated.
        whole = path.stat().st_size - file.tell()
        if (
            len(shape) != 2
            or shape[0] != rows
            or dtype != np.float32
            or fortran
            or prod(shape) * dtype.itemsize != whole
            or not whole
        ):
            found = shown(f"{dtype}{list(shape)} in {whole:,} bytes")
            raise DatasetError(
                f"{path}: holds {found}, expected float32[{rows}, classes] and no more; {_AGAIN}"
            )
        return _finite(path, np.frombuffer(file.read(whole), np.float32).reshape(shape))


def _finite(path: Path, values: SoftLabels) -> SoftLabels:
    if not np.isfinite(values).all():
        raise DatasetError(f"{path}: holds NaN or infinity, expected finite numbers; {_AGAIN}")
    return values
