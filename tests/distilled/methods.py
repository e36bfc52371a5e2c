"""A small file in every format that distillation methods write, made of known images.

Each writer takes images [n, H, W, 3] uint8, or values [n, 3, H, W] that are normalised already, and
their classes, and returns the input for diver-trt.
The structures are those of the methods' own code: its calls of torch.save or numpy.savez, its names
and types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.distilled.normalisation import find_normalisation

Pixels = NDArray[np.uint8]
Images = Pixels | torch.Tensor


def normalised(images: Images, statistics: str) -> torch.Tensor:  # => [n, 3, H, W] float32
    if isinstance(images, torch.Tensor):
        return images
    values = find_normalisation(statistics)
    pixels = (images.astype(np.float64) / 255 - np.array(values.mean)) / np.array(values.std)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32))


def hard(classes: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(list(classes), dtype=dtype)


def one_hot(classes: Sequence[int], num_classes: int) -> NDArray[np.float32]:
    return np.eye(num_classes, dtype=np.float32)[list(classes)]


def logits(classes: Sequence[int], num_classes: int) -> torch.Tensor:
    noise = np.random.default_rng(1).normal(size=(len(classes), num_classes))
    return torch.from_numpy((8 * one_hot(classes, num_classes) + noise).astype(np.float32))


def collages(
    tiles: Pixels, factor: int, side: int
) -> Pixels:  # [n * factor^2, h, w, 3] => [n, side, side, 3]
    """Glue tiles row by row.

    The last row and column are cut where the factor does not divide the side, as in IDC.
    """
    height, width = tiles.shape[1:3]
    grid = tiles.reshape(-1, factor, factor, height, width, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(
        grid.reshape(-1, factor * height, factor * width, 3)[:, :side, :side]
    )


def mtt(
    folder: Path,
    images: Images,
    classes: Sequence[int],
    statistics: str = "imagenet",
    iteration: str = "best",
) -> Path:
    torch.save(normalised(images, statistics), folder / f"images_{iteration}.pt")
    torch.save(hard(classes), folder / f"labels_{iteration}.pt")
    return folder / f"images_{iteration}.pt"


def tesla_with_teacher_labels(folder: Path, images: Pixels, classes: Sequence[int]) -> Path:
    torch.save(normalised(images, "imagenet"), folder / "images_best.pt")
    torch.save(logits(classes, 10).softmax(dim=1), folder / "labels_best.pt")
    return folder / "images_best.pt"


def datm(folder: Path, images: Pixels, classes: Sequence[int]) -> Path:
    """DATM's and EDF's: logits, and the learned rate in a third file."""
    torch.save(normalised(images, "imagenet"), folder / "images_best.pt")
    torch.save(logits(classes, 10).requires_grad_(), folder / "labels_best.pt")
    torch.save(torch.tensor(0.01), folder / "lr_best.pt")
    return folder


def glad(folder: Path, images: Images, classes: Sequence[int]) -> Path:
    torch.save(normalised(images, "glad"), folder / "images_05000.pt")
    torch.save(hard(classes), folder / "labels_05000.pt")
    return folder / "images_05000.pt"


def dm(
    folder: Path,
    images: Images,
    classes: Sequence[int],
    dataset: str = "CIFAR10",
    statistics: str = "cifar10",
) -> Path:
    """DC's, DSA's and DM's: several experiments, of which the last counts, and numpy floats."""
    wrong = [torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)]
    accuracies: dict[str, Any] = {"ConvNet": [np.float64(0.5), np.float64(0.6)]}
    path = folder / f"res_DM_{dataset}_ConvNet_2ipc.pt"
    torch.save(
        {
            "data": [wrong, [normalised(images, statistics), hard(classes)]],
            "accs_all_exps": accuracies,
        },
        path,
    )
    return path


def cafe(folder: Path, images: Pixels, classes: Sequence[int]) -> Path:
    path = folder / "res_CAFE_CIFAR10_ConvNet_2ipc.pt"
    torch.save(
        {
            "data": [[normalised(images, "cifar10"), hard(classes, torch.int32)]],
            "accs_all_exps": {"ConvNet": []},
        },
        path,
    )
    return path


def listed(name: str) -> Any:
    """IDC's, DREAM's and NCFM's: images and labels in one list, in [0, 1]."""

    def write(folder: Path, images: Images, classes: Sequence[int]) -> Path:
        torch.save([normalised(images, "none"), hard(classes)], folder / name)
        return folder / name

    return write


def frepo(
    folder: Path, images: Images, classes: Sequence[int], statistics: str = "frepo-cifar10"
) -> Path:
    count = max(10, max(classes) + 1)
    centred = (one_hot(classes, count) - 1 / count) / np.sqrt(count / 10)
    values = normalised(images, statistics).numpy().transpose(0, 2, 3, 1)
    np.savez(folder / "step500000.npz", image=values, label=centred.astype(np.float32))
    return folder / "step500000.npz"


def frepo_checkpoint(
    folder: Path, images: Pixels, classes: Sequence[int], statistics: str = "frepo-cifar10"
) -> Path:
    """A training state as flax 0.12 serialises it.

    Arrays are extension 1: packed `(shape, dtype, bytes)`.
    """

    def packed(array: NDArray[np.float32]) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    with np.load(frepo(folder, images, classes, statistics)) as arrays:
        params = {"x_proto": packed(arrays["image"]), "y_proto": packed(arrays["label"])}
    (folder / "step500000.npz").unlink()
    optimiser = {"0": {"count": 500_000, "mu": params, "nu": params}}
    state = {
        "step": 500_000,
        "params": params,
        "opt_state": optimiser,
        "epoch": 0,
        "best_val_acc": 0.5,
        "ema_hidden": None,
    }
    (folder / "checkpoint_500000").write_bytes(msgpack.packb(state, strict_types=True))
    return folder / "checkpoint_500000"


def seqmatch(folder: Path, images: Pixels, classes: Sequence[int]) -> Path:
    """Parts in folders of their own.

    Each has its share of every class, so that the classes of the joined set are not contiguous.
    """
    for part in range(2):
        (folder / f"S{part + 1}").mkdir()
        mtt(folder / f"S{part + 1}", images[part::2], list(classes)[part::2])
        torch.save(torch.tensor(0.01), folder / f"S{part + 1}" / "best_lr.pt")
    return folder


def tree(name: str, **options: Any) -> Any:
    """Image folders; `{c}` is the class, `{i}` the image's number in its class, `{w}` the wnid."""

    def write(
        folder: Path, images: Pixels, classes: Sequence[int], wnids: Sequence[str] | None = None
    ) -> Path:
        numbers: dict[int, int] = {}
        for image, index in zip(images, classes, strict=True):
            number = numbers[index] = numbers.get(index, -1) + 1
            path = folder / name.format(c=index, i=number, w=wnids[index] if wnids else "")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, **options)
        return folder

    return write


SRE2L = tree("new{c:03d}/class{c:03d}_id{i:03d}.jpg", quality=75)
CDA_21K = tree("new{c:05d}/class{c:05d}_id{i:03d}.jpg", quality=75)
GVBSM = tree("new{c:03d}/class{c:03d}_id{i:03d}.png")
RDED = tree(
    "imagenet-woof_resnet18_f2_mipc300_ipc10_cr5/syn_data/{c:05d}/class{c:05d}_id{i:05d}.jpg",
    quality=75,
)
D4M = tree("{c}/{c}-image{i}0.png")
MINIMAX = tree("{w}/{i}.png")
MGD3 = tree("dataset_0/{w}/{i}.png")
