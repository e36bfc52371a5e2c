"""`convert` undoes whitening where the training images are at hand, and keeps it otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from tests.distilled.conversion.test_zca import frepos_blocks
from tests.distilled.test_dataset import CLASSES, named
from tests.distilled.whitened import (
    FloatImages,
    convert,
    converted_facts,
    planar,
    read,
    refused,
    save_frepo,
    save_kip,
    save_mtt,
    tenth_of_the_mean,
)


@pytest.fixture
def training(photographs: NDArray[np.uint8], tmp_path: Path) -> Path:
    np.savez(tmp_path / "train.npz", images=photographs)
    return tmp_path / "train.npz"


def undone(path: Path, bundle: Bundle, reference: Path, *options: str) -> NDArray[np.uint8]:
    """The pixels that are fed to the model after a file was converted."""
    output = path.with_name("pixels.npz")
    output.unlink(missing_ok=True)
    convert(path, output, "--zca-reference", reference, *options)
    return read(output, bundle)


def test_kornias_whitening_is_undone(
    photographs: NDArray[np.uint8],
    whitened: FloatImages,
    training: Path,
    tmp_path: Path,
    imagenet: Bundle,
) -> None:
    found = undone(save_mtt(tmp_path, whitened), imagenet, training)
    np.testing.assert_allclose(found, photographs[:20], atol=1)


def test_the_reference_may_be_a_folder_of_images(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    for i, image in enumerate(photographs):
        file = tmp_path / "train" / str(i % 10) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    found = undone(save_mtt(tmp_path, whitened), imagenet, tmp_path / "train")
    np.testing.assert_allclose(found, photographs[:20], atol=1)


def test_whitening_is_undone_where_a_method_does_not_always_whiten(
    photographs: NDArray[np.uint8],
    whitened: FloatImages,
    training: Path,
    tmp_path: Path,
    imagenet: Bundle,
) -> None:
    path = tmp_path / "res_DataDAM_CIFAR10_ConvNet_2ipc.pt"
    torch.save({"data": [[torch.from_numpy(whitened), torch.tensor(CLASSES)]]}, path)
    np.testing.assert_allclose(undone(path, imagenet, training), photographs[:20], atol=1)


def test_frepos_whitening_is_undone(
    photographs: NDArray[np.uint8], training: Path, tmp_path: Path, imagenet: Bundle
) -> None:
    statistics = find_normalisation("frepo-cifar10")
    rows = ((photographs / 255 - statistics.mean) / statistics.std).reshape(len(photographs), -1)
    centred = rows - rows.mean(axis=0)
    whitened = (centred @ tenth_of_the_mean(centred))[:20].reshape(20, 16, 16, 3)
    path = save_frepo(tmp_path, whitened)
    assert "FRePo normalises each data set with its own statistics" in refused(
        path, tmp_path / "a.npz", "--zca-reference", training
    )
    found = undone(path, imagenet, training, "--normalisation", "frepo-cifar10")
    np.testing.assert_allclose(found, photographs[:20], atol=2)


def test_the_command_for_frepos_files_repeats_the_normalisation(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_frepo(tmp_path, whitened.transpose(0, 2, 3, 1))
    with pytest.raises(
        DatasetError,
        match=r"Run `diver-trt convert \S+ step000100-pixels\.npz --normalisation frepo-cifar10 "
        r"--zca-reference IMAGES`, with its training images or FRePo's own data/zca/\*\.npz as",
    ):
        read(path, imagenet, normalisation="frepo-cifar10")


def test_kips_whitening_is_undone_except_for_brightness_and_contrast(
    photographs: NDArray[np.uint8], training: Path, tmp_path: Path, imagenet: Bundle
) -> None:
    rows = planar(photographs).reshape(len(photographs), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whitened = (rows @ tenth_of_the_mean(rows))[:20].reshape(20, 3, 16, 16).transpose(0, 2, 3, 1)
    path = save_kip(tmp_path, whitened, "kip_cifar10_ConvNet3_ssize20_zca_nol_noaug_ckpt1000.npz")
    with pytest.raises(DatasetError, match=r"looks ZCA-whitened .brightness is 0.6% of"):
        read(path, imagenet)
    for image, original in zip(undone(path, imagenet, training), photographs[:20], strict=True):
        inside = (image > 0) & (image < 255)
        assert np.corrcoef(image[inside].astype(float), original[inside].astype(float))[0, 1] > 0.99


def test_frepos_blocks_are_undone_with_the_training_images_or_its_own_transform(
    photographs: NDArray[np.uint8],
    tmp_path: Path,
    imagenet: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With blocks of 8 pixels for FRePo's 64, and fewer images than the 192 dimensions.

    ImageNette has fewer than its 12,288 dimensions, too.
    """
    monkeypatch.setattr("diver_trt.distilled.whitening.SIDE", 8)
    monkeypatch.setattr("diver_trt.distilled.conversion.zca.SIDE", 8)
    statistics, photographs = find_normalisation("frepo-imagewoof"), photographs[:150]
    whitened, inverse, mean = frepos_blocks(
        (photographs / 255 - statistics.mean) / statistics.std, 8
    )
    path = save_frepo(tmp_path, whitened[:20])
    np.savez(tmp_path / "train.npz", images=photographs)
    cached = tmp_path / "imagewoof_normalize_zca_res128_block64_meanTrue_cb.npz"
    np.savez(
        cached,
        whitening_transform=inverse,
        rev_whitening_transform=inverse.astype(np.float32),
        zca_mean=mean.astype(np.float32),
    )
    notes = {
        "train.npz": "the ZCA transform was fitted to 150 images",
        cached.name: f"the ZCA transform is FRePo's own, of {cached.name}",
    }
    for name, note in notes.items():
        output = tmp_path / f"pixels-of-{name}"
        normalisation = ("--normalisation", "frepo-imagewoof")
        printed = convert(path, output, "--zca-reference", tmp_path / name, *normalisation)
        assert f"note: {note}\n" in printed
        np.testing.assert_allclose(read(output, imagenet), photographs[:20], atol=1)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("kind", ["kornia", "FRePo", "KIP"])
def test_whitened_values_are_kept_without_a_reference_and_can_be_undone_later(
    whitened: FloatImages, training: Path, tmp_path: Path, imagenet: Bundle, kind: str, suffix: str
) -> None:
    channels_last = whitened.transpose(0, 2, 3, 1)
    path = {
        "kornia": lambda: save_mtt(tmp_path, whitened),
        "FRePo": lambda: save_frepo(tmp_path, channels_last),
        "KIP": lambda: save_kip(tmp_path, channels_last),
    }[kind]()
    options = ["--normalisation", "frepo-cifar10"] if kind == "FRePo" else []
    kept = tmp_path / f"set.{suffix}"
    assert (
        f"note: the values are ZCA-whitened ({kind}) and written as they are; to recover them, "
        "convert them with --zca-reference\n"
    ) in convert(path, kept, *options)
    with pytest.raises(DatasetError, match=rf"set\.{suffix}: is ZCA-whitened\. Run `diver-trt "):
        read(kept, imagenet)
    np.testing.assert_array_equal(
        undone(kept, imagenet, training), undone(path, imagenet, training, *options)
    )


def test_the_new_file_states_the_transform_that_was_undone(
    whitened: FloatImages, training: Path, tmp_path: Path, imagenet: Bundle
) -> None:
    path, output = save_mtt(tmp_path, whitened), tmp_path / "pixels.npz"
    facts = converted_facts(path, output, "--zca-reference", training)
    assert (facts["whitening"], facts["normalisation"], facts["format"]) == (None, "none", "mtt")
    dataset = read_dataset(output, imagenet, ReadOptions(classes="imagewoof"))
    assert dataset.origin.whitening == facts["unwhitened"]
    assert "ZCA whitening undone" in dataset.summary
    again = converted_facts(output, tmp_path / "again.safetensors")
    assert again["unwhitened"] == facts["unwhitened"]


def test_a_text_in_place_of_a_hash_is_ignored(whitened: FloatImages, tmp_path: Path) -> None:
    path = named(tmp_path / "a.npz", images=whitened, unwhitened="\x1b[2J")
    facts = converted_facts(path, tmp_path / "b.npz")
    assert (facts["whitening"], facts["unwhitened"]) == ("kornia", None)


def test_a_reference_for_images_that_are_not_whitened_is_refused(
    photographs: NDArray[np.uint8], training: Path, tmp_path: Path
) -> None:
    path = save_mtt(tmp_path, (planar(photographs)[:20] - 0.45) / np.float32(0.25))
    error = refused(path, tmp_path / "a.npz", "--zca-reference", training)
    assert "does not look ZCA-whitened (brightness is 72.4% of their energy; " in error
    assert "Leave it out" in error


def test_a_reference_and_a_normalisation_contradict_each_other(
    whitened: FloatImages, training: Path, tmp_path: Path
) -> None:
    path = save_mtt(tmp_path, whitened)
    options = ("--zca-reference", training, "--normalisation", "cifar10")
    assert (
        "--zca-reference and --normalisation: whitened values are not normalised; leave out one of "
        "them"
    ) in refused(path, tmp_path / "a.npz", *options)


def test_a_size_whose_transform_cannot_be_fitted_is_refused_before_the_reference_is_read(
    tmp_path: Path,
) -> None:
    values = np.random.default_rng(0).normal(size=(20, 96, 96, 3))
    options = ("--zca-reference", tmp_path, "--normalisation", "frepo-imagewoof")
    path = save_frepo(tmp_path, values)
    assert "not for 96 x 96" in refused(path, tmp_path / "a.npz", *options)


def test_an_image_with_nan_is_reported_when_the_new_file_is_read(
    whitened: FloatImages, training: Path, tmp_path: Path, imagenet: Bundle
) -> None:
    values = whitened.copy()
    values[7, 0, 0, 0] = np.nan
    convert(save_mtt(tmp_path, values), tmp_path / "b.npz", "--zca-reference", training)
    dataset = read_dataset(tmp_path / "b.npz", imagenet, ReadOptions(classes="imagewoof"))
    problems = [checked.problem for checked in dataset.images.check()]
    assert [bool(problem) for problem in problems] == [i == 7 for i in range(20)]
    assert "NaN or infinite values" in str(problems[7])
