"""Opening `.pt`, `.npz` and `.safetensors` files without running anything in them."""

from __future__ import annotations

from pathlib import Path

from diver_trt.distilled.image_kinds import HEAD_BYTES, LFS_POINTER, MARKUP, kind_of
from diver_trt.distilled.npz_file import open_npz
from diver_trt.distilled.regular_file import open_regular
from diver_trt.distilled.safetensors_file import open_safetensors
from diver_trt.distilled.stored_array import Content
from diver_trt.distilled.torch_file import open_torch
from diver_trt.errors import DatasetError
from diver_trt.files import reported

SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")

_IN_PLACE_OF_A_FILE = {
    LFS_POINTER: "Fetch the file with `git lfs pull`.",
    # Of Google Drive, where many methods publish: it asks before it sends a large file.
    MARKUP: "It is a page of the website: download the file again.",
}
"""What downloads leave under the name of a file, and how to get the file itself."""

_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")

_REMEDIES = {
    **dict.fromkeys(_ARCHIVES, "Unpack the archive, and give what is in it."),
    ".npy": "Save images and labels in one file: numpy.savez(path, images=..., labels=...).",
    **dict.fromkeys(
        (".pkl", ".pickle"),
        "Loading a pickle may run anything, so save its tensors with torch.save or numpy.savez.",
    ),
}
"""What to do about files that distilled images also come in, by suffix."""


def open_stored(path: Path) -> Content:
    """Open a file of arrays.

    Args:
        path: A `.pt` or `.pth` file, or `.npz` or `.safetensors`, which become dictionaries.

    Raises:
        DatasetError: If the file is of another kind, is damaged, holds anything but plain arrays,
            or claims more data than it has.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        remedy = f". {_REMEDIES[suffix]}" if suffix in _REMEDIES else ""
        raise DatasetError(
            f"{path}: is not a file of tensors; expected {', '.join(SUFFIXES)}, or a folder with "
            f"one folder of images per class{remedy}"
        )
    # The readers open the file by its path, and would wait for ever for the writer of a FIFO.
    with reported(path, "read", DatasetError), open_regular(path, "a file of tensors") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    if kind in _IN_PLACE_OF_A_FILE:
        raise DatasetError(
            f"{path}: holds {kind}, expected a file of tensors. {_IN_PLACE_OF_A_FILE[kind]}"
        )
    return {".npz": open_npz, ".safetensors": open_safetensors}.get(suffix, open_torch)(path)
