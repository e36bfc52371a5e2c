"""Fashion-MNIST (Xiao et al. 2017, MIT licence), as 32-pixel RGB images.

60,000 grey photographs of clothes to train on and 10,000 to test with, 28 x 28 pixels each, padded
with the background to 32. The last 5,000 of the 60,000 are held out for choosing settings.

The files are those of the Debian package `dataset-fashion-mnist`; `FASHION_MNIST` names another
folder that holds them.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from examples.dataset import IMAGE_SIZE, Dataset, Split, Splits

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
VALIDATION = 5_000
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def source_folder() -> Path:
    """Return the folder of the four files.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    folder = Path(os.environ.get("FASHION_MNIST", DEBIAN_FOLDER))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder, expected the files of Fashion-MNIST. Run `apt install "
            "dataset-fashion-mnist`, or set FASHION_MNIST to the folder that holds "
            "train-images-idx3-ubyte.gz and the other three."
        )
    return folder


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of a gzipped IDX file of unsigned bytes.

    Raises:
        ValueError: If the file is not one, or its size is not what its header states.
    """
    content = gzip.decompress(path.read_bytes())
    # Two zero bytes, the element type (8: unsigned byte), the rank, and big-endian sizes.
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: starts with {content[:3]!r}, expected an IDX file of bytes.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != shape.prod():
        raise ValueError(
            f"{path}: {values.size} values, expected {' x '.join(map(str, shape))} as its header "
            "states. The file is incomplete; install it again."
        )
    return values.reshape(shape)


def read_split(folder: Path, name: str) -> Split:
    """Return the images and labels of the files that start with `name`, "train" or "t10k"."""
    grey = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    margin = (IMAGE_SIZE - grey.shape[1]) // 2
    padded = np.pad(grey, [(0, 0), (margin, margin), (margin, margin)])
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    return Split(np.repeat(padded[..., None], 3, axis=-1), labels)


def load_splits() -> Splits:
    """Return 55,000 images to train on, 5,000 for validation and the 10,000 of the test set."""
    folder = source_folder()
    known = read_split(folder, "train")
    index = np.arange(len(known))
    return Splits(
        train=known.at(index[:-VALIDATION]),
        validation=known.at(index[-VALIDATION:]),
        test=read_split(folder, "t10k"),
    )


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image, [n, c, H, W] in [-1, 1], by up to a pixel each way."""
    # Not flipped: all shoes of the data set point to the left.
    n, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(3, (2, n), generator=generator)
    rows = top[:, None, None] + torch.arange(height)[None, :, None]
    columns = left[:, None, None] + torch.arange(width)[None, None, :]
    index = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2).contiguous()


DATASET = Dataset(
    name="fashion",
    class_names=CLASS_NAMES,
    load=load_splits,
    augment=shift,
    vae_steps=1000,
    dit_steps=4000,
    dit_variants=1,
    methods={"dm": "distilled/dm", "dc": "distilled/dc"},
)
