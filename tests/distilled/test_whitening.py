"""ZCA: seen, refused with a way out, and undone where the training images are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.whitening import fit_whitening, looks_whitened, whitened_rows
from diver_trt.errors import DatasetError
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images

FloatImages = NDArray[np.float32]


@pytest.fixture(scope="module")
def photographs() -> NDArray[np.uint8]:
    """Eight hundred 16-pixel patches of scikit-learn's two photographs: real images, whose neighbours resemble each other."""
    from sklearn.datasets import load_sample_images

    pictures, generator, patches = load_sample_images().images, np.random.default_rng(0), []
    for _ in range(800):
        picture = pictures[generator.integers(2)]
        side = int(generator.integers(16, 120))
        y, x = (int(generator.integers(size - side)) for size in picture.shape[:2])
        patches.append(
            np.asarray(
                Image.fromarray(picture[y : y + side, x : x + side]).resize(
                    (16, 16), Image.Resampling.BOX
                )
            )
        )
    return np.stack(patches)


def kornia(images: FloatImages, training: FloatImages) -> FloatImages:
    """What kornia.enhance.ZCAWhitening(eps=0.1) makes of images, written from its documentation, in float64."""
    rows = training.reshape(len(training), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    u, s, _ = np.linalg.svd(np.cov(rows, rowvar=False))
    matrix = u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T
    whitened: FloatImages = (
        ((images.reshape(len(images), -1) - mean) @ matrix).reshape(images.shape).astype(np.float32)
    )
    return whitened


@pytest.fixture(scope="module")
def whitened(photographs: NDArray[np.uint8]) -> FloatImages:
    """The first twenty as kornia whitens them, fitted to all."""
    return kornia(planar(photographs)[:20], planar(photographs))


def tenth_of_the_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = rows.T @ rows / len(rows)
    u, s, _ = np.linalg.svd(covariance)
    return np.asarray(u @ np.diag((s + 0.1 * np.trace(covariance) / len(covariance)) ** -0.5) @ u.T)


def planar(pixels: NDArray[np.uint8]) -> FloatImages:
    values: FloatImages = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    return values


def save_mtt(folder: Path, images: FloatImages, name: str = "images_best") -> Path:
    torch.save(torch.from_numpy(images), folder / f"{name}.pt")
    torch.save(
        torch.tensor(CLASSES),
        folder / f"{name.replace('images_zca', 'labels').replace('images', 'labels')}.pt",
    )
    return folder / f"{name}.pt"


def notes_of(path: Path, bundle: Bundle, **options: Any) -> tuple[str, ...]:
    return read_dataset(path, bundle, ReadOptions(classes="imagewoof", **options)).origin.notes


def read(path: Path, bundle: Bundle, **options: Any) -> NDArray[np.uint8]:
    dataset = read_dataset(path, bundle, ReadOptions(classes="imagewoof", **options))
    return np.stack([dataset.images.read(sample.position) for sample in dataset.samples])


def test_whitened_images_are_told_from_photographs_and_distilled_ones(
    photographs: NDArray[np.uint8], whitened: FloatImages
) -> None:
    images = planar(photographs)
    normalised = (images[:20] - 0.45) / 0.25
    assert not looks_whitened(normalised)
    assert not looks_whitened(normalised + np.random.default_rng(0).normal(size=normalised.shape))
    assert looks_whitened(whitened)


def test_absurd_values_are_no_whitening_and_no_warning() -> None:
    assert not looks_whitened(np.full((2, 3, 4, 4), 3e38, np.float32))
    assert not looks_whitened(np.full((2, 3, 4, 4), 1e300))


@pytest.mark.parametrize("channels", [1, 3])
def test_digits_on_black_are_not_taken_for_whitened(channels: int) -> None:
    """All digits are about equally bright, so that normalised ones have as little energy in their brightness as whitened images."""
    from sklearn.datasets import load_digits

    digits = np.pad(
        load_digits().images[:200].repeat(2, axis=1).repeat(2, axis=2) / 16,
        ((0, 0), (6, 6), (6, 6)),
    )
    normalised = ((digits - digits.mean()) / digits.std())[:, None]
    assert np.square(normalised.mean(axis=(2, 3))).mean() < 0.05
    assert not looks_whitened(np.repeat(normalised, channels, axis=1))


@pytest.mark.parametrize(
    "write", [methods.mtt, methods.dm, methods.cafe, methods.frepo, methods.listed("data.pt")]
)
def test_ordinary_sets_are_not_taken_for_whitened(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path]
) -> None:
    statistics = {"statistics": "cifar10"} if write is methods.mtt else {}
    path = write(tmp_path, known_images(20, 32), CLASSES, **statistics)
    for normalisation in (None, "cifar10"):
        notes = notes_of(path, imagenet, normalisation=normalisation)
        assert not any("ZCA" in note for note in notes)


def test_a_stated_normalisation_turns_the_refusal_into_a_note(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, whitened)
    (note,) = notes_of(path, imagenet, normalisation="cifar10")
    assert note == (
        "its images look ZCA-whitened (4.2% of their energy is brightness, of photographs' 20% and more), but are read with "
        "--normalisation cifar10; if they are whitened, name the training images with "
        "--zca-reference in its place"
    )
    np.savez(tmp_path / "train.npz", images=photographs)
    with pytest.raises(
        DatasetError,
        match="--zca-reference and --normalisation: whitened values are not normalised; leave out one of them",
    ):
        read(path, imagenet, normalisation="cifar10", zca_reference=tmp_path / "train.npz")


def test_whitening_is_seen_where_methods_do_not_always_whiten(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    """DataDAM writes DC's files, whitened or not."""
    path = tmp_path / "res_DataDAM_CIFAR10_ConvNet_2ipc.pt"
    torch.save(
        {"data": [[torch.from_numpy(whitened), torch.tensor(CLASSES)]], "accs_all_exps": {}}, path
    )
    (note,) = notes_of(path, imagenet)
    assert note == (
        "its images look ZCA-whitened (4.2% of their energy is brightness, of photographs' 20% and more), but are read with "
        "--normalisation cifar10; if they are whitened, name the training images with "
        "--zca-reference"
    )
    np.savez(tmp_path / "train.npz", images=photographs)
    np.testing.assert_allclose(
        read(path, imagenet, zca_reference=tmp_path / "train.npz"), photographs[:20], atol=1
    )


def test_what_converting_says_of_whitened_values_names_no_option_that_it_lacks(
    whitened: FloatImages, tmp_path: Path
) -> None:
    for name, option, way in (
        (
            "images_best.pt",
            ["--normalisation", "cifar10"],
            "--normalisation cifar10; if they are whitened, leave it out",
        ),
        (
            "res_DM.pt",
            [],
            "--normalisation imagenet; if they are whitened, --zca-reference undoes it where they are read",
        ),
    ):
        (tmp_path / name).mkdir()
        path = save_mtt(tmp_path / name, whitened)
        if name == "res_DM.pt":
            path = path.with_name(name)
            torch.save({"data": [[torch.from_numpy(whitened), torch.tensor(CLASSES)]]}, path)
        result = CliRunner().invoke(
            app, ["convert", str(path), str(tmp_path / f"{name}.npz"), *option]
        )
        seen = "(4.2% of their energy is brightness, of photographs' 20% and more)"
        assert (
            f"note: its images look ZCA-whitened {seen}, but are read with {way}\n" in result.output
        )


def test_kips_names_are_taken_at_their_word_but_for_pixels(
    tmp_path: Path, imagenet: Bundle
) -> None:
    path, rows = (
        tmp_path / "kip_cifar10_ConvNet3_ssize20_zca_nol.npz",
        (np.eye(10)[CLASSES] - 0.1).astype(np.float32),
    )
    for statistics in ("cifar10", "none"):
        np.savez(
            path,
            images=methods.normalised(known_images(20, 32), statistics)
            .numpy()
            .transpose(0, 2, 3, 1),
            labels=rows,
        )
        if statistics == "cifar10":
            with pytest.raises(DatasetError, match="looks ZCA-whitened"):
                read(path, imagenet)
    np.testing.assert_array_equal(read(path, imagenet), known_images(20, 32))


def test_a_thousand_classes_are_not_refused_for_looking_whitened(
    tmp_path: Path, imagenet: Bundle
) -> None:
    """MTT's family whitens CIFAR and Tiny-ImageNet only."""
    values = np.random.default_rng(0).normal(size=(20, 3, 64, 64)).astype(np.float32)
    torch.save(torch.from_numpy(values), tmp_path / "images_best.pt")
    torch.save(torch.arange(20) * 50, tmp_path / "labels_best.pt")
    dataset = read_dataset(tmp_path, imagenet, ReadOptions(classes="model"))
    assert any("look ZCA-whitened" in note for note in dataset.origin.notes)


@pytest.mark.parametrize(
    "name",
    [
        "images_best.pt",
        "step000100.npz",
        "kip_cifar10_zca_nol.npz",
        "ConvNet3_ssize20_zca_l.npz",
        "mine.npz",
    ],
)
def test_every_refusal_names_a_way_out_for_what_is_not_whitened(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle, name: str
) -> None:
    path = tmp_path / name
    rows = (np.eye(10)[CLASSES] - 0.1).astype(np.float32)
    if name.endswith(".pt"):
        save_mtt(tmp_path, whitened)
    elif name == "mine.npz":
        np.savez(path, images=whitened, labels=np.array(CLASSES))
    else:
        image, label = ("image", "label") if name.startswith("step") else ("images", "labels")
        np.savez(path, **{image: whitened.transpose(0, 2, 3, 1), label: rows})
    with pytest.raises(
        DatasetError,
        match=r"looks ZCA-whitened.*if it is not whitened, say (--format arrays and )?--normalisation",
    ) as refusal:
        read(path, imagenet)
    method = "arrays" if "--format arrays" in str(refusal.value) else None
    assert method or name in ("images_best.pt", "mine.npz")
    assert read(path, imagenet, method=method, normalisation="cifar10").shape == (20, 16, 16, 3)


def test_kornias_whitening_is_refused_and_undone(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, whitened)
    with pytest.raises(
        DatasetError,
        match=r"looks ZCA-whitened.*give the file that is not whitened.*or name the training images with --zca-ref",
    ):
        read(path, imagenet)
    np.savez(tmp_path / "train.npz", images=photographs)
    np.testing.assert_allclose(
        read(path, imagenet, zca_reference=tmp_path / "train.npz"), photographs[:20], atol=1
    )


def test_the_reference_may_be_a_folder_of_images(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, whitened)
    for i, image in enumerate(photographs):
        file = tmp_path / "train" / str(i % 10) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    np.testing.assert_allclose(
        read(path, imagenet, zca_reference=tmp_path / "train"), photographs[:20], atol=1
    )


def test_references_read_no_link_out_and_wait_for_no_fifo(
    tmp_path: Path, imagenet: Bundle, whitened: FloatImages
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
        ("link", r"link/deeper/0\.png: is a link out of the dataset"),
        ("folder", r"folder/deeper/x: is a link out of the dataset"),
        ("fifo", r"fifo/0\.png: is not a regular file, expected an image file"),
        ("fifo.npz", r"--zca-reference .*fifo\.npz: is a FIFO, device or socket"),
        ("postscript", r"postscript/deeper/0\.png: holds PostScript"),
    ):
        with pytest.raises(DatasetError, match=message):
            read(path, imagenet, zca_reference=tmp_path / name)


def test_the_unwhitened_twin_is_taken_as_it_is(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    """MTT normalises nothing when it whitens: what the inverse transform gives lies in [0, 1]."""
    images = planar(photographs)
    path = save_mtt(tmp_path, whitened, "images_900")
    torch.save(torch.from_numpy(images[:20]), tmp_path / "images_zca_900.pt")
    with pytest.raises(DatasetError, match=r"give images_zca_900.pt, which is not whitened"):
        read(path, imagenet)
    np.testing.assert_array_equal(read(tmp_path, imagenet), photographs[:20])


def test_frepos_whitening_is_undone(
    photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle
) -> None:
    statistics = find_normalisation("frepo-cifar10")
    rows = ((photographs / 255 - statistics.mean) / statistics.std).reshape(len(photographs), -1)
    whitened = ((rows - rows.mean(axis=0)) @ tenth_of_the_mean(rows - rows.mean(axis=0)))[
        :20
    ].reshape(20, 16, 16, 3)
    path = tmp_path / "step000100.npz"
    np.savez(
        path,
        image=whitened.astype(np.float32),
        label=(np.eye(10)[CLASSES] - 0.1).astype(np.float32),
    )
    np.savez(tmp_path / "train.npz", images=photographs)
    with pytest.raises(
        DatasetError, match="FRePo normalises each data set with its own statistics"
    ):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")
    with pytest.raises(
        DatasetError,
        match=r"looks ZCA-whitened.*name FRePo's own, data/zca/\*\.npz, with --zca-reference",
    ):
        read(path, imagenet)
    found = read(
        path, imagenet, zca_reference=tmp_path / "train.npz", normalisation="frepo-cifar10"
    )
    np.testing.assert_allclose(found, photographs[:20], atol=2)


def test_frepo_fits_normalised_images_with_the_channels_last(
    photographs: NDArray[np.uint8],
) -> None:
    rows = photographs.reshape(len(photographs), -1) / 255
    together = whitened_rows(Kind.FREPO, (3, 16, 16))
    assert together is not None
    whitening, _ = fit_whitening(planar(photographs), Kind.FREPO, together)
    whitened = ((rows - rows.mean(axis=0)) @ tenth_of_the_mean(rows - rows.mean(axis=0)))[
        3
    ].reshape(16, 16, 3)
    np.testing.assert_allclose(
        whitening.undo(whitened.transpose(2, 0, 1)), planar(photographs)[3], atol=2e-3
    )


def test_kip_comes_back_but_for_brightness_and_contrast(
    photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle
) -> None:
    rows = planar(photographs).reshape(len(photographs), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whitened = (rows @ tenth_of_the_mean(rows))[:20].reshape(20, 3, 16, 16).transpose(0, 2, 3, 1)
    path = tmp_path / "kip_cifar10_ConvNet3_ssize20_zca_nol_noaug_ckpt1000.npz"
    np.savez(
        path,
        images=whitened.astype(np.float32),
        labels=(np.eye(10)[CLASSES] - 0.1).astype(np.float32),
    )
    with pytest.raises(
        DatasetError,
        match=r"looks ZCA-whitened .0.6% of their energy is brightness, .*, and the transform is not in the file; name the training images with --zca-ref",
    ):
        read(path, imagenet)
    np.savez(tmp_path / "train.npz", images=photographs)
    found = read(path, imagenet, zca_reference=tmp_path / "train.npz")
    for image, original in zip(found, photographs[:20], strict=True):
        inside = (image > 0) & (image < 255)
        assert np.corrcoef(image[inside].astype(float), original[inside].astype(float))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), "holds 1 images; expected those the method whitened"),
        (np.zeros((9, 8, 8, 3), np.uint8), "holds images of 8 x 8; the method whitened 16 x 16"),
        (
            np.full((9, 16, 16, 3), 7, np.float32),
            "holds values from 7.00 to 7.00; expected images in 0 to 1, or uint8",
        ),
        (
            np.zeros((9, 16), np.uint8),
            "holds no array of images; expected one, or a folder of images",
        ),
        (
            np.full((9, 16, 16, 3), np.nan, np.float32),
            "holds values from nan to nan; expected images in 0 to 1",
        ),
        (None, "train.npz: no such file or folder"),
    ],
)
def test_references_that_cannot_be_are_refused(
    whitened: FloatImages,
    tmp_path: Path,
    imagenet: Bundle,
    images: NDArray[Any] | None,
    message: str,
) -> None:
    path = save_mtt(tmp_path, whitened)
    if images is not None:
        np.savez(tmp_path / "train.npz", images=images)
    with pytest.raises(DatasetError, match=message):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")


def test_a_reference_for_images_that_are_not_whitened_is_refused(
    photographs: NDArray[np.uint8], tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, (planar(photographs)[:20] - 0.45) / 0.25)
    np.savez(tmp_path / "train.npz", images=photographs)
    with pytest.raises(
        DatasetError,
        match=r"does not look ZCA-whitened .72.4% of their energy is brightness, .* Leave it out",
    ):
        read(path, imagenet, zca_reference=tmp_path / "train.npz")


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (800, "the ZCA transform was fitted to 800 images"),
        (
            2,
            "the ZCA transform was fitted to 2 images, too few for its 768 dimensions: expected the whole training set, for CIFAR 50,000",
        ),
    ],
)
def test_it_is_said_how_many_images_the_transform_was_fitted_to(
    photographs: NDArray[np.uint8],
    whitened: FloatImages,
    tmp_path: Path,
    imagenet: Bundle,
    count: int,
    note: str,
) -> None:
    path = save_mtt(tmp_path, whitened)
    np.savez(tmp_path / "train.npz", images=photographs[:count])
    assert notes_of(path, imagenet, zca_reference=tmp_path / "train.npz") == (note,)


def checkerboard(
    images: NDArray[np.float64], block: int
) -> NDArray[np.float64]:  # [n, H, W, 3] => [n, blocks, block * block * 3]
    """FRePo's `checkboardshaped`, as its loop has it."""
    count, height, width, channels = images.shape
    blocks = np.zeros((count, height // block, width // block, block, block, channels))
    for i in range(height // block):
        for j in range(width // block):
            blocks[:, i, j] = images[:, i :: height // block, j :: width // block]
    return blocks.reshape(count, -1, block * block * channels)


def uncheckerboard(blocks: NDArray[np.float64], side: int, block: int) -> NDArray[np.float64]:
    step = side // block
    images, parts = (
        np.zeros((len(blocks), side, side, 3)),
        blocks.reshape(-1, step, step, block, block, 3),
    )
    for i in range(step):
        for j in range(step):
            images[:, i::step, j::step] = parts[:, i, j]
    return images


def frepos_blocks(
    values: NDArray[np.float64], block: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Whiten images [n, H, W, 3] as FRePo does its 128-pixel ones; return them, the inverse and the mean, as FRePo saves these."""
    mean = values.reshape(len(values), -1).mean(axis=0)
    blocks = checkerboard(values - mean.reshape(values.shape[1:]), block)
    covariance = np.mean(np.einsum("ijk,ijl->jkl", blocks, blocks) / len(values), axis=0)
    u, s, _ = np.linalg.svd(
        covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    root = np.sqrt(s)
    root[len(values) :] = 1
    whitened = uncheckerboard(
        blocks @ np.einsum("ij,j,kj->ik", u, 1 / root, u), values.shape[1], block
    )
    return whitened, np.einsum("ij,j,kj->ik", u, root, u), mean


def test_frepos_blocks_are_undone_with_the_training_images_or_its_own_transform(
    photographs: NDArray[np.uint8],
    tmp_path: Path,
    imagenet: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With blocks of 8 pixels for FRePo's 64, and fewer images than the 192 dimensions, as ImageNette has fewer than its 12,288."""
    monkeypatch.setattr("diver_trt.distilled.whitening.SIDE", 8)
    statistics, photographs = find_normalisation("frepo-imagewoof"), photographs[:150]
    whitened, inverse, mean = frepos_blocks(
        (photographs / 255 - statistics.mean) / statistics.std, 8
    )
    path = tmp_path / "step000100.npz"
    np.savez(
        path,
        image=whitened[:20].astype(np.float32),
        label=(np.eye(10)[CLASSES] - 0.1).astype(np.float32),
    )
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
        options = {"zca_reference": tmp_path / name, "normalisation": "frepo-imagewoof"}
        np.testing.assert_allclose(read(path, imagenet, **options), photographs[:20], atol=1)
        assert note in notes_of(path, imagenet, **options)


def test_frepos_large_images_are_four_rows_of_every_second_pixel() -> None:
    rows = whitened_rows(Kind.FREPO, (3, 128, 128))
    assert rows is not None
    image = np.arange(3 * 128 * 128).reshape(3, 128, 128)
    np.testing.assert_array_equal(
        image.reshape(-1)[rows],
        checkerboard(image.transpose(1, 2, 0)[None].astype(np.float64), 64)[0],
    )
    assert whitened_rows(Kind.KORNIA, (3, 128, 128)) is None
    assert whitened_rows(Kind.FREPO, (3, 1 << 20, 1 << 20)) is None


def test_a_size_that_no_transform_is_fitted_for_is_told_before_a_reference_is_asked_for(
    tmp_path: Path, imagenet: Bundle
) -> None:
    generator = np.random.default_rng(0)
    for side, message in (
        (128, r"name FRePo's own"),
        (96, r"not for 96 x 96: undo it where the set was made, or, if it is not whitened"),
    ):
        values = generator.normal(size=(20, side, side, 3)).astype(np.float32)
        np.savez(
            tmp_path / "step000100.npz",
            image=values,
            label=(np.eye(10)[CLASSES] - 0.1).astype(np.float32),
        )
        with pytest.raises(DatasetError, match=message):
            read(tmp_path / "step000100.npz", imagenet)
    with pytest.raises(DatasetError, match="not for 96 x 96"):
        read(
            tmp_path / "step000100.npz",
            imagenet,
            zca_reference=tmp_path,
            normalisation="frepo-imagewoof",
        )


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            (np.zeros(768, np.float32), np.zeros((192, 192), np.float32)),
            r"rev_whitening_transform is float32\[192, 192\]; for images",
        ),
        (
            (np.zeros(192, np.float32), np.zeros((768, 768), np.float32)),
            r"zca_mean is float32\[192\]; .* expected floats \[768\]",
        ),
        ((np.zeros(768, np.int32), np.zeros((768, 768), np.float32)), r"zca_mean is int32\[768\]"),
        (
            (np.full(768, np.nan, np.float32), np.zeros((768, 768), np.float32)),
            "holds values of no transform; expected numbers below 1,000",
        ),
    ],
)
def test_transforms_that_do_not_fit_are_refused(
    whitened: FloatImages,
    tmp_path: Path,
    imagenet: Bundle,
    transform: tuple[NDArray[Any], NDArray[Any]],
    message: str,
) -> None:
    path, (mean, inverse) = tmp_path / "step000100.npz", transform
    np.savez(
        path,
        image=whitened.transpose(0, 2, 3, 1),
        label=(np.eye(10)[CLASSES] - 0.1).astype(np.float32),
    )
    np.savez(tmp_path / "zca.npz", rev_whitening_transform=inverse, zca_mean=mean)
    with pytest.raises(DatasetError, match=message):
        read(path, imagenet, zca_reference=tmp_path / "zca.npz", normalisation="frepo-cifar10")
    with pytest.raises(
        DatasetError,
        match="is a transform of FRePo's; expected the images that kornia's is fitted to",
    ):
        read(save_mtt(tmp_path, whitened), imagenet, zca_reference=tmp_path / "zca.npz")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("images_best.pt", "kornia"), ("step000100.npz", "FRePo"), ("kip_cifar10_zca.npz", "KIP")],
)
def test_whitened_values_are_converted_as_they_are_and_undone_where_the_training_images_are(
    photographs: NDArray[np.uint8],
    whitened: FloatImages,
    tmp_path: Path,
    imagenet: Bundle,
    name: str,
    kind: str,
    suffix: str,
) -> None:
    path, output = tmp_path / name, tmp_path / "device" / f"set.{suffix}"
    output.parent.mkdir()
    rows = (np.eye(10)[CLASSES] - 0.1).astype(np.float32)
    if kind == "kornia":
        save_mtt(tmp_path, whitened)
    else:
        image, label = ("image", "label") if kind == "FRePo" else ("images", "labels")
        np.savez(path, **{image: whitened.transpose(0, 2, 3, 1), label: rows})
    said = {"normalisation": "frepo-cifar10"} if kind == "FRePo" else {}
    options = [f"--{option}={value}" for option, value in said.items()]
    result = CliRunner().invoke(app, ["convert", str(path), str(output), *options])
    assert f"note: the values are ZCA-whitened ({kind}) and written as they are" in result.output
    with pytest.raises(
        DatasetError,
        match=r"is ZCA-whitened, and the transform is not in the file; .* --zca-reference",
    ):
        read(output, imagenet)
    np.savez(tmp_path / "train.npz", images=photographs)
    reference = tmp_path / "train.npz"
    found = read(output, imagenet, zca_reference=reference)
    np.testing.assert_array_equal(found, read(path, imagenet, zca_reference=reference, **said))
    if kind == "kornia":
        np.testing.assert_allclose(found, photographs[:20], atol=1)
        assert "look ZCA-whitened" in "".join(notes_of(output, imagenet, normalisation="cifar10"))
