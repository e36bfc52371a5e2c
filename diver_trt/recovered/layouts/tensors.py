"""`pt`, `npz` and `idc`: tensor files that trainers of the MTT and IDC families load.

The PNG files stay beside them, in folders by index. Images are class by class, [n, 3, H, W]
float32; labels are the dataset's indices, int64.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.normalisation import Normalisation, find_normalisation
from diver_trt.errors import shown
from diver_trt.files import reported
from diver_trt.packages import required
from diver_trt.recovered.layouts.base import Array, Layout, Written, write_header

_STACKED = ".images.stacked"
"""The images of all files in one array, while the tensor files are written."""

_SHARED = ("cifar10", "cifar100-dc", "cifar100-dwa", "svhn", "mnist", "fashionmnist")
"""Statistics of sources that their trainers use too.

GLaD's are not among them: its mean belongs to its decoder, not to its trainer.
"""


def _write_pt(written: Written, normalisation: Normalisation | None) -> list[str]:
    """Write `images.pt`, `labels.pt` and, with soft labels, `soft_labels.pt`."""
    others = {"labels.pt": _labels(written)}
    if (soft := written.logits) is not None:
        others["soft_labels.pt"] = soft
    _with_stacked(
        written, normalisation, lambda images: _save(written, "images.pt", _tensor(images))
    )
    for name, values in others.items():
        _save(written, name, _tensor(values))
    return ["images.pt", *others]


def _write_npz(written: Written, normalisation: Normalisation | None) -> list[str]:
    """Write `dataset.npz`: images, labels, soft labels, and texts that describe them."""
    assert normalisation is not None, "a tensor layout is always normalised"
    others: dict[str, Any] = {"labels": _labels(written)}
    if (soft := written.logits) is not None:
        others["soft_labels"] = soft
    # What a reader would otherwise have to detect: docs/datasets.md.
    facts = {"format": "mtt", "normalisation": normalisation.name, "collage": "1"}
    others |= {name: np.array(text) for name, text in facts.items()}

    def save(images: Array) -> None:
        with written.companion("dataset.npz") as file:
            # Not compressed, so that readers can take row by row.
            np.savez(file, images=images, **others)

    _with_stacked(written, normalisation, save)
    return ["dataset.npz"]


def _write_idc(written: Written, normalisation: Normalisation | None) -> list[str]:
    """Write `data.pt`: a list of images in [0, 1] and labels, which IDC and NCFM load."""
    labels = _tensor(_labels(written))
    _with_stacked(
        written, normalisation, lambda images: _save(written, "data.pt", [_tensor(images), labels])
    )
    return ["data.pt"]


def _trainers_normalisation(source: str | None, size: int) -> Normalisation:
    """Return the source's statistics if trainers share them, else those of the image size."""
    if source in _SHARED:
        return find_normalisation(source)
    return find_normalisation("cifar10" if size == 32 else "imagenet")


def _identity(source: str | None, size: int) -> Normalisation:  # noqa: ARG001
    return find_normalisation("none")  # IDC's and NCFM's trainers normalise themselves


def _labels(written: Written) -> Array:
    return np.asarray(written.indices, np.int64)


def _torch() -> Any:
    # Before the work it is only looked for, see `Layout.require`; here it may prove to be broken.
    return required("torch", "export", "the layout")


def _tensor(values: Array) -> Any:
    return _torch().from_numpy(values)


def _save(written: Written, name: str, value: Any) -> None:
    torch = _torch()
    with written.companion(name) as file:
        try:
            torch.save(value, file)
        # torch's zip writer raises its own RuntimeError for a file that cannot be written, and only
        # its context is the OSError that names the reason, or the KeyboardInterrupt.
        except RuntimeError as cause:
            hidden: BaseException | None = cause
            while hidden and not isinstance(hidden, (OSError, KeyboardInterrupt)):
                hidden = hidden.__context__
            raise hidden or OSError(shown(str(cause))) from None


def _with_stacked(
    written: Written, normalisation: Normalisation | None, use: Callable[[Array], None]
) -> None:
    """Call with one array of all images, [n, 3, size, size] float32, mapped from a scratch file."""
    # On disk, because the images of a whole dataset may exceed the memory of an edge device.
    assert normalisation is not None, "a tensor layout is always normalised"
    path = written.root / _STACKED
    try:
        with reported(path):
            # As in `files.replacing`: an earlier file may be a symlink.
            path.unlink(missing_ok=True)
            # Written in full before it is mapped: storing into a mapped file on a full disk raises
            # SIGBUS, which kills the process: https://man7.org/linux/man-pages/man2/mmap.2.html
            with path.open("xb") as file:
                write_header(file, (len(written.files), 3, written.size, written.size))
                for name in written.files:
                    # [size, size, 3] uint8 => [3, size, size] float32
                    file.write(normalisation.normalise(read_image(written.root / name)).data)
                file.flush()
                os.fsync(file.fileno())
        # Copy-on-write, because torch.from_numpy warns about arrays that are not writable. Nothing
        # here keeps the array, because Windows does not delete a file that is mapped.
        use(np.lib.format.open_memmap(path, "c"))
    finally:
        with suppress(OSError):
            path.unlink()


PT = Layout(
    name="pt",
    help="MTT, DATM, DD-Ranking",
    write=_write_pt,
    companions=("images.pt", "labels.pt"),
    soft_labels="soft_labels.pt",
    scratch=(_STACKED,),
    normalisation=_trainers_normalisation,
    requires=("torch",),
)
NPZ = Layout(
    name="npz",
    help="numpy, without torch",
    write=_write_npz,
    companions=("dataset.npz",),
    soft_labels="dataset.npz",
    scratch=(_STACKED,),
    normalisation=_trainers_normalisation,
)
IDC = Layout(
    name="idc",
    help="IDC, DREAM, NCFM",
    write=_write_idc,
    companions=("data.pt",),
    soft_labels=None,
    scratch=(_STACKED,),
    normalisation=_identity,
    requires=("torch",),
)
