"""The file of images is found among the other tensors of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.tensor_files import find_one_tensor_file
from diver_trt.errors import DatasetError
from tests.distilled import methods
from tests.distilled.test_dataset import (
    CLASSES,
    WOOF,
    as_woof,
    assert_holds,
    known_images,
    named,
    refusal,
)

WOOF_IMAGES = known_images(20, 32)
NETWORK = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 2))


def trajectory() -> Any:
    """MTT's `replay_buffer_0.pt`: experts, their epochs, and the parameters after each epoch."""
    # A convolution's weights have four axes, as images do.
    return [[[p.detach() for p in NETWORK.parameters()] for _ in range(3)] for _ in range(2)]


LEFT = {
    "syn_lr_best.pt": torch.tensor(0.1),
    "lr_history.pt": torch.rand(7),
    "net_best.pth": NETWORK.state_dict(),
    "optimizer.pt": torch.optim.Adam(NETWORK.parameters()).state_dict(),
    "checkpoint.pth": {"epoch": 3, "state_dict": NETWORK.state_dict(), "arch": "ConvNet"},
    "replay_buffer_0.pt": trajectory(),
    "model.pt": NETWORK,
    "features.pt": torch.rand(20, 64),
    "protocol4.pt": NETWORK.state_dict(),
}


def leave(folder: Path) -> None:
    for name, value in LEFT.items():
        torch.save(value, folder / name, pickle_protocol=4 if name == "protocol4.pt" else 2)
    np.savez(folder / "fid_statistics.npz", mu=np.zeros(8), sigma=np.eye(8))
    (folder / "half_written.pt").write_bytes(b"")
    os.mkfifo(folder / "fifo.pt")


@pytest.mark.parametrize("write", [methods.mtt, methods.dm, methods.listed("data.pt")])
def test_other_files_of_a_run_are_not_images(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path]
) -> None:
    path = write(tmp_path, WOOF_IMAGES, CLASSES)
    alone = as_woof(path, imagenet, collage=1)
    leave(tmp_path)
    dataset = as_woof(tmp_path, imagenet, collage=1)
    assert dataset.origin == alone.origin
    assert dataset.samples == alone.samples
    assert find_one_tensor_file(tmp_path) == path


def test_other_files_of_a_run_do_not_hide_a_flax_checkpoint(tmp_path: Path) -> None:
    path = methods.frepo_checkpoint(tmp_path, WOOF_IMAGES, CLASSES)
    leave(tmp_path)
    assert find_one_tensor_file(tmp_path) == path


def test_tensors_beside_class_folders_do_not_hide_them(tmp_path: Path, imagenet: Bundle) -> None:
    methods.GVBSM(tmp_path, WOOF_IMAGES, CLASSES)
    leave(tmp_path)
    assert len(as_woof(tmp_path, imagenet).samples) == 20


def test_a_set_with_a_name_of_its_own_is_found(tmp_path: Path, imagenet: Bundle) -> None:
    leave(tmp_path)
    arrays = {"images": methods.normalised(WOOF_IMAGES, "none"), "labels": methods.hard(CLASSES)}
    torch.save(arrays, tmp_path / "mine.pt")
    labels = [sample.label for sample in as_woof(tmp_path / "mine.pt", imagenet).samples[::2]]
    assert_holds(as_woof(tmp_path, imagenet), WOOF_IMAGES, CLASSES, labels)
    torch.save(arrays, tmp_path / "yours.pt")
    with pytest.raises(
        DatasetError, match=r"holds several files of images \(mine.pt, yours.pt\); name one of them"
    ):
        as_woof(tmp_path, imagenet)


def test_the_unwhitened_file_of_the_best_iteration_is_read(
    tmp_path: Path, imagenet: Bundle
) -> None:
    for iteration, seed in (("1000", 1), ("5000", 2)):
        methods.mtt(tmp_path, known_images(20, 32, seed), CLASSES, "cifar10", iteration=iteration)
        torch.save(
            torch.zeros(20, 3, 32, 32) + float(iteration) / 1e4,
            tmp_path / f"images_zca_{iteration}.pt",
        )
    methods.mtt(tmp_path, known_images(20, 32, 1), CLASSES, "cifar10")
    dataset = as_woof(tmp_path, imagenet)
    assert dataset.origin.files == ("images_zca_1000.pt",)
    assert not any("best" in note for note in dataset.origin.notes)
    methods.mtt(tmp_path, known_images(20, 32, 3), CLASSES, "cifar10")
    dataset = as_woof(tmp_path, imagenet)
    assert dataset.origin.files == ("images_zca_5000.pt",)
    assert any(
        "images_best.pt is whitened and its iteration is unknown" in note
        for note in dataset.origin.notes
    )


@pytest.mark.parametrize("name", ["images_best.pt", "images_1000.pt"])
def test_a_damaged_file_beside_the_unwhitened_one_does_not_keep_it_from_being_read(
    tmp_path: Path, imagenet: Bundle, name: str
) -> None:
    images = known_images(20, 32)
    for iteration in ("best", "1000"):
        methods.mtt(tmp_path, images, CLASSES, "cifar10", iteration)
    path = methods.mtt(tmp_path, images, CLASSES, "none", "zca_1000")
    (tmp_path / "labels_zca_1000.pt").unlink()
    (tmp_path / name).write_bytes(b"cut short")
    for given in (path, tmp_path):
        assert_holds(as_woof(given, imagenet), images, CLASSES, WOOF)


def test_the_error_for_a_folder_without_images_describes_its_file(
    tmp_path: Path, imagenet: Bundle
) -> None:
    torch.save(NETWORK.state_dict(), tmp_path / "net_best.pth")
    with pytest.raises(DatasetError, match=r"net_best.pth: holds a dictionary of 0.weight, 0.bias"):
        as_woof(tmp_path, imagenet)


@pytest.mark.parametrize("name", ["INPUT.pt", "INPUT"])
def test_an_irregular_file_is_refused(tmp_path: Path, digits: Bundle, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / "zero.pt"):
        assert refusal(path, digits) == (
            f"{path}: is neither a regular file nor a folder; expected a file of tensors, or a "
            "folder of images or of such files"
        )


def test_no_file_claims_more_images_than_the_limit(tmp_path: Path, digits: Bundle) -> None:
    """Not even by a tensor of five million equal rows in 720 bytes."""
    for count, side in ((5_000_000, 1), (10_001, 4)):
        images = torch.zeros(1, 1, side, side, dtype=torch.uint8).expand(count, 1, side, side)
        torch.save([images, torch.zeros(1, dtype=torch.int64).expand(count)], tmp_path / "data.pt")
        assert (tmp_path / "data.pt").stat().st_size < 3000
        with pytest.raises(DatasetError, match=rf"a tensor of shape \[{count}, .* is larger than"):
            read_dataset(tmp_path / "data.pt", digits)
    for count, found in ((1_000_001, "1,000,001"), (300_000, "1,200,000")):
        images = torch.zeros(count, 1, 4, 4, dtype=torch.uint8)
        torch.save([images, torch.zeros(count, dtype=torch.uint8)], tmp_path / "data.pt")
        with pytest.raises(DatasetError, match=f"holds {found} images; expected at most 1,000,000"):
            read_dataset(tmp_path / "data.pt", digits)


def test_rows_that_repeat_one_image_are_read(tmp_path: Path, digits: Bundle) -> None:
    image = methods.normalised(WOOF_IMAGES[1:2], "cifar10").expand(20, 3, 32, 32)
    methods.mtt(tmp_path, image, CLASSES)
    dataset = read_dataset(tmp_path, digits)
    for position in range(20):
        np.testing.assert_array_equal(dataset.images.read(position), WOOF_IMAGES[1])


def test_channels_that_may_come_first_or_last_are_refused(tmp_path: Path, digits: Bundle) -> None:
    images = torch.rand(20, 3, 32, 3)
    torch.save([images, torch.tensor(CLASSES)], tmp_path / "data.pt")
    with pytest.raises(
        DatasetError, match=r"images are float32\[20, 3, 32, 3\], whose channels may come first or"
    ):
        read_dataset(tmp_path / "data.pt", digits)


def test_classes_without_images_are_counted(tmp_path: Path, digits: Bundle) -> None:
    for labels, absent in (
        (
            [max(1, label) for label in CLASSES],
            "1 of the 10 classes that its labels count have no images, the first of them class 0",
        ),
        ([0 if label in (3, 4) else label for label in CLASSES], "2 of the 10 classes"),
    ):
        methods.mtt(tmp_path, WOOF_IMAGES, labels, "cifar10")
        (note,) = read_dataset(tmp_path, digits, ReadOptions()).origin.notes
        assert absent in note


def test_a_set_and_its_converted_twin_are_not_chosen_between(
    tmp_path: Path, imagenet: Bundle
) -> None:
    methods.mtt(tmp_path, WOOF_IMAGES, CLASSES)
    named(tmp_path / "images_best.npz")
    with pytest.raises(
        DatasetError, match=r"several kinds \(\.npz, \.pt\); name one of them, such"
    ):
        as_woof(tmp_path, imagenet)
