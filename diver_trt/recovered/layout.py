"""How a recovered dataset lies on disk: where each image goes, and what stands beside the images for the trainer that reads them.

Every layout keeps the images as PNG files, in folders whose sorted names are in index order, or under their wnids. The tensor layouts add
the files that trainers of the MTT and IDC families load; their images are class by class, their labels the dataset's indices.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import NORMALISATIONS, Normalisation
from diver_trt.documents import Document
from diver_trt.errors import OutputError, shown
from diver_trt.files import reported, writing

LAYOUTS = ("index", "wnid", "huggingface", "pt", "npz", "idc")
TENSOR_LAYOUTS = ("pt", "npz", "idc")

MAX_SIDE = 4096
STACKED = ".images.partial"
"""Where the images of a tensor layout are while its files are written."""

_FOLDERS = {"wnid": "n[0-9]{8}", "huggingface": "train/[0-9]{5,}"}
_COMPANIONS = {
    "huggingface": ("train/metadata.jsonl", "README.md"),
    "npz": ("dataset.npz",),
    "pt": ("images.pt", "labels.pt"),
    "idc": ("data.pt",),
}
_SOFT_LABELS = {"npz": None, "pt": "soft_labels.pt", "idc": None}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished set of PNG files, in class order.

    Attributes:
        root: The output folder.
        files: Path of each image within it.
        indices: The class of each image in the dataset's order.
        classes: What the manifest says of each index that occurs.
        soft_labels: The logits of each image, or None.
        size: Side of an image in pixels.
    """

    root: Path
    files: Sequence[str]
    indices: Sequence[int]
    classes: Sequence[Mapping[str, Any]]
    soft_labels: Callable[[int], Array | None] | None
    size: int


@dataclass(frozen=True, slots=True)
class OutputNames:
    """The names that a run gives to its files.

    Attributes:
        layout: One of `LAYOUTS`.
        shard: Whether it makes a part of a dataset, whose tensors are written by merging.
        images: How many images the whole dataset has.
    """

    layout: str
    shard: bool
    images: int

    @classmethod
    def of(cls, head: Document) -> OutputNames:
        """Return those of the run that a journal or a manifest begins with.

        Raises:
            DiverError: It says nothing of that.
        """
        name, shard = (
            head.document("layout").text("name", LAYOUTS),
            head.optional("shard", head.document),
        )
        return cls(name, shard is not None, head.document("source").integer("images"))

    @property
    def companions(self) -> tuple[str, ...]:
        """The files beside the images, but for soft labels."""
        return () if self.shard else _COMPANIONS.get(self.layout, ())

    @property
    def soft_labels(self) -> str | None:
        """The file of soft labels, None where they have none of their own."""
        return "soft_labels.npy" if self.shard else _SOFT_LABELS.get(self.layout, "soft_labels.npy")

    def has_companion(self, name: str) -> bool:
        """Return whether a name is that of a file beside the images."""
        return name in (*self.companions, self.soft_labels)

    def has_image(self, name: str) -> bool:
        """Return whether a name is that of an image."""
        match = re.fullmatch(f"{self._folder}/([0-9]{{5,18}})\\.png", name)
        return match is not None and int(match[1]) < self.images

    def refuse_links(self, root: Path) -> None:
        """Refuse an output folder in which a folder of images is a link, so that nothing is written or deleted elsewhere.

        Raises:
            OutputError: One is.
            OSError: It cannot be listed.
        """
        pattern = f"{self._folder}|train" if self.layout == "huggingface" else self._folder
        for parent in (root, root / "train"):
            for folder in parent.iterdir() if parent.is_dir() else ():
                if folder.is_symlink() and re.fullmatch(
                    pattern, folder.relative_to(root).as_posix()
                ):
                    raise OutputError(
                        f"{folder}: is a link, and images go nowhere but into the output folder; delete it to go on"
                    )

    @property
    def _folder(self) -> str:
        return _FOLDERS.get(self.layout, "[0-9]{5,}")


def class_name(entry: Mapping[str, Any]) -> str:
    """Return what a class in a manifest is called: its name, or its wnid, or its number in the model."""
    return str(entry["name"].split(",")[0] if entry["name"] else entry["wnid"] or entry["label"])


def image_path(layout: str, index: int, number: int, wnid: str | None) -> str:
    """Return where an image goes within the output folder.

    Args:
        layout: One of `LAYOUTS`.
        index: Its class in the dataset's order.
        number: Its number within the folder.
        wnid: Its class in ImageNet, if the model's classes are ImageNet's.

    Raises:
        OutputError: Folders are to be named by wnid, but the class has none.
    """
    if layout == "wnid":
        if wnid is None:
            raise OutputError(
                "--layout wnid: the model's classes are not ImageNet's, so they have no wnids; choose --layout index"
            )
        return f"{wnid}/{number:05d}.png"
    return f"{'train/' if layout == 'huggingface' else ''}{index:05d}/{number:05d}.png"


def image_paths(layout: str, samples: Iterable[tuple[str, int, str | None]]) -> dict[str, str]:
    """Return where each image of a whole dataset goes, by key.

    Two indices of one class share its wnid folder; the numbers of the second go on from those of the first.

    Args:
        layout: One of `LAYOUTS`.
        samples: The key, the model's class and the wnid of each sample, in the dataset's order.

    Raises:
        OutputError: If folders are to be named by wnid, but a class has none.
    """
    paths, counts = {}, Counter[int]()
    for key, label, wnid in samples:
        index, number = map(int, key.split("/"))
        paths[key] = image_path(layout, index, counts[label] if layout == "wnid" else number, wnid)
        counts[label] += 1
    return paths


def tensor_normalisation(layout: str, source: str | None, size: int) -> Normalisation | None:
    """Return what a tensor layout normalises images with: the source's own statistics if trainers share them, else those of the image size.

    IDC and NCFM normalise themselves. GLaD's odd mean is that of its decoder, not of its trainer.
    """
    if layout not in TENSOR_LAYOUTS:
        return None
    if layout == "idc":
        return NORMALISATIONS["none"]
    if source in ("cifar10", "cifar100-dc", "cifar100-dwa", "svhn", "mnist", "fashionmnist"):
        return NORMALISATIONS[source]
    return NORMALISATIONS["cifar10" if size == 32 else "imagenet"]


def write_companions(
    layout: str, written: Written, normalisation: Normalisation | None
) -> list[str]:
    """Write what a layout has beside its images, and return the names of the files.

    Raises:
        OutputError: A file cannot be written, or a `.pt` file is asked for where torch is not installed.
    """
    if layout == "huggingface":
        return [*_write_huggingface(written), *_write_soft_labels(written)]
    if normalisation is None:
        return _write_soft_labels(written)
    with _stacked(written, normalisation) as images:
        return _write_tensors(layout, written, normalisation, images)


def require_torch(layout: str) -> None:
    """Refuse `.pt` layouts where torch is not installed, before any work is done.

    Raises:
        OutputError: It is not.
    """
    if layout in ("pt", "idc"):
        from importlib.util import find_spec

        if find_spec("torch") is None:
            raise OutputError(
                f"--layout {layout}: writing .pt files needs torch, which is not installed; choose --layout npz"
            )


def _write_soft_labels(written: Written) -> list[str]:
    if written.soft_labels is None or not written.files:
        return []
    labels = _soft_labels(written)
    with _file(written, "soft_labels.npy") as file:
        _write_header(file, labels.shape)
        file.write(labels.data)
    return ["soft_labels.npy"]


def _soft_labels(written: Written) -> NDArray[np.float32]:
    assert written.soft_labels is not None
    return np.stack(
        [np.asarray(written.soft_labels(i), np.float32) for i in range(len(written.files))]
    )


def _write_huggingface(written: Written) -> list[str]:
    labels = {entry["index"]: entry["label"] for entry in written.classes}
    named = {entry["index"]: class_name(entry) for entry in written.classes}
    names = [named.get(index, str(index)) for index in range(max(named) + 1)]
    count = Counter(names)
    names = [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    with _file(written, "train/metadata.jsonl") as file:
        for name, index in zip(written.files, written.indices, strict=True):
            row = {
                "file_name": name.removeprefix("train/"),
                "label": index,
                "model_class": labels[index],
            }
            file.write(json.dumps(row).encode() + b"\n")
    card = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train/**",
        "  features:",
        "  - name: image",
        "    dtype: image",
        "  - name: label",
        "    dtype:",
        "      class_label:",
        "        names:",
        *(f"          '{index}': {json.dumps(name)}" for index, name in enumerate(names)),
        "  - name: model_class",
        "    dtype: int64",
        "---",
        "Recovered with diver-trt; `manifest.json` says from what and how.",
        "",
    ]
    with _file(written, "README.md") as file:
        file.write("\n".join(card).encode())
    return ["train/metadata.jsonl", "README.md"]


def _write_tensors(
    layout: str, written: Written, normalisation: Normalisation, images: Array
) -> list[str]:
    labels = np.asarray(written.indices, np.int64)
    soft = (
        {}
        if written.soft_labels is None or not written.files or layout == "idc"
        else {"soft_labels": _soft_labels(written)}
    )
    if layout == "npz":
        said = {
            "format": np.array("mtt"),
            "normalisation": np.array(normalisation.name),
            "collage": np.array("1"),
        }
        with _file(written, "dataset.npz") as file:
            arrays: dict[str, Any] = {"images": images, "labels": labels, **soft, **said}
            np.savez(file, **arrays)
        return ["dataset.npz"]
    import torch

    tensors = {
        name: torch.from_numpy(array)
        for name, array in {"images": images, "labels": labels, **soft}.items()
    }
    files: dict[str, Any] = (
        {f"{name}.pt": tensor for name, tensor in tensors.items()}
        if layout == "pt"
        else {"data.pt": list(tensors.values())}
    )
    for name, value in files.items():
        with _file(written, name) as file:
            try:
                torch.save(value, file)
            except RuntimeError as cause:  # its own, which hides the one that the file raised
                hidden = cause.__context__
                raise (
                    hidden if isinstance(hidden, OSError) else OSError(shown(str(cause)))
                ) from None
    return list(files)


@contextmanager
def _stacked(written: Written, normalisation: Normalisation) -> Iterator[Array]:
    """Make one array of all images, [n, 3, size, size] float32, in a file of its own rather than in memory.

    The file is whole before it is mapped: writing into a mapped file ends the process when the disk is full.
    """
    path = written.root / STACKED
    try:
        with reported(path):
            path.unlink(missing_ok=True)
            with path.open("xb") as file:
                _write_header(file, (len(written.files), 3, written.size, written.size))
                for name in written.files:
                    file.write(normalisation.normalise(read_image(written.root / name)).data)
                file.flush()
                os.fsync(file.fileno())
        yield np.lib.format.open_memmap(path, "c")
    finally:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _file(written: Written, name: str) -> Iterator[BinaryIO]:
    path = written.root / name
    with reported(path):
        path.parent.mkdir(exist_ok=True)  # `train` is missing if no image could be recovered
        with writing(path) as file:
            yield file


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a .npy file of float32; the values are written as bytes, since numpy reports a full disk without saying so."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
