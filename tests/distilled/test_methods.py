"""Every method's files are read back to the images and ImageNet classes they were made of."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import imagenet_subsets, imagenet_wnids
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from diver_trt.recipe import Recipe
from diver_trt.recovered.run import recover
from tests.conftest import DISTILLED
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, WOOF, as_woof, assert_holds, known_images, named


@pytest.mark.parametrize(
    ("write", "side", "name", "statistics"),
    [
        (methods.mtt, 128, "mtt", "imagenet"),
        (methods.tesla_with_teacher_labels, 64, "mtt", "imagenet"),
        (methods.datm, 128, "mtt", "imagenet"),
        (methods.seqmatch, 128, "mtt", "imagenet"),
        (methods.glad, 128, "glad", "glad"),
        (methods.dm, 32, "dc", "cifar10"),
        (methods.cafe, 32, "dc", "cifar10"),
    ],
)
def test_tensors_come_back_as_the_images_they_were(
    tmp_path: Path,
    imagenet: Bundle,
    write: Callable[..., Path],
    side: int,
    name: str,
    statistics: str,
) -> None:
    images = known_images(20, side)
    dataset = as_woof(write(tmp_path, images, CLASSES), imagenet)
    assert (dataset.origin.format.name, dataset.origin.normalisation, dataset.origin.collage) == (
        name,
        statistics,
        1,
    )
    order = [*range(0, 20, 2), *range(1, 20, 2)] if write is methods.seqmatch else list(range(20))
    assert_holds(dataset, images[order], [CLASSES[i] for i in order], WOOF)


@pytest.mark.parametrize(
    ("dataset", "statistics"),
    [
        ("CIFAR100", "cifar100-dc"),
        ("MNIST", "mnist"),
        ("SVHN", "svhn"),
        ("TinyImageNet", "imagenet"),
        # GLaD's `distill_dc.py` and `distill_dm.py` write DC's files, with its own mean.
        ("imagenet-birds", "glad"),
    ],
)
def test_dc_normalises_each_data_set_with_its_own_statistics(
    tmp_path: Path, imagenet: Bundle, dataset: str, statistics: str
) -> None:
    images = known_images(20, 64)
    found = as_woof(methods.dm(tmp_path, images, CLASSES, dataset, statistics), imagenet)
    assert found.origin.normalisation == statistics
    assert_holds(found, images, CLASSES, WOOF)


@pytest.mark.parametrize(
    ("name", "side", "method", "factor"),
    [
        ("data.pt", 224, "idc", 3),
        ("data.pt", 32, "idc", 2),
        ("data1200.pt", 224, "dream", 2),
        ("data_best.pt", 128, "dream", 2),
        ("data_20000.pt", 128, "ncfm", 2),
    ],
)
def test_collages_are_cut_into_their_images(
    tmp_path: Path, imagenet: Bundle, name: str, side: int, method: str, factor: int
) -> None:
    tile = -(-side // factor)
    tiles = known_images(20 * factor**2, tile)
    path = methods.listed(name)(tmp_path, methods.collages(tiles, factor, side), CLASSES)
    dataset = as_woof(path, imagenet)
    assert (dataset.origin.format.name, dataset.origin.collage, dataset.origin.normalisation) == (
        method,
        factor,
        "none",
    )
    last = side - tile * (factor - 1)
    cut = [
        image[: last if row == factor - 1 else tile, : last if column == factor - 1 else tile]
        for image, (row, column) in zip(
            tiles, [divmod(i % factor**2, factor) for i in range(len(tiles))], strict=True
        )
    ]
    assert_holds(dataset, cut, [index for index in CLASSES for _ in range(factor**2)], WOOF)
    whole = as_woof(path, imagenet, collage=1)
    assert len(whole.samples) == 20
    assert whole.images.read(0).shape == (side, side, 3)


def test_ncfm_lists_need_not_be_in_class_order(tmp_path: Path, imagenet: Bundle) -> None:
    images, classes = known_images(20, 64), [i % 10 for i in range(20)]
    dataset = as_woof(
        methods.listed("data_init.pt")(tmp_path, images, classes), imagenet, collage=1
    )
    assert_holds(dataset, images, classes, WOOF)


@pytest.mark.parametrize(
    ("write", "suffix", "method"),
    [
        (methods.SRE2L, "jpg", "sre2l"),
        (methods.CDA_21K, "jpg", "sre2l"),
        (methods.GVBSM, "png", "sre2l"),
        (methods.D4M, "png", "d4m"),
    ],
)
def test_folders_are_read_with_each_methods_naming(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path], suffix: str, method: str
) -> None:
    images = known_images(20, 64)
    dataset = as_woof(write(tmp_path, images, CLASSES), imagenet)
    assert (dataset.origin.format.name, dataset.origin.normalisation) == (method, None)
    assert any("FKD" in note for note in dataset.origin.notes)
    if suffix == "jpg":
        images = np.stack(
            [np.asarray(Image.open(path)) for path in sorted(tmp_path.rglob("*.jpg"))]
        )
    assert_holds(dataset, images, CLASSES, WOOF)


@pytest.mark.parametrize("write", [methods.MINIMAX, methods.MGD3])
def test_wnid_folders_take_the_subsets_order(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path]
) -> None:
    images = known_images(24, 64)
    # Twelve: 10.png must not come before 2.png.
    classes = [index for index in range(2) for _ in range(12)]
    dataset = as_woof(
        write(tmp_path, images, classes, [imagenet_wnids()[label] for label in WOOF]), imagenet
    )
    assert dataset.origin.format.name == "minimax"
    assert_holds(dataset, images, classes, WOOF)


def test_rded_names_its_collage_factor_in_its_folder(tmp_path: Path, imagenet: Bundle) -> None:
    methods.RDED(tmp_path, methods.collages(known_images(80, 32), 2, 64), CLASSES)
    folder = next(tmp_path.iterdir())
    for path in (folder, folder / "syn_data"):
        dataset = as_woof(path, imagenet)
        assert (dataset.origin.format.name, dataset.origin.collage, len(dataset.samples)) == (
            "rded",
            2,
            80,
        )
    jpeg = np.asarray(Image.open(folder / "syn_data" / "00003" / "class00003_id00001.jpg"))
    last_tile = [sample for sample in dataset.samples if sample.index == 3][-1]
    np.testing.assert_array_equal(dataset.images.read(last_tile.position), jpeg[32:, 32:])
    assert dataset.images.name(last_tile.position) == "00003/class00003_id00001.jpg tile 3"


def test_unwhitened_frepo_arrays_are_read(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 32)
    dataset = as_woof(methods.frepo(tmp_path, images, CLASSES), imagenet)
    assert (dataset.origin.format.name, dataset.origin.normalisation) == ("frepo", "frepo-cifar10")
    assert dataset.soft_label is None
    assert_holds(dataset, images, CLASSES, imagenet_subsets()["imagewoof@frepo"])
    assert dataset.classes == "imagewoof@frepo"


def test_a_methods_own_variant_of_a_subset_is_used_and_named(
    tmp_path: Path, imagenet: Bundle
) -> None:
    path = methods.listed("data_20000.pt")(tmp_path, known_images(20, 128), CLASSES)
    dataset = read_dataset(path, imagenet, ReadOptions(classes="imagefruit"))
    assert "classes as in imagefruit@ncfm" in dataset.summary
    assert {sample.label for sample in dataset.samples} == set(
        imagenet_subsets()["imagefruit@ncfm"]
    )


def test_averaged_images_have_averaged_labels(tmp_path: Path, imagenet: Bundle) -> None:
    """FTD's `ema_images_best.pt`."""
    images = known_images(20, 128)
    methods.mtt(tmp_path, images, CLASSES)
    for name in ("images", "labels"):
        (tmp_path / f"{name}_best.pt").rename(tmp_path / f"ema_{name}_best.pt")
    assert_holds(as_woof(tmp_path, imagenet), images, CLASSES, WOOF)
    methods.mtt(tmp_path, images, CLASSES)
    with pytest.raises(
        DatasetError,
        match=r"several files of images \(ema_images_best.pt, images_best.pt\); name one",
    ):
        as_woof(tmp_path, imagenet)
    assert_holds(as_woof(tmp_path / "ema_images_best.pt", imagenet), images, CLASSES, WOOF)


def test_idcs_folders_name_the_collage_factor(tmp_path: Path, imagenet: Bundle) -> None:
    """`argument.py` writes `_factor2` into the folder's name."""
    images = known_images(20, 128)
    for factor, count in ((1, 20), (2, 80)):
        folder = tmp_path / f"conv3in_grad_mse_nd2000_cut_niter2000_factor{factor}_lr0.005_ipc2"
        folder.mkdir()
        methods.listed("data.pt")(folder, images, CLASSES)
        dataset = as_woof(folder, imagenet)
        assert (dataset.origin.collage, len(dataset.samples)) == (factor, count)
        assert as_woof(folder, imagenet, collage=4).origin.collage == 4
        assert as_woof(folder, imagenet, method="ncfm").origin.collage == 2


def test_folders_count_around_a_symlink_and_not_around_its_target(
    tmp_path: Path, imagenet: Bundle
) -> None:
    """As in the cache of the Hugging Face hub, whose files are symlinks to blobs without a name."""
    run = tmp_path / "logged_files" / "imagenet-fruits" / "run"
    run.mkdir(parents=True)
    path = methods.mtt(run, known_images(20, 128), CLASSES)
    path.rename(tmp_path / "blob")
    path.symlink_to(tmp_path / "blob")
    dataset = read_dataset(path, imagenet, ReadOptions())
    assert (dataset.origin.format.name, dataset.classes) == ("glad", "imagefruit")


def test_a_note_names_the_experiment_that_is_read(tmp_path: Path, imagenet: Bundle) -> None:
    path = methods.dm(tmp_path, known_images(20, 32), CLASSES)
    assert (
        "it holds 2 experiments, of which the last is read" in as_woof(path, imagenet).origin.notes
    )


def test_a_note_marks_an_initialisation(tmp_path: Path, imagenet: Bundle) -> None:
    for name in ("data0.pt", "data_init.pt"):
        path = methods.listed(name)(tmp_path, known_images(20, 128), CLASSES)
        assert (
            "it is the initialisation, from before any distillation"
            in as_woof(path, imagenet).origin.notes
        )


def test_dc_has_numbers_of_its_own_for_a_hundred_classes(tmp_path: Path, imagenet: Bundle) -> None:
    path = methods.dm(tmp_path, known_images(100, 32), range(100)).rename(tmp_path / "renamed.pt")
    assert as_woof(path, imagenet, classes="imagenet-100").origin.normalisation == "cifar100-dc"


def test_the_best_or_the_last_of_a_run_is_read(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 128)
    for iteration in ("900", "1000"):
        methods.mtt(tmp_path, images, CLASSES, iteration=iteration)
    assert as_woof(tmp_path, imagenet).origin.files == ("images_1000.pt",)
    methods.mtt(tmp_path, images, CLASSES)
    assert as_woof(tmp_path, imagenet).origin.files == ("images_best.pt",)
    (tmp_path / "res_DM_CIFAR10_ConvNet_1ipc.pt").touch()
    with pytest.raises(
        DatasetError, match=r"holds several files of images \(images_1000.pt, .*name one of them"
    ):
        as_woof(tmp_path, imagenet)


def test_idcs_phases_are_parts_of_one_set(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 64)
    for phase in range(5):
        folder = tmp_path / f"conv_20_phase{phase}"
        folder.mkdir()
        methods.listed("data.pt")(
            folder, images[4 * phase : 4 * phase + 4], CLASSES[4 * phase : 4 * phase + 4]
        )
    dataset = as_woof(tmp_path, imagenet, collage=1)
    assert_holds(dataset, images, CLASSES, WOOF)
    assert dataset.images.name(19) == "conv_20_phase4/data.pt[3]"
    assert not any("not found" in note for note in dataset.origin.notes)
    (tmp_path / "conv_20_phase2").rename(tmp_path / "conv_20_phase7")
    notes = as_woof(tmp_path, imagenet, collage=1).origin.notes
    assert "part 2 was not found: is the set complete?" in notes
    torch.save(
        [torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)],
        tmp_path / "conv_20_phase3" / "data.pt",
    )
    with pytest.raises(
        DatasetError, match=r"differ in their size of images \(.*\), so they are not parts of one"
    ):
        as_woof(tmp_path, imagenet)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"classes": "imagewoof"}, r"classes \(imagenette and imagewoof\)"),
        ({"collage": "2"}, r"collage \(1 and 2\)"),
        ({"unwhitened": "0" * 64}, r"transform that was undone \(none and 0{64}\)"),
        ({"labels": np.eye(10)[CLASSES]}, r"form of labels \(hard and probabilities\)"),
    ],
)
def test_parts_that_contradict_each_other_are_not_joined(
    tmp_path: Path, imagenet: Bundle, stated: dict[str, Any], message: str
) -> None:
    facts = {"format": "mtt", "normalisation": "none", "classes": "imagenette"}
    for name, others in (("S1", {}), ("S2", stated)):
        (tmp_path / name).mkdir()
        named(tmp_path / name / "images_best.npz", **{**facts, **others})
    with pytest.raises(DatasetError, match=rf"S1.* and .*S2.* differ in their {message}"):
        read_dataset(tmp_path, imagenet, ReadOptions())


def test_bases_and_soft_label_files_are_not_images(tmp_path: Path, imagenet: Bundle) -> None:
    path = methods.mtt(tmp_path, known_images(20, 32), CLASSES, "cifar10")
    torch.save({}, tmp_path / "weights_best.pt")
    with pytest.raises(
        DatasetError, match="was written by HaBa, whose files hold bases instead of images"
    ):
        as_woof(path, imagenet)
    (tmp_path / "fkd" / "epoch_0").mkdir(parents=True)
    (tmp_path / "fkd" / "epoch_0" / "batch_0.tar").touch()
    with pytest.raises(
        DatasetError, match=r"holds soft labels .FKD., which belong to images elsewhere"
    ):
        as_woof(tmp_path / "fkd", imagenet)


def compressed(folder: Path, images: NDArray[np.uint8], classes: Sequence[int]) -> Path:
    np.savez_compressed(folder / "mine.npz", images=images, labels=classes)
    return folder / "mine.npz"


@pytest.mark.parametrize(
    "write",
    [
        methods.mtt,
        methods.datm,
        methods.dm,
        methods.listed("data.pt"),
        methods.frepo,
        methods.SRE2L,
        compressed,
    ],
)
def test_a_dataset_reaches_a_process_that_is_spawned(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path]
) -> None:
    """As the workers of a DataLoader are, where processes are not forked."""
    dataset = as_woof(write(tmp_path, known_images(20, 32), CLASSES), imagenet, collage=1)
    received = pickle.loads(pickle.dumps(dataset))
    assert received.samples == dataset.samples
    for sample in dataset.samples:
        np.testing.assert_array_equal(
            received.images.read(sample.position), dataset.images.read(sample.position)
        )
        if dataset.soft_label is not None:
            np.testing.assert_array_equal(
                received.soft_label(sample.position), dataset.soft_label(sample.position)
            )


def test_a_recovered_dataset_reaches_it_too(tmp_path: Path, digits: Bundle) -> None:
    recover(DISTILLED.parent / "ipc1", tmp_path / "out", recipe=Recipe().scaled_to(2))
    dataset = read_dataset(tmp_path / "out", digits)
    received = pickle.loads(pickle.dumps(dataset))
    assert received.samples == dataset.samples
    assert received.origin.format.name == "recovered"


def test_the_classes_show_which_cifar_frepo_distilled(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(200, 32)
    path = methods.frepo(tmp_path, images, [i % 100 for i in range(200)], "frepo-cifar100")
    options = ReadOptions("imagenet-100", "frepo")
    assert read_dataset(path, imagenet, options).origin.normalisation == "frepo-cifar100"
