"""Files of arrays for tests: whole ones, and changed ones."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

VALUES = np.arange(4 * 3 * 5 * 2, dtype=np.float32).reshape(4, 3, 5, 2)


def save_torch(path: Path) -> Path:
    torch.save({"a": torch.from_numpy(VALUES)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def save_npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), a=VALUES)
    return path.with_suffix(".npz")


def save_safetensors(path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({"a": VALUES}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def rewritten(
    value: Any,
    path: Path,
    change: Callable[[bytes], bytes] = lambda data: data,
    member: str = "data.pkl",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Save a value with torch, and zip the file again with a member, the pickle, changed."""
    whole = io.BytesIO()
    torch.save(value, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name.endswith(member) else data)
    return path


def pickled(path: Path, data: bytes) -> Path:
    """Write a file of torch.save with one storage of 24 bytes, "0", and the given pickle."""
    return rewritten(torch.zeros(6), path, lambda _: b"\x80\x02" + data)
