"""A converted file gives the device the same pixels and classes as the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images


def test_a_collage_that_a_file_names_is_held_to_the_limit_of_the_option(
    tmp_path: Path, digits: Bundle
) -> None:
    def save(factor: object) -> Path:
        np.savez(
            tmp_path / "a.npz",
            images=known_images(2, 32).transpose(0, 3, 1, 2),
            labels=np.arange(2),
            format=np.array("mtt"),
            collage=np.array(factor),
        )
        return tmp_path / "a.npz"

    for factor, collage in (("2", 2), ("16", 16), (4, 4)):
        assert read_dataset(save(factor), digits).origin.collage == collage
    for factor in ("17", "99", "\u00b2", "0", "-2", "02", 0, ""):
        with pytest.raises(DatasetError) as raised:
            read_dataset(save(factor), digits)
        assert str(raised.value) == (
            f"{tmp_path / 'a.npz'}: its text collage is '{factor}'; expected one of "
            f"{', '.join(map(str, range(1, 17)))}. Override it with --collage."
        )
        assert read_dataset(save(factor), digits, ReadOptions(collage=4)).origin.collage == 4


@pytest.mark.parametrize("save", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize(
    ("key", "stated", "option", "way_out"),
    [
        ("format", "../../x", "--format", {"method": "mtt"}),
        ("format", "sre2l", "--format", {"method": "mtt"}),
        ("collage", "999999999", "--collage", {"collage": 1}),
        ("normalisation", "imagnet", "--normalisation", {"normalisation": "cifar10"}),
        ("whitening", "ZCA\x1b[2J", "--normalisation", {"normalisation": "cifar10"}),
    ],
)
def test_unknown_texts_in_a_file_are_named(
    tmp_path: Path,
    imagenet: Bundle,
    save: str,
    key: str,
    stated: str,
    option: str,
    way_out: dict[str, Any],
) -> None:
    images = known_images(20, 32)
    texts = {"format": "mtt", "normalisation": "cifar10", key: stated}
    path = tmp_path / f"set.{save}"
    arrays = {"images": methods.normalised(images, "cifar10"), "labels": methods.hard(CLASSES)}
    if save == "pt":
        torch.save(arrays | texts, path)
    elif save == "npz":
        stored: dict[str, Any] = {
            name: np.asarray(value) for name, value in (arrays | texts).items()
        }
        np.savez(path, **stored)
    else:
        safetensors.torch.save_file(arrays, path, metadata=texts)
    with pytest.raises(DatasetError) as raised:
        read_dataset(path, imagenet, ReadOptions(classes="imagewoof"))
    message = str(raised.value)
    assert message.startswith(f"{path}: its text {key} is {stated!a}; expected ")
    assert f"Override it with {option}." in message
    dataset = read_dataset(path, imagenet, ReadOptions(classes="imagewoof", **way_out))
    found = np.stack([dataset.images.read(position) for position in range(20)])
    np.testing.assert_allclose(found, images, atol=1)
    assert not dataset.origin.notes


@pytest.mark.parametrize("save", ["npz", "pt"])
@pytest.mark.parametrize(
    ("key", "stated", "found"),
    [
        ("collage", 2.5, "float64[] 2.5"),
        ("collage", 17, "17"),
        ("normalisation", [0.5, 0.5, 0.5], "float64[3]"),
        ("format", b"nobody's", "nobody's"),
    ],
)
def test_values_that_are_not_texts_are_named_too(
    tmp_path: Path, digits: Bundle, save: str, key: str, stated: Any, found: str
) -> None:
    images = known_images(20, 32).transpose(0, 3, 1, 2)
    path = tmp_path / f"set.{save}"
    if save == "npz":
        arrays: dict[str, Any] = {"images": images, "labels": np.array(CLASSES)}
        np.savez(path, **arrays, **{key: np.array(stated)})  # type: ignore[arg-type]
    elif isinstance(stated, bytes):
        pytest.skip("torch.save writes no bytes that are read without pickle")
    else:
        value = torch.tensor(stated, dtype=torch.float64) if isinstance(stated, list) else stated
        torch.save(
            {"images": torch.from_numpy(images), "labels": torch.tensor(CLASSES), key: value}, path
        )
    with pytest.raises(DatasetError) as raised:
        read_dataset(path, digits)
    assert str(raised.value).startswith(f"{path}: its text {key} is {found!r}; expected ")


def test_a_number_in_a_torch_file_states_the_collage_as_in_an_npz(
    tmp_path: Path, digits: Bundle
) -> None:
    images = torch.from_numpy(known_images(10, 32).transpose(0, 3, 1, 2))
    torch.save({"images": images, "labels": torch.arange(10), "collage": 2}, tmp_path / "a.pt")
    dataset = read_dataset(tmp_path / "a.pt", digits)
    assert (dataset.origin.collage, len(dataset.samples)) == (2, 40)


def test_other_images_in_a_file_are_named_as_not_read(tmp_path: Path, digits: Bundle) -> None:
    images = known_images(20, 32).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(CLASSES), images_ema=images[:4])
    notes = read_dataset(tmp_path / "a.npz", digits).origin.notes
    assert notes == ("not read: images_ema (uint8[4, 3, 32, 32])",)


def test_an_unknown_subset_in_a_file_is_named(tmp_path: Path, digits: Bundle) -> None:
    np.savez(
        tmp_path / "a.npz",
        images=known_images(20, 32),
        labels=np.array(CLASSES),
        classes=np.array("/etc/passwd"),
    )
    dataset = read_dataset(tmp_path / "a.npz", digits)
    assert dataset.classes == "model"
    assert dataset.origin.notes == (
        "its text classes is '/etc/passwd', which is not a known subset of ImageNet, and is "
        "ignored: set --classes",
    )


def test_extended_precision_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """safetensors has no name for it, and few machines have the type."""
    images = np.random.default_rng(0).uniform(0, 1, (4, 3, 8, 8))
    for name, values, labels in (
        ("images", images.astype(np.longdouble), np.arange(4)),
        ("labels", images, (np.eye(4) - 0.3).astype(np.longdouble)),
    ):
        np.savez(tmp_path / f"{name}.npz", images=values, labels=labels)
        for output in ("b.safetensors", "b.npz"):
            result = CliRunner().invoke(
                app, ["convert", str(tmp_path / f"{name}.npz"), str(tmp_path / output)]
            )
            assert (result.exit_code, (tmp_path / output).exists()) == (1, False)
            assert f"{name}.npz: {name} are {np.dtype(np.longdouble)}[4, " in result.output


def test_a_collage_that_cannot_be_cut_is_refused_before_its_tiles_are_numbered(
    tmp_path: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "diver_trt.distilled.dataset.Sample", lambda *_: pytest.fail("a tile was numbered")
    )
    np.savez(
        tmp_path / "a.npz",
        images=np.full((2, 3, 8, 8), 0.5, np.float32),
        labels=np.arange(2),
        collage=np.array("16"),
        normalisation=np.array("none"),
    )
    with pytest.raises(DatasetError, match="is not a collage of 16 x 16 images"):
        read_dataset(tmp_path / "a.npz", digits)


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("write", "side"),
    [
        (methods.datm, 64),
        (methods.glad, 64),
        (methods.dm, 32),
        (methods.listed("data.pt"), 96),
        (methods.listed("data_20000.pt"), 64),
    ],
    ids=["datm", "glad", "dm", "idc", "ncfm"],
)
def test_a_converted_file_is_the_same_dataset(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path], side: int, suffix: str
) -> None:
    source = write(tmp_path, known_images(20, side), CLASSES)
    device = tmp_path / "device"
    device.mkdir()
    convert(source, device / f"set.{suffix}")
    options = ReadOptions(classes="imagewoof")
    original, converted = (
        read_dataset(path, imagenet, options) for path in (source, device / f"set.{suffix}")
    )
    assert converted.samples == original.samples
    for name in ("format", "normalisation", "collage", "image_size", "soft_labels"):
        assert getattr(converted.origin, name) == getattr(original.origin, name)
    for sample in original.samples:
        np.testing.assert_array_equal(
            converted.images.read(sample.position), original.images.read(sample.position)
        )
        if original.soft_label is not None and converted.soft_label is not None:
            np.testing.assert_array_equal(
                converted.soft_label(sample.position), original.soft_label(sample.position)
            )
    assert [found.sha256 for found in converted.images.check()] == [
        found.sha256 for found in original.images.check()
    ]


SUFFIXES = ("npz", "safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_subset_that_the_path_names_is_kept_in_the_file(
    tmp_path: Path, imagenet: Bundle, suffix: str
) -> None:
    run = tmp_path / "logged_files" / "imagenet-fruits" / "run1"
    run.mkdir(parents=True)
    source, output = methods.mtt(run, known_images(20, 64), CLASSES), tmp_path / f"set.{suffix}"
    assert "collage 1, classes as in imagefruit" in convert(source, output)
    original, converted = (read_dataset(path, imagenet) for path in (source, output))
    assert (converted.classes, converted.samples) == ("imagefruit", original.samples)
    assert read_dataset(output, imagenet, ReadOptions(classes="imagewoof")).classes == "imagewoof"
    convert(output, tmp_path / f"again.{suffix}")
    assert read_dataset(tmp_path / f"again.{suffix}", imagenet).classes == "imagefruit"


@pytest.mark.parametrize(
    "stated", ["model", "map.txt", "/etc/passwd", "imagefruits", "\x1b[2J", ""]
)
def test_classes_that_are_not_a_subset_are_ignored(
    tmp_path: Path, imagenet: Bundle, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.txt").write_text("".join(f"{label}\n" for label in range(10)))
    np.savez(
        "a.npz", images=known_images(20, 32), labels=np.array(CLASSES), classes=np.array(stated)
    )
    with pytest.raises(DatasetError, match="has 10 classes, but the model has 1000"):
        read_dataset(Path("a.npz"), imagenet)


def test_a_stated_collage_is_kept_in_the_file(tmp_path: Path, imagenet: Bundle) -> None:
    source = methods.listed("data.pt")(tmp_path, known_images(20, 96), CLASSES)
    assert "IDC, normalisation none, collage 4" in convert(
        source, tmp_path / "a.npz", "--collage", 4
    )
    assert (
        read_dataset(tmp_path / "a.npz", imagenet, ReadOptions(classes="imagewoof")).origin.collage
        == 4
    )
    assert (
        read_dataset(
            tmp_path / "a.npz", imagenet, ReadOptions(classes="imagewoof", collage=1)
        ).origin.collage
        == 1
    )


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    source = methods.mtt(tmp_path, known_images(20, 32), CLASSES, "cifar10")
    (tmp_path / "taken.npz").touch()
    for output, message in (
        ("a.zip", "expected a name that ends in .npz or .safetensors"),
        ("taken.npz", "already exists; choose a new file"),
        ("missing/a.npz", "cannot be written (No such file or directory)"),
    ):
        result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / output)])
        assert result.exit_code == 1
        assert message in result.output
    result = CliRunner().invoke(
        app, ["convert", str(tmp_path / "nothing"), str(tmp_path / "a.npz")]
    )
    assert "no such file or folder" in result.output
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "empty"), str(tmp_path / "a.npz")])
    assert "holds no file of tensors; name one file of images" in result.output


def test_texts_of_invalid_code_points_are_ignored(tmp_path: Path, imagenet: Bundle) -> None:
    """numpy makes a string of any four bytes, and fails wherever an invalid one is printed."""
    impossible = np.frombuffer(b"\xff\xff\xff\x7f" * 3, "<U3").reshape(())
    # float16 cannot hold the largest value allowed.
    values = methods.normalised(known_images(20, 64), "none").numpy().astype(np.float16)
    np.savez(
        tmp_path / "a.npz",
        images=values,
        labels=np.array(CLASSES),
        format=np.array("idc"),
        normalisation=impossible,
        collage=impossible,
    )
    found = read_dataset(tmp_path / "a.npz", imagenet, ReadOptions(classes="imagewoof", collage=1))
    assert (found.origin.format.name, found.origin.normalisation) == ("idc", "none")


def test_either_byte_order_is_read(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 64)
    values = methods.normalised(images, "none").numpy()
    np.savez(
        tmp_path / "big.npz",
        images=values.astype(">f4"),
        labels=np.array(CLASSES, ">i8"),
        format=np.array("idc"),
    )
    for suffix in ("npz", "safetensors"):
        convert(tmp_path / "big.npz", tmp_path / f"little.{suffix}", "--collage", 1)
        found = read_dataset(
            tmp_path / f"little.{suffix}", imagenet, ReadOptions(classes="imagewoof")
        )
        np.testing.assert_array_equal(
            [found.images.read(sample.position) for sample in found.samples], images
        )
