"""A converted file gives the device the same pixels and classes as the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from tests.cli.command import run
from tests.distilled import methods
from tests.distilled.test_collage import textured
from tests.distilled.test_dataset import CLASSES, as_woof, known_images, named
from tests.distilled.whitened import convert, refused


def test_extended_precision_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """safetensors has no name for it, and few machines have the type."""
    images = np.random.default_rng(0).uniform(0, 1, (4, 3, 8, 8))
    for name, values, labels in (
        ("images", images.astype(np.longdouble), np.arange(4)),
        ("labels", images, (np.eye(4) - 0.3).astype(np.longdouble)),
    ):
        np.savez(tmp_path / f"{name}.npz", images=values, labels=labels)
        for output in ("b.safetensors", "b.npz"):
            message = f"{name}.npz: {name} are {np.dtype(np.longdouble)}[4, "
            assert message in refused(tmp_path / f"{name}.npz", tmp_path / output)
            assert not (tmp_path / output).exists()


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
    original, converted = (as_woof(path, imagenet) for path in (source, device / f"set.{suffix}"))
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


def test_a_stated_collage_is_kept_in_the_file(tmp_path: Path, imagenet: Bundle) -> None:
    source = methods.listed("data.pt")(tmp_path, known_images(20, 96), CLASSES)
    assert "IDC, normalisation none, collage 4" in convert(
        source, tmp_path / "a.npz", "--collage", 4
    )
    assert as_woof(tmp_path / "a.npz", imagenet).origin.collage == 4
    assert as_woof(tmp_path / "a.npz", imagenet, collage=1).origin.collage == 1


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    source = methods.mtt(tmp_path, known_images(20, 32), CLASSES, "cifar10")
    (tmp_path / "taken.npz").touch()
    for output, message in (
        ("a.zip", "expected a name that ends in .npz or .safetensors"),
        ("taken.npz", "already exists; choose a new file"),
        ("missing/a.npz", "cannot be written (No such file or directory)"),
    ):
        assert message in refused(source, tmp_path / output)
    assert "no such file or folder" in refused(tmp_path / "nothing", tmp_path / "a.npz")
    (tmp_path / "empty").mkdir()
    assert "holds no file of tensors; name one file of images" in refused(
        tmp_path / "empty", tmp_path / "a.npz"
    )


def test_either_byte_order_is_read(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 64)
    values = methods.normalised(images, "none").numpy().astype(">f4")
    named(tmp_path / "big.npz", images=values, labels=np.array(CLASSES, ">i8"), format="idc")
    for suffix in ("npz", "safetensors"):
        convert(tmp_path / "big.npz", tmp_path / f"little.{suffix}", "--collage", 1)
        found = as_woof(tmp_path / f"little.{suffix}", imagenet)
        np.testing.assert_array_equal(
            [found.images.read(sample.position) for sample in found.samples], images
        )


@pytest.mark.parametrize("json_too", [False, True])
def test_a_doubt_about_collages_is_noted_before_the_new_file_states_them(
    tmp_path: Path, digits: Bundle, json_too: bool
) -> None:
    """Whole images in IDC's file, whose images are collages unless its folder states otherwise."""
    source = methods.listed("data.pt")(tmp_path, textured(20, 64), CLASSES)
    (doubt,) = read_dataset(source, digits).origin.notes
    assert "do not look like 2 x 2 collages" in doubt
    result = run("convert", source, tmp_path / "set.npz", *(["--json"] if json_too else []))
    assert f"note: {doubt}" in " ".join(result.stderr.split())
    assert not json_too or json.loads(result.stdout)["collage"] == 2
    # The new file states the factor, so reading it gives no note.
    assert not read_dataset(tmp_path / "set.npz", digits).origin.notes
    whole = run("convert", source, tmp_path / "whole.npz", "--collage", 1)
    assert "note:" not in whole.stderr
