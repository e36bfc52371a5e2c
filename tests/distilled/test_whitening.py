"""ZCA-whitened images are recognised and refused, with the command that makes them recoverable."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.distilled.brightness import looks_whitened
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.methods.base import Kind
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.whitening import can_be_undone
from diver_trt.errors import DatasetError
from tests.cli.command import run
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images, named
from tests.distilled.whitened import (
    TARGETS,
    FloatImages,
    planar,
    read,
    save_frepo,
    save_kip,
    save_mtt,
)

SEEN = "brightness is 4.2% of their energy; in photographs it is 20% or more"


def notes_of(path: Path, bundle: Bundle, **options: Any) -> tuple[str, ...]:
    return read_dataset(path, bundle, ReadOptions(classes="imagewoof", **options)).origin.notes


def test_whitened_images_differ_from_photographs_and_distilled_ones(
    photographs: NDArray[np.uint8], whitened: FloatImages
) -> None:
    images = planar(photographs)
    normalised = (images[:20] - 0.45) / 0.25
    assert not looks_whitened(normalised)
    assert not looks_whitened(normalised + np.random.default_rng(0).normal(size=normalised.shape))
    assert looks_whitened(whitened)


def test_absurd_values_do_not_look_whitened_and_cause_no_warning() -> None:
    assert not looks_whitened(np.full((2, 3, 4, 4), 3e38, np.float32))
    assert not looks_whitened(np.full((2, 3, 4, 4), 1e300))


@pytest.mark.parametrize("channels", [1, 3])
def test_digits_on_black_are_not_taken_for_whitened(channels: int) -> None:
    """All digits are about equally bright, and so have little energy in their brightness."""
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


def test_the_refusal_is_one_line_with_the_whole_command(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, whitened)
    with pytest.raises(DatasetError) as refusal:
        read(path, imagenet)
    assert str(refusal.value) == (
        f"{path}: looks ZCA-whitened ({SEEN}). Run `diver-trt convert {path} "
        "images_best-pixels.npz --zca-reference IMAGES`, with its training images as IMAGES, and "
        "recover the new file. Or give the file that is not whitened (images_zca_*.pt, if there is "
        "one). If it is not whitened, add --normalisation."
    )


@pytest.mark.parametrize("command", ["recover", "inspect"])
def test_both_commands_refuse_and_the_named_command_makes_the_file_recoverable(
    photographs: NDArray[np.uint8],
    whitened: FloatImages,
    tmp_path: Path,
    imagenet: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    (tmp_path / "a set").mkdir()
    path = save_mtt(tmp_path / "a set", whitened)
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", images=photographs)
    outputs = ["recovered"] if command == "recover" else []
    result = run(command, path, *outputs, "--collage", "1")
    assert (result.exit_code, Path("recovered").exists()) == (1, False)
    (named,) = re.findall("Run `diver-trt (.*)`", result.output)
    arguments = ["train.npz" if word == "IMAGES" else word for word in shlex.split(named)]
    assert arguments[3:5] == ["--collage", "1"]
    assert run(*arguments).exit_code == 0
    found = read(Path(arguments[2]), imagenet)
    np.testing.assert_allclose(found, photographs[:20], atol=1)


def test_a_stated_normalisation_turns_the_refusal_into_a_note(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    path = save_mtt(tmp_path, whitened)
    (note,) = notes_of(path, imagenet, normalisation="cifar10")
    assert note == (
        f"its images look ZCA-whitened ({SEEN}), but are read with --normalisation cifar10; if "
        f"they are whitened, run `diver-trt convert {path} images_best-pixels.npz --zca-reference "
        "IMAGES`, with the training images as IMAGES"
    )


def test_whitening_is_noted_where_methods_do_not_always_whiten(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    """DataDAM writes DC's files, whitened or not."""
    path = tmp_path / "res_DataDAM_CIFAR10_ConvNet_2ipc.pt"
    torch.save(
        {"data": [[torch.from_numpy(whitened), torch.tensor(CLASSES)]], "accs_all_exps": {}}, path
    )
    (note,) = notes_of(path, imagenet)
    assert f"look ZCA-whitened ({SEEN}), but are read with --normalisation cifar10" in note
    assert f"`diver-trt convert {path} " in note


def test_a_name_of_kips_is_enough_except_for_pixels(tmp_path: Path, imagenet: Bundle) -> None:
    name = "kip_cifar10_ConvNet3_ssize20_zca_nol.npz"
    for statistics in ("cifar10", "none"):
        values = methods.normalised(known_images(20, 32), statistics).numpy()
        path = save_kip(tmp_path, values.transpose(0, 2, 3, 1), name)
        if statistics == "cifar10":
            with pytest.raises(DatasetError, match="looks ZCA-whitened"):
                read(path, imagenet)
    np.testing.assert_array_equal(read(path, imagenet), known_images(20, 32))


def test_a_thousand_classes_are_not_refused_for_looking_whitened(
    tmp_path: Path, imagenet: Bundle
) -> None:
    """MTT's family whitens CIFAR and Tiny-ImageNet only."""
    values = np.random.default_rng(0).normal(size=(20, 3, 64, 64)).astype(np.float32)
    methods.mtt(tmp_path, torch.from_numpy(values), range(0, 1000, 50))
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
def test_every_refusal_names_the_options_for_a_file_that_is_not_whitened(
    whitened: FloatImages, tmp_path: Path, imagenet: Bundle, name: str
) -> None:
    path, channels_last = tmp_path / name, whitened.transpose(0, 2, 3, 1)
    if name.endswith(".pt"):
        save_mtt(tmp_path, whitened)
    elif name == "mine.npz":
        named(path, images=whitened)
    elif name.startswith("step"):
        save_frepo(tmp_path, channels_last)
    else:
        save_kip(tmp_path, channels_last, name)
    with pytest.raises(
        DatasetError,
        match=r"looks ZCA-whitened.*If it is not whitened, add (--format arrays and )?--normalis",
    ) as refusal:
        read(path, imagenet)
    method = "arrays" if "--format arrays" in str(refusal.value) else None
    assert method or name in ("images_best.pt", "mine.npz")
    assert read(path, imagenet, method=method, normalisation="cifar10").shape == (20, 16, 16, 3)


def test_the_twin_that_is_not_whitened_is_named_and_read(
    photographs: NDArray[np.uint8], whitened: FloatImages, tmp_path: Path, imagenet: Bundle
) -> None:
    """MTT does not normalise when it whitens: the inverse transform gives values in [0, 1]."""
    images = planar(photographs)
    path = save_mtt(tmp_path, whitened, "900")
    torch.save(torch.from_numpy(images[:20]), tmp_path / "images_zca_900.pt")
    with pytest.raises(DatasetError, match=r"Or give images_zca_900.pt, which is not whitened"):
        read(path, imagenet)
    np.testing.assert_array_equal(read(tmp_path, imagenet), photographs[:20])


def test_a_size_whose_transform_cannot_be_fitted_is_refused_without_a_command(
    tmp_path: Path, imagenet: Bundle
) -> None:
    generator = np.random.default_rng(0)
    for side, message in (
        (
            128,
            r"Run `diver-trt convert .*, with its training images or FRePo's own data/zca/\*\.npz",
        ),
        (96, r"not for 96 x 96. Undo it where the set was made; or, if it is not whitened"),
    ):
        values = generator.normal(size=(20, side, side, 3))
        with pytest.raises(DatasetError, match=message):
            read(save_frepo(tmp_path, values), imagenet)


def test_only_frepos_own_size_is_undone_beyond_64_pixels() -> None:
    assert can_be_undone(Kind.KORNIA, (64, 64))
    assert can_be_undone(Kind.FREPO, (128, 128))
    assert not can_be_undone(Kind.KORNIA, (128, 128))
    assert not can_be_undone(Kind.FREPO, (1 << 20, 1 << 20))


def test_a_file_that_states_its_whitening_is_refused_whatever_it_looks_like(
    tmp_path: Path, imagenet: Bundle
) -> None:
    images = methods.normalised(known_images(20, 32), "none").numpy()
    path = named(tmp_path / "a.npz", images=images, labels=TARGETS, whitening="kornia")
    with pytest.raises(DatasetError, match=r"a\.npz: is ZCA-whitened\. Run `diver-trt convert "):
        read(path, imagenet)
