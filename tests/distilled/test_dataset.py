"""A dataset reports its format and its assumptions, and nothing ambiguous is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.brightness import brightness_share
from diver_trt.distilled.class_map import imagenet_subsets
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError, UsageError
from tests.distilled import methods

Pixels = NDArray[np.uint8]
WOOF = imagenet_subsets()["imagewoof"]
CLASSES = [index for index in range(10) for _ in range(2)]


def known_images(count: int, side: int, seed: int = 0) -> Pixels:
    """Smooth images, every one different, with the brightness of photographs."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            for image in coarse
        ]
    )


def as_woof(path: Path, bundle: Bundle, **options: Any) -> Dataset:
    return read_dataset(path, bundle, ReadOptions(**{"classes": "imagewoof", **options}))


def refusal(path: Path, bundle: Bundle, **options: Any) -> str:
    """Return the error with which a dataset is refused."""
    with pytest.raises(DatasetError) as raised:
        read_dataset(path, bundle, ReadOptions(**options))
    return str(raised.value)


def named(path: Path, **arrays: Any) -> Path:
    """Save twenty known images, their classes and what else is given, or that in their place."""
    np.savez(path, **{"images": known_images(20, 32), "labels": CLASSES, **arrays})
    return path


def assert_holds(
    dataset: Dataset,
    images: Sequence[Pixels] | Pixels,
    classes: Sequence[int],
    labels: Sequence[int],
) -> None:
    """Check that every image is there once, class by class in the given order, within one level."""
    expected = sorted(range(len(classes)), key=lambda i: classes[i])
    assert [sample.index for sample in dataset.samples] == [classes[i] for i in expected]
    assert [sample.label for sample in dataset.samples] == [labels[classes[i]] for i in expected]
    assert len(list(dataset.images.check())) == len(dataset.samples)
    for sample, i in zip(dataset.samples, expected, strict=True):
        found = dataset.images.read(sample.position)
        assert found.shape == images[i].shape
        assert np.abs(found.astype(int) - images[i]).max() <= 1


def test_teacher_labels_are_carried_on_as_logits(tmp_path: Path, imagenet: Bundle) -> None:
    dataset = as_woof(
        methods.tesla_with_teacher_labels(tmp_path, known_images(20, 64), CLASSES), imagenet
    )
    assert dataset.origin.soft_labels == "probabilities"
    assert dataset.soft_label is not None
    found = torch.from_numpy(
        np.stack([dataset.soft_label(sample.position) for sample in dataset.samples])
    )
    torch.testing.assert_close(found.softmax(dim=1), methods.logits(CLASSES, 10).softmax(dim=1))


def test_learned_logits_are_carried_on_as_they_are(tmp_path: Path, imagenet: Bundle) -> None:
    dataset = as_woof(methods.datm(tmp_path, known_images(20, 128), CLASSES), imagenet)
    assert (dataset.origin.soft_labels, dataset.origin.files) == ("logits", ("images_best.pt",))
    assert dataset.soft_label is not None
    np.testing.assert_array_equal(dataset.soft_label(7), methods.logits(CLASSES, 10)[7].numpy())
    cut = as_woof(tmp_path, imagenet, collage=2)
    assert cut.soft_label is None
    assert any("soft labels are of whole collages" in note for note in cut.origin.notes)


NAMES = pytest.mark.parametrize(("image", "label"), [("images", "labels"), ("image", "label")])


@NAMES
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_that_somebody_saved_by_hand_are_read_as_such(
    tmp_path: Path, imagenet: Bundle, image: str, label: str, dtype: type[Any]
) -> None:
    images = known_images(20, 32)
    values = images if dtype is np.uint8 else (images / 255).astype(np.float32)
    arrays: dict[str, Any] = {image: values, label: np.array(CLASSES)}
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = as_woof(tmp_path / "mine.npz", imagenet)
    assert (
        dataset.summary
        == "plain tensors, 10 classes x 2, 32 px, not normalised, classes as in imagewoof"
    )
    assert not dataset.origin.notes
    assert_holds(dataset, images, CLASSES, WOOF)


def test_bytes_are_never_taken_for_whitened(tmp_path: Path, imagenet: Bundle) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    path = named(tmp_path / "kip_mine_zca_.npz", images=images, whitening="KIP")
    assert_holds(as_woof(path, imagenet), images, CLASSES, WOOF)


@pytest.mark.parametrize(
    ("folders", "subset"),
    [
        ("logged_files/imagenet-fruits/run", "imagefruit"),
        ("ImageWoof/run-3", "imagewoof"),
        ("results/imagenet10/conv_ipc10", "imagenet-10"),
        ("results/imagenet-a", "imagenet-a"),
    ],
)
def test_a_subset_may_be_named_by_the_path(
    tmp_path: Path, imagenet: Bundle, folders: str, subset: str
) -> None:
    (tmp_path / folders).mkdir(parents=True)
    path = methods.mtt(tmp_path / folders, known_images(20, 128), CLASSES)
    assert read_dataset(path, imagenet).classes == subset


@pytest.mark.parametrize(
    "folder", ["imagenet_10ipc", "imagenet_100epochs", "imagenet-a100-run", "preimagewoofer"]
)
def test_ten_classes_of_imagenet_are_not_guessed_from_a_path_that_only_resembles_a_subset(
    tmp_path: Path, imagenet: Bundle, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    path = methods.mtt(tmp_path / folder, known_images(20, 128), CLASSES)
    with pytest.raises(
        DatasetError, match=r"has 10 classes, but the model has 1000.*--classes imagenette"
    ):
        read_dataset(path, imagenet)


def test_folders_and_a_file_of_tensors_in_one_place_are_ambiguous(
    tmp_path: Path, imagenet: Bundle
) -> None:
    methods.GVBSM(tmp_path, known_images(20, 32), CLASSES)
    np.savez(tmp_path / "new003" / "features.npz", features=np.zeros(3))
    assert len(as_woof(tmp_path, imagenet).samples) == 20
    methods.mtt(tmp_path, known_images(20, 128), CLASSES)
    with pytest.raises(
        DatasetError,
        match=r"holds class folders and images_best.pt; name the file, or move it elsewhere",
    ):
        as_woof(tmp_path, imagenet)


def test_the_summary_lists_facts_and_assumptions(tmp_path: Path, imagenet: Bundle) -> None:
    dataset = as_woof(methods.mtt(tmp_path, known_images(20, 128), CLASSES), imagenet)
    assert dataset.summary == (
        "MTT, TESLA, FTD, DATM, EDF or SeqMatch tensors, 10 classes x 2, 128 px, "
        "imagenet-normalised, classes as in imagewoof"
    )


def test_a_map_of_another_size_is_noticed(tmp_path: Path, imagenet: Bundle) -> None:
    path = methods.mtt(tmp_path, known_images(20, 128), CLASSES)
    (note,) = as_woof(path, imagenet, classes="imagenet-100").origin.notes
    assert note == "its labels are of 10 classes, but imagenet-100 has 100: is --classes right?"
    with pytest.raises(
        DatasetError, match=r"class 9 is out of range; .*three.txt has classes 0 to 2"
    ):
        (tmp_path / "three.txt").write_text("1\n2\n3\n")
        as_woof(path, imagenet, classes=str(tmp_path / "three.txt"))


def test_a_map_that_gives_two_folders_one_class_is_noticed(
    tmp_path: Path, imagenet: Bundle
) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / "0.png")
    (tmp_path / "map").write_text("a 7\nb 7\n")
    dataset = read_dataset(tmp_path / "set", imagenet, ReadOptions(str(tmp_path / "map")))
    assert dataset.labels == {0: 7, 1: 7}
    assert dataset.origin.notes == (
        f"{tmp_path}/map gives 2 indices (0, 1) the same class, 7: is that intended?",
    )


def test_several_runs_are_not_one_set(tmp_path: Path, imagenet: Bundle) -> None:
    for run in ("run1", "run2"):
        (tmp_path / run).mkdir()
        methods.mtt(tmp_path / run, known_images(20, 128), CLASSES)
    with pytest.raises(DatasetError, match=r"holds several sets \(run1, run2\); name one of them"):
        as_woof(tmp_path, imagenet)
    (tmp_path / "run1").rename(tmp_path / "one_phase0")
    (tmp_path / "run2").rename(tmp_path / "other_phase1")
    with pytest.raises(DatasetError, match="holds several sets"):
        as_woof(tmp_path, imagenet)


def test_pictures_beside_the_tensors_are_not_a_class(tmp_path: Path, imagenet: Bundle) -> None:
    """NCFM's folder of a run: `distilled_data` and `images`."""
    images = known_images(20, 128)
    for folder in ("distilled_data", "images"):
        (tmp_path / folder).mkdir()
    methods.listed("data_20000.pt")(tmp_path / "distilled_data", images, CLASSES)
    Image.fromarray(images[0]).save(tmp_path / "images" / "img_20000.png")
    dataset = as_woof(tmp_path, imagenet, collage=1)
    assert dataset.origin.files == ("distilled_data/data_20000.pt",)
    assert_holds(dataset, images, CLASSES, WOOF)
    (tmp_path / "images").rename(tmp_path / "tench")
    with pytest.raises(
        DatasetError, match="'distilled_data' is not a class index, wnid or known class name"
    ):
        as_woof(tmp_path, imagenet)


def test_another_programs_manifest_is_not_ours(tmp_path: Path, imagenet: Bundle) -> None:
    images = known_images(20, 32)
    folders = methods.GVBSM(tmp_path, images, CLASSES)
    (tmp_path / "manifest.json").write_text('{"name": "my set", "icons": []}')
    assert_holds(as_woof(folders, imagenet), images, CLASSES, WOOF)
    for damaged in ('{"schema": 1, "tool"', '{"schema": 1}'):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(DatasetError, match=r"manifest\.json"):
            read_dataset(folders, imagenet)


def test_options_that_cannot_apply_are_refused(tmp_path: Path, imagenet: Bundle) -> None:
    folders = methods.GVBSM(tmp_path / "folders", known_images(20, 32), CLASSES)
    options: Any
    for options, message in (
        (
            {"normalisation": "imagenet"},
            f"--normalisation: {folders} holds images, which are not normalised; leave it out",
        ),
        (
            {"method": "mtt"},
            "--format mtt is a format of tensors, but the input holds folders; expected one of "
            "folders, sre2l",
        ),
        ({"collage": 15}, "32 x 32 pixels is not a collage of 15 x 15 images"),
    ):
        assert message in refusal(folders, imagenet, classes="imagewoof", **options)
    assert "no such file or folder" in refusal(tmp_path / "missing", imagenet)
    with pytest.raises(UsageError, match="--format nonsense: no such format"):
        ReadOptions(method="nonsense")
    with pytest.raises(UsageError, match="--collage 0: expected a whole number from 1 to 16"):
        ReadOptions(collage=0)


def colours_on_grey(count: int) -> Pixels:
    """Dots of strong colours on grey, whose brightness is a small part of their energy."""
    generator = np.random.default_rng(5)
    dots = 255 * generator.integers(0, 2, (count, 32, 32, 3))
    grey = generator.random((count, 32, 32, 1)) < 0.9
    return np.where(grey, 128, dots).astype(np.uint8)


@pytest.mark.parametrize("name", ["data.pt", "mine.npz"])
def test_pictures_that_fill_minus_1_to_1_are_not_taken_for_whitened(
    tmp_path: Path, imagenet: Bundle, name: str
) -> None:
    images, path = colours_on_grey(20), tmp_path / name
    values = methods.normalised(images, "minus1to1")
    assert brightness_share(values.numpy()) < 0.05  # as whitened images have
    if name.endswith("pt"):
        torch.save([values, methods.hard(CLASSES)], path)
    else:
        named(path, images=values.numpy())
    assert_holds(as_woof(path, imagenet, collage=1), images, CLASSES, WOOF)


@pytest.mark.parametrize("side", [32, 64])
def test_grey_tensors_are_never_read_with_statistics_of_colours(
    tmp_path: Path, imagenet: Bundle, side: int
) -> None:
    grey = known_images(20, side)[..., :1].repeat(3, axis=3)
    methods.mtt(tmp_path, methods.normalised(grey, "mnist")[:, :1], CLASSES)
    with pytest.raises(DatasetError, match=r"holds grey images, which (cifar10|imagenet), a norm"):
        as_woof(tmp_path, imagenet)
    with pytest.raises(DatasetError, match="holds grey images, which svhn"):
        as_woof(tmp_path, imagenet, normalisation="svhn")
    assert_holds(as_woof(tmp_path, imagenet, normalisation="mnist"), grey, CLASSES, WOOF)


def test_bytes_have_no_normalisation_to_undo(tmp_path: Path, imagenet: Bundle) -> None:
    path = named(tmp_path / "mine.npz")
    with pytest.raises(DatasetError, match="holds 8-bit pixels, which are never normalised; leave"):
        as_woof(path, imagenet, normalisation="imagenet")
    read = as_woof(path, imagenet, normalisation="none")
    assert_holds(read, known_images(20, 32), CLASSES, WOOF)


@NAMES
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("channels_last", [True, False])
def test_probabilities_beside_float_pixels_are_not_regression_targets(
    tmp_path: Path, imagenet: Bundle, image: str, label: str, side: int, channels_last: bool
) -> None:
    images, rows = known_images(20, side), methods.logits(CLASSES, 10).softmax(dim=1).numpy()
    values = (images / 255).astype(np.float32)
    stored = values if channels_last else values.transpose(0, 3, 1, 2)
    arrays: dict[str, Any] = {image: stored, label: rows}
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = as_woof(tmp_path / "mine.npz", imagenet)
    assert (dataset.origin.format.name, dataset.origin.soft_labels) == ("arrays", "probabilities")
    assert_holds(dataset, images, CLASSES, WOOF)


def test_frepos_pixels_of_any_size_are_read_by_their_range(
    tmp_path: Path, imagenet: Bundle
) -> None:
    images, path = known_images(20, 64), tmp_path / "step500000.npz"
    targets = methods.one_hot(CLASSES, 10) - 0.1
    np.savez(path, image=(images / 255).astype(np.float32), label=targets)
    dataset = as_woof(path, imagenet)
    assert dataset.origin.format.name == "frepo"
    assert_holds(dataset, images, CLASSES, imagenet_subsets()["imagewoof@frepo"])


def test_soft_labels_under_another_name_are_noted(tmp_path: Path, imagenet: Bundle) -> None:
    path = named(tmp_path / "mine.npz", soft_labels=methods.logits(CLASSES, 10).numpy())
    notes = as_woof(path, imagenet).origin.notes
    assert "its soft_labels are not read: soft labels are read where labels would be" in notes


def test_a_map_with_other_numbers_does_not_fit_tensors(tmp_path: Path, digits: Bundle) -> None:
    path = named(tmp_path / "mine.npz", images=known_images(2, 32), labels=[0, 1])
    class_map = tmp_path / "map.json"
    class_map.write_text('{"1": 4, "0": 9}')
    dataset = read_dataset(path, digits, ReadOptions(classes=str(class_map)))
    assert [sample.label for sample in dataset.samples] == [9, 4]
    class_map.write_text('{"7": 4, "5": 9}')
    assert "numbers that are not 0 to 1, and tensors number" in refusal(
        path, digits, classes=str(class_map)
    )
