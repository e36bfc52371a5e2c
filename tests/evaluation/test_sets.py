"""Reading sets as a user names them: folders, tensors, recovered datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diver_trt.distilled.class_map import imagenet_subsets, imagenet_wnids
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import DatasetError, UsageError
from diver_trt.evaluation.image_set import matched
from diver_trt.evaluation.sets import list_set, read_sets
from tests.cli.command import QUICK, run
from tests.conftest import DISTILLED, digit_folder

FRUIT = imagenet_subsets()["imagefruit"]
FRUIT_WNIDS = tuple(imagenet_wnids()[label] for label in FRUIT)


def write_folders(root: Path, names: tuple[str, ...], side: int = 16) -> Path:
    """Write two images per class; the position of the class is their grey level."""
    for level, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(2):
            image = np.full((side, side, 3), 10 * level, np.uint8)
            image[0, 0], image[0, 1] = number + 1, 255
            Image.fromarray(image).save(root / name / f"{number}.png")
    return root


def write_tensors(path: Path, classes: int, side: int = 16) -> Path:
    """Write two images per numbered class; the number is the grey level."""
    labels = np.arange(classes).repeat(2)
    images = np.broadcast_to(
        (10 * labels).astype(np.uint8)[:, None, None, None], (20, side, side, 3)
    )
    images = images.copy()
    images[:, 0, 0] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, labels=labels)
    return path


def test_index_folders_and_tensors_have_numbers(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", tuple(f"{i:05d}" for i in range(10)))
    tensors = write_tensors(tmp_path / "plain.npz", 10)
    sets = read_sets({"folders": folders, "digits": DISTILLED}, tensors)
    assert {one.side for one in (*sets.train.values(), sets.test)} == {16}
    assert sets.train["folders"].names is None
    assert sets.train["folders"].labels.tolist() == np.arange(10).repeat(2).tolist()
    assert (sets.train["folders"].images[:, 8, 8, 0] == 10 * sets.train["folders"].labels).all()
    assert (sets.test.images[:, 8, 8, 0] == 10 * sets.test.labels).all()
    assert len(sets.train["digits"].labels) == 100


def test_a_note_on_numbered_folders_names_no_model(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", ("0", "1", "3"))
    for classes, owner in ((None, "its numbering has 4"), ("model", "ImageNet-1K has 1,000")):
        notes = list_set(folders, ReadOptions(classes)).dataset.origin.notes
        expected = f"it has 3 class folders, but {owner} classes (no folder for class 2): is"
        assert any(note.startswith(expected) for note in notes)


def test_named_folders_are_matched_in_any_order(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", ("coat", "bag", "dress"))
    test = write_folders(tmp_path / "test", ("Dress", "Coat", "Bag"))
    sets = read_sets({"train": train}, test)
    found = matched("train", sets.train["train"], sets.test)
    grey = found.images[:, 8, 8, 0]
    level = {int(label): int(grey[i]) for i, label in enumerate(found.labels)}
    assert sets.test.names == ("Bag", "Coat", "Dress")
    assert level == {1: 0, 0: 10, 2: 20}


@pytest.mark.parametrize("stated", ["path", "option"])
def test_numbered_tensors_of_a_subset_are_matched_by_wnid(tmp_path: Path, stated: str) -> None:
    folder = "imagefruit" if stated == "path" else "mine"
    train = write_tensors(tmp_path / folder / "plain.npz", 10)
    test = write_folders(tmp_path / "val", FRUIT_WNIDS)
    classes = "imagefruit" if stated == "option" else None
    sets = read_sets({"train": train}, test, options=ReadOptions(classes))
    assert sets.train["train"].names == FRUIT_WNIDS
    found = matched("train", sets.train["train"], sets.test)
    # Grey levels follow the subset's order in both; labels follow the test set's sorted wnids.
    for one in (found, sets.test):
        order = [sorted(FRUIT_WNIDS).index(FRUIT_WNIDS[x // 10]) for x in one.images[:, 8, 8, 0]]
        assert one.labels.tolist() == order


@pytest.mark.parametrize(
    ("method", "subset"), [("frepo", "imagewoof"), ("ncfm", "imagefruit"), ("arrays", "imagewoof")]
)
def test_a_methods_own_order_of_a_subset_decides(tmp_path: Path, method: str, subset: str) -> None:
    """FRePo has its own ImageWoof, and NCFM a class of its own in ImageFruit."""
    own = imagenet_subsets().get(f"{subset}@{method}", imagenet_subsets()[subset])
    wnids = tuple(imagenet_wnids()[label] for label in own)
    train = write_tensors(tmp_path / "plain.npz", 10)
    everything = dict.fromkeys((*wnids, *(imagenet_wnids()[i] for i in imagenet_subsets()[subset])))
    test = write_folders(tmp_path / "val", tuple(everything))
    options = ReadOptions(subset, method, "none" if method == "arrays" else None, collage=1)
    if method == "ncfm":
        # Its files are lists, so that the set is named by its own reader.
        values = torch.from_numpy(np.load(train)["images"].transpose(0, 3, 1, 2) / 255.0)
        train = tmp_path / "data_20000.pt"
        labels = torch.arange(10).repeat_interleave(2)
        torch.save([values.float(), labels], train)
    sets = read_sets({"train": train}, test, options=options)
    assert sets.train["train"].names == wnids


def test_numbers_against_wnids_are_refused(tmp_path: Path) -> None:
    train = write_tensors(tmp_path / "mine" / "plain.npz", 10)
    sets = read_sets({"train": train}, write_folders(tmp_path / "val", FRUIT_WNIDS))
    with pytest.raises(DatasetError, match="are numbers, but the test set's are wnids"):
        matched("train", sets.train["train"], sets.test)


def test_validation_images_of_other_wnids_are_left_out(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", FRUIT_WNIDS[:3])
    test = write_folders(tmp_path / "val", FRUIT_WNIDS)
    sets = read_sets({"train": train}, test)
    assert sets.test.names == tuple(sorted(FRUIT_WNIDS[:3]))
    assert sets.notes[0] == f"{test}: left out 7 classes of no training set"
    matched("train", sets.train["train"], sets.test)


def test_they_are_left_out_for_numbers_with_gaps_too(tmp_path: Path) -> None:
    """Like the tensors of a subset in which one class is empty."""
    train = write_tensors(tmp_path / "plain.npz", 10)
    stored = dict(np.load(train))
    kept = stored["labels"] != 4
    np.savez(train, images=stored["images"][kept], labels=stored["labels"][kept])
    others = imagenet_wnids()[:3]
    test = write_folders(tmp_path / "val", (*FRUIT_WNIDS, *others))
    sets = read_sets({"train": train}, test, options=ReadOptions("imagefruit"))
    matched("train", sets.train["train"], sets.test)


def test_what_of_the_test_set_is_not_read_is_noted(tmp_path: Path) -> None:
    test = write_folders(tmp_path / "test", ("coat", "bag"))
    (test / "logs").mkdir()
    (test / "logs" / "log.txt").touch()
    sets = read_sets({"train": write_folders(tmp_path / "train", ("coat", "bag"))}, test)
    note = sets.notes[0]
    assert note.startswith(f"{test}: not read: ")


COUNTED = tuple(range(11))


@pytest.mark.parametrize(
    ("names", "turn"),
    [
        ([f"class_{number}" for number in COUNTED], "class_10 before class_2"),
        ([f"c{number + 1}" for number in COUNTED], "c11 before c2"),
        ([f"{number}_cat" for number in COUNTED], "10_cat before 1_cat"),
        # In the order of the numbers, and numbers that do not count
        ([f"class_{number:02d}" for number in COUNTED], None),
        ([f"Boeing {number}7" for number in COUNTED], None),
        ([f"{chr(97 + number)}" for number in COUNTED], None),
    ],
)
def test_numbers_are_not_matched_with_names_that_count_in_the_order_of_texts(
    tmp_path: Path, names: list[str], turn: str | None
) -> None:
    """`class_10` is the folder after `class_1`, but not the class after 1."""
    test = write_folders(tmp_path / "test", tuple(sorted(names)))
    train = write_folders(tmp_path / "train", tuple(map(str, COUNTED)))
    sets = read_sets({"train": train}, test)
    if turn is None:
        found = matched("train", sets.train["train"], sets.test)
        assert (found.images[:, 8, 8, 0] == 10 * found.labels).all()
    else:
        with pytest.raises(DatasetError, match=f"are in the order of texts, {turn}"):
            matched("train", sets.train["train"], sets.test)


def test_training_images_that_are_test_images_are_noted(tmp_path: Path) -> None:
    """Real images for comparison that were taken from the test set."""
    test = write_folders(tmp_path / "test", ("bag", "coat"))
    drawn = write_folders(tmp_path / "random", ("bag", "coat"))
    for name in ("bag/0.png", "bag/1.png", "coat/0.png"):
        Image.new("RGB", (16, 16), f"#0000{len(name):02x}").save(drawn / name)
    other = write_folders(tmp_path / "other", ("bag", "coat"), side=20)
    for path in other.glob("*/*.png"):
        Image.new("RGB", (20, 20), "red").save(path)
    assert read_sets({"random": drawn, "other": other}, test).notes == (
        "random: 1 of its 4 images are test images too, so its accuracy is not that on unseen "
        "images",
    )


def test_named_classes_that_are_missing_are_not_left_out(tmp_path: Path) -> None:
    train = write_folders(tmp_path / "train", ("coat", "bag"))
    test = write_folders(tmp_path / "test", ("coat", "bag", "dress"))
    sets = read_sets({"train": train}, test)
    with pytest.raises(DatasetError, match="dress is not in the training set"):
        matched("train", sets.train["train"], sets.test)


def test_a_recovered_dataset_is_read_by_its_manifest(tmp_path: Path) -> None:
    few = digit_folder(tmp_path / "few", {3: 10, 8: 10})
    run("recover", few, tmp_path / "out", *QUICK)
    listed = list_set(tmp_path / "out")
    assert listed.dataset.origin.format.name == "recovered"
    sets = read_sets({"distilled": few, "recovered": tmp_path / "out"}, DISTILLED, side=24)
    ours, theirs = sets.train["recovered"], sets.train["distilled"]
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.images.shape == theirs.images.shape
    assert ours.images.shape[1:] == (24, 24, 3)


def write_map(path: Path, lines: str) -> str:
    path.write_text(lines)
    return str(path)


def test_a_recovered_set_is_matched_by_the_folders_of_its_distilled_images(tmp_path: Path) -> None:
    few = write_folders(tmp_path / "few", ("Cat", "dog", "red fox"))
    classes = write_map(tmp_path / "classes.txt", "Cat 2\ndog 0\nred fox 1\n")
    assert run("recover", few, tmp_path / "out", "--classes", classes, *QUICK).exit_code == 0
    test = write_folders(tmp_path / "test", ("Red_Fox", "dog", "cat"))
    sets = read_sets({"distilled": few, "recovered": tmp_path / "out"}, test)
    found = {name: matched(name, one, sets.test) for name, one in sets.train.items()}
    assert found["distilled"].labels.tolist() == found["recovered"].labels.tolist()
    assert found["recovered"].names == ("Red_Fox", "cat", "dog")


@pytest.mark.parametrize("stated", ["imagefruit", "a file"])
def test_a_stated_map_is_not_that_of_a_recovered_set(tmp_path: Path, stated: str) -> None:
    few = digit_folder(tmp_path / "few", {0: 1, 1: 1, 2: 1})
    run("recover", few, tmp_path / "out", *QUICK)
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    # As a model of ImageNet would have recovered it.
    for part in ("classes", "samples"):
        for entry in manifest[part]:
            entry["wnid"], entry["label"] = FRUIT_WNIDS[entry["index"]], FRUIT[entry["index"]]
    path.write_text(json.dumps(manifest))
    lines = [f"{wnid} {i}\n" for i, wnid in enumerate(FRUIT_WNIDS[2::-1])]
    classes = stated if stated == "imagefruit" else write_map(tmp_path / "map.txt", "".join(lines))
    test = write_folders(tmp_path / "val", FRUIT_WNIDS[:3])
    sets = read_sets({"recovered": tmp_path / "out"}, test, options=ReadOptions(classes))
    assert sets.train["recovered"].names == FRUIT_WNIDS[:3]


def test_folders_within_the_class_folders_do_not_name_the_classes(tmp_path: Path) -> None:
    few = tmp_path / "few"
    for name in ("cat", "dog", "fox"):
        write_folders(few / name, ("images",))
    classes = write_map(tmp_path / "classes.txt", "cat 2\ndog 0\nfox 1\n")
    assert run("recover", few, tmp_path / "out", "--classes", classes, *QUICK).exit_code == 0
    assert ("cat", "dog", "fox") in list_set(tmp_path / "out").namings


def test_a_class_map_has_names_of_its_own(tmp_path: Path) -> None:
    classes = write_map(tmp_path / "cifar.txt", "airplane 404\nautomobile 817\nbird 10\n")
    numbered = write_folders(tmp_path / "numbered", ("0", "1", "2"))
    test = write_folders(tmp_path / "test", ("bird", "airplane", "automobile"))
    sets = read_sets({"numbered": numbered}, test, options=ReadOptions(classes))
    assert matched("numbered", sets.train["numbered"], sets.test).labels.tolist() == [
        *(0, 0, 1, 1, 2, 2)
    ]
    by_wnid = write_folders(
        tmp_path / "wnids", tuple(imagenet_wnids()[label] for label in (10, 404, 817))
    )
    sets = read_sets({"numbered": numbered}, by_wnid, options=ReadOptions(classes))
    assert matched("numbered", sets.train["numbered"], sets.test).labels.tolist() == [
        *(1, 1, 2, 2, 0, 0)
    ]


def test_a_map_that_names_a_class_twice_is_matched_by_number(tmp_path: Path) -> None:
    numbered = write_folders(tmp_path / "numbered", ("0", "1", "2"))
    classes = write_map(tmp_path / "map.txt", "0\n5\n0\n")
    sets = read_sets({"numbered": numbered}, numbered, options=ReadOptions(classes))
    assert matched("numbered", sets.train["numbered"], sets.test).labels.tolist() == [
        *(0, 0, 1, 1, 2, 2)
    ]


def test_what_is_stated_of_training_sets_is_not_stated_of_test_images(tmp_path: Path) -> None:
    collages = write_folders(tmp_path / "collages", ("coat", "bag"), side=32)
    test = write_folders(tmp_path / "test", ("coat", "bag"))
    sets = read_sets({"collages": collages}, test, options=ReadOptions(collage=2))
    assert (len(sets.train["collages"].labels), len(sets.test.labels)) == (16, 4)
    assert sets.test.side == 16


def test_names_that_repeat_the_number_are_numbers(tmp_path: Path) -> None:
    few = digit_folder(tmp_path / "few", dict.fromkeys(range(10), 10))
    run("recover", few, tmp_path / "out", *QUICK)
    assert read_sets({"recovered": tmp_path / "out"}, DISTILLED).notes == ()


def test_a_size_of_0_and_no_training_set_are_refused() -> None:
    with pytest.raises(UsageError, match="--image-size 0: expected a whole number from 1"):
        read_sets({"digits": DISTILLED}, DISTILLED, side=0)
    with pytest.raises(UsageError, match="found no training set; expected one or more"):
        read_sets({}, DISTILLED)


def test_what_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        list_set(tmp_path / "absent")
    (tmp_path / "empty" / "0").mkdir(parents=True)
    with pytest.raises(DatasetError, match="hold no images"):
        list_set(tmp_path / "empty")
