"""References that do not match the whitened images are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.distilled.whitened import FloatImages, convert, refused, save_frepo, save_mtt


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), "holds 1 image; expected those the method whitened"),
        (np.zeros((9, 8, 8, 3), np.uint8), "holds images of 8 x 8; the method whitened 16 x 16"),
        (
            np.full((9, 16, 16, 3), 7, np.float32),
            "holds values from 7.00 to 7.00; expected images in 0 to 1, or uint8",
        ),
        (
            np.zeros((9, 16), np.uint8),
            "does not hold an array of images; expected one, or a folder of images",
        ),
        (
            np.full((9, 16, 16, 3), np.nan, np.float32),
            "holds values from nan to nan; expected images in 0 to 1",
        ),
        (None, "train.npz: no such file or folder"),
    ],
)
def test_images_that_do_not_match_are_refused(
    whitened: FloatImages, tmp_path: Path, images: NDArray[Any] | None, message: str
) -> None:
    path, reference = save_mtt(tmp_path, whitened), tmp_path / "train.npz"
    if images is not None:
        np.savez(reference, images=images)
    assert message in refused(path, tmp_path / "a.npz", "--zca-reference", reference)
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (800, "the ZCA transform was fitted to 800 images"),
        (
            2,
            "the ZCA transform was fitted to 2 images, too few for its 768 dimensions: expected "
            "the whole training set, for CIFAR 50,000",
        ),
    ],
)
def test_a_note_gives_the_number_of_images_that_the_transform_was_fitted_to(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, count: int, note: str
) -> None:
    path, reference = save_mtt(tmp_path, whitened), tmp_path / "train.npz"
    np.savez(reference, images=photographs[:count])
    printed = convert(path, tmp_path / "a.npz", "--zca-reference", reference)
    assert f"note: {note}\n" in printed


def test_a_folder_is_read_without_following_symlinks_out_or_waiting_for_a_fifo(
    tmp_path: Path, whitened: FloatImages
) -> None:
    path = save_mtt(tmp_path, whitened)
    pixels = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    pixels.save(tmp_path / "outside.png")
    for name in ("link", "folder", "fifo", "postscript"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        pixels.save(tmp_path / name / "1.png")
    (tmp_path / "link" / "deeper" / "0.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "folder" / "deeper" / "x").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo" / "0.png")
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "postscript" / "deeper" / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    for name, message in (
        ("link", "link/deeper/0.png: is a symlink out of the dataset"),
        ("folder", "folder/deeper/x: is a symlink out of the dataset"),
        ("fifo", "fifo/0.png: is not a regular file, expected an image file"),
        ("fifo.npz", "fifo.npz: is neither a regular file nor a folder"),
        ("postscript", "postscript/deeper/0.png: holds PostScript"),
    ):
        assert message in refused(path, tmp_path / "a.npz", "--zca-reference", tmp_path / name)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            (np.zeros(768, np.float32), np.zeros((192, 192), np.float32)),
            "rev_whitening_transform is float32[192, 192]; for images",
        ),
        (
            (np.zeros(192, np.float32), np.zeros((768, 768), np.float32)),
            "zca_mean is float32[192]; for images of 16 x 16 expected floats [768]",
        ),
        ((np.zeros(768, np.int32), np.zeros((768, 768), np.float32)), "zca_mean is int32[768]"),
        (
            (np.full(768, np.nan, np.float32), np.zeros((768, 768), np.float32)),
            "holds values outside those of a transform; expected numbers below 1,000",
        ),
    ],
)
def test_transforms_that_do_not_match_are_refused(
    whitened: FloatImages,
    tmp_path: Path,
    transform: tuple[NDArray[Any], NDArray[Any]],
    message: str,
) -> None:
    mean, inverse = transform
    reference, output = tmp_path / "zca.npz", tmp_path / "a.npz"
    np.savez(reference, rev_whitening_transform=inverse, zca_mean=mean)
    path = save_frepo(tmp_path, whitened.transpose(0, 2, 3, 1))
    options = ("--zca-reference", reference)
    assert message in refused(path, output, *options, "--normalisation", "frepo-cifar10")
    assert "is a transform of FRePo's; expected the images that kornia's is fitted to" in refused(
        save_mtt(tmp_path, whitened), output, *options
    )
