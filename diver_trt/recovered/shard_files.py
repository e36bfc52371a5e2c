"""The files of the shards of a recovery, verified before they are merged.

They come from other machines, so nothing in them is taken on trust.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.npz_file import read_npy_header
from diver_trt.errors import DatasetError, shown
from diver_trt.files import file_sha256, reported
from diver_trt.manifest import RecoveredFolder
from diver_trt.records import Manifest, Recovered
from diver_trt.recovered.layouts.base import SOFT_LABELS

_PNG = b"\x89PNG\r\n\x1a\n"


def _existing(root: Path, name: str) -> Path:
    """Return the path of a file that a manifest lists.

    Raises:
        DatasetError: If it is missing, or a link out of the shard.
    """
    path = root / name
    if not path.is_file():
        raise DatasetError(
            f"{path}: missing, but the manifest lists it; run the shard's command again, which "
            "writes it again"
        )
    if not path.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{path}: is a link out of the shard; copy what it points to")
    return path


def _require_hash(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise DatasetError(
            f"{path}: is not the file that was written; run the shard's command again, which "
            "writes it again"
        )


def require_image(root: Path, entry: Recovered, side: int) -> None:
    """Require an image to be the one that was written, and of the size that the manifest gives.

    Raises:
        DatasetError: If it is not, or cannot be read.
    """
    path = _existing(root, entry.file)
    with reported(path, "read", DatasetError):
        _require_hash(path, entry.sha256)
        with path.open("rb") as file:
            head = file.read(24)
    # Bytes 16 to 24 are IHDR's width and height: https://www.w3.org/TR/png-3/#11IHDR
    if head[:8] != _PNG or head[16:] != struct.pack(">II", side, side):
        raise DatasetError(
            f"{path}: is not a PNG image of {side} x {side} pixels, as the manifest has it; "
            "recover the shard again"
        )


def soft_labels_of(shards: Sequence[RecoveredFolder]) -> NDArray[np.float32] | None:
    """Return the soft labels of all shards, which each wrote for its own samples, [n, classes].

    Raises:
        DatasetError: If a file is not the one that was written, if its values are not finite or not
            those of its samples, or if some shards have soft labels and others have none.
    """
    parts: list[NDArray[np.float32]] = []
    for shard in shards:
        hashes = {entry.file: entry.sha256 for entry in shard.manifest.companions}
        samples = shard.manifest.samples
        if SOFT_LABELS in hashes:
            path = _existing(shard.root, SOFT_LABELS)
            with reported(path, "read", DatasetError):
                _require_hash(path, hashes[SOFT_LABELS])
            parts.append(read_soft_labels(path, len(samples)))
            _require_rows(path, parts[-1], shard.manifest)
        elif samples:
            parts.append(np.empty((0, 0), np.float32))
    if len({part.shape[1] for part in parts}) > 1:
        raise DatasetError(
            "some shards have soft labels and some have none, or for other classes; recover them "
            "again from the same files"
        )
    return np.concatenate(parts) if any(part.size for part in parts) else None


def _require_rows(path: Path, rows: NDArray[np.float32], manifest: Manifest) -> None:
    """Require a column per class, and rows whose hashes match the manifest where it has them."""
    largest = max(entry.index for entry in manifest.classes)
    if rows.shape[1] <= largest:
        raise DatasetError(
            f"{path}: has {rows.shape[1]} columns, expected one for each class, 0 to {largest}; "
            "recover the shard again"
        )
    for row, entry in zip(rows, manifest.samples, strict=True):
        expected = entry.soft_label_sha256
        if expected and hashlib.sha256(row.tobytes()).hexdigest() != expected:
            raise DatasetError(
                f"{path}: is not the soft label of sample {entry.key}; recover the shard again"
            )


def read_soft_labels(path: Path, rows: int) -> NDArray[np.float32]:
    """Read a file of soft labels, [rows, classes] float32.

    Raises:
        DatasetError: If it holds something else than such an array of finite numbers.
    """
    with reported(path, "read", DatasetError), path.open("rb") as file:
        try:
            shape, fortran, dtype = read_npy_header(file)
        # numpy's readers raise ValueError, EOFError, SyntaxError, TokenError … on damaged files
        except Exception as cause:
            raise DatasetError(
                f"{path}: does not hold an array of soft labels; recover the shard again"
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
                f"{path}: holds {found}, expected float32[{rows}, classes] and no more; recover "
                "the shard again"
            )
        values = np.frombuffer(file.read(whole), np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise DatasetError(
            f"{path}: holds NaN or infinity, expected finite numbers; recover the shard again"
        )
    return values
