"""Class folders of any names give each image the right index and label."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import imagenet_subsets, imagenet_wnids
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.folders import ClassFolders, read_class_folders
from diver_trt.errors import DatasetError


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    def make(*folders: str, files: tuple[str, ...] = ("0.png",)) -> Path:
        root = tmp_path / "set"
        for folder in folders:
            (root / folder).mkdir(parents=True)
            for file in files:
                Image.new("RGB", (4, 4)).save(root / folder / file, format="PNG")
        return root

    return make


def classes(found: ClassFolders) -> dict[str, tuple[int, int]]:
    """Folder name => (index, label)."""
    return {
        file.parent.name: (index, found.class_map.labels[index])
        for file, index in zip(found.files, found.classes, strict=True)
    }


@pytest.mark.parametrize(
    ("model", "chosen", "expected"),
    [
        ("digits", None, {"0": (0, 0), "2": (2, 2), "9": (9, 9)}),
        ("digits", None, {"00000": (0, 0), "00007": (7, 7)}),
        ("imagenet", "imagewoof", {"0": (0, 193), "1": (1, 182), "9": (9, 229)}),
        ("imagenet", "model", {"n02099601": (207, 207), "n01440764": (0, 0)}),
    ],
)
def test_a_folder_is_the_class_that_its_name_says(
    tree: Callable[..., Path],
    request: pytest.FixtureRequest,
    model: str,
    chosen: str | None,
    expected: dict[str, tuple[int, int]],
) -> None:
    found = read_class_folders(tree(*expected), request.getfixturevalue(model), chosen)
    assert classes(found) == expected


def test_unpadded_folders_are_not_sorted_as_text(
    tree: Callable[..., Path], imagenet: Bundle
) -> None:
    assert read_class_folders(tree("1", "2", "10"), imagenet, "model").classes == (1, 2, 10)


def test_files_are_in_natural_order_with_unpadded_numbers(
    tree: Callable[..., Path], digits: Bundle
) -> None:
    found = read_class_folders(
        tree("3", files=("10.png", "2.png", "1.PNG", "note.txt", ".hidden.png")), digits
    )
    assert [file.name for file in found.files] == ["1.PNG", "2.png", "10.png"]


@pytest.mark.parametrize(
    "subset",
    ["imagewoof", "imagefruit", "imagesquawk", "imagenet-b", "imagenet-10", "imagenet-100"],
)
def test_wnid_folders_take_the_subsets_own_order(
    tree: Callable[..., Path], imagenet: Bundle, subset: str
) -> None:
    labels = imagenet_subsets()[subset]
    root = tree(*(imagenet_wnids()[label] for label in labels))
    found = classes(read_class_folders(root, imagenet, subset))
    assert found == {imagenet_wnids()[label]: (index, label) for index, label in enumerate(labels)}


def test_all_wnids_of_imagenet_need_no_option(tree: Callable[..., Path], imagenet: Bundle) -> None:
    found = classes(read_class_folders(tree(*imagenet_wnids()), imagenet))
    assert found == {wnid: (label, label) for label, wnid in enumerate(imagenet_wnids())}


def test_how_a_few_wnid_folders_are_numbered_is_never_guessed(
    tree: Callable[..., Path], imagenet: Bundle
) -> None:
    root = tree(*(imagenet_wnids()[label] for label in imagenet_subsets()["imagewoof"]))
    with pytest.raises(
        DatasetError,
        match=r"has 10 of the model's 1000 classes, those of imagewoof; .* Set --classes "
        "imagewoof, or --classes model",
    ):
        read_class_folders(root, imagenet)
    shutil.rmtree(root / imagenet_wnids()[155])
    with pytest.raises(
        DatasetError,
        match=r"has 9 of the model's 1000 classes; .* Set --classes SUBSET or FILE, or --classes "
        "model",
    ):
        read_class_folders(root, imagenet)


def test_an_error_lists_the_sets_below_a_path_too_high_up(tmp_path: Path, imagenet: Bundle) -> None:
    for name in ("imagenet-woof_f1_mipc300_ipc10_cr5/syn_data/00000", "other/deep/n02099601"):
        (tmp_path / "exp" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "exp" / name / "0.png")
    (tmp_path / "exp" / "logged" / "run").mkdir(parents=True)
    (tmp_path / "exp" / "logged" / "run" / "images_best.pt").touch()
    with pytest.raises(
        DatasetError, match=r"exp: holds no images itself; name a set in it, perhaps (.*)"
    ) as error:
        read_class_folders(tmp_path / "exp", imagenet)
    assert sorted(str(error.value).rpartition("perhaps ")[2].split(" or ")) == [
        "imagenet-woof_f1_mipc300_ipc10_cr5/syn_data",
        "logged/run",
        "other/deep",
    ]


def test_names_are_the_models_or_the_files(
    tree: Callable[..., Path], imagenet: Bundle, tmp_path: Path
) -> None:
    root = tree("Tench", "thing_7")
    assert classes(read_class_folders(root, imagenet, "model")) == {
        "Tench": (0, 0),
        "thing_7": (7, 7),
    }
    (tmp_path / "map.txt").write_text("thing_7 99\nTENCH 3\n")
    assert classes(read_class_folders(root, imagenet, str(tmp_path / "map.txt"))) == {
        "thing_7": (0, 99),
        "Tench": (1, 3),
    }


@pytest.mark.parametrize(
    "folders", [("0", "1"), ("00", "01"), ("00000", "00001"), ("new000", "new001")]
)
def test_numbers_in_a_map_are_those_of_the_folders_however_they_are_written(
    tree: Callable[..., Path], imagenet: Bundle, tmp_path: Path, folders: tuple[str, str]
) -> None:
    (tmp_path / "map.txt").write_text("1 4\n0 2\n")
    assert classes(read_class_folders(tree(*folders), imagenet, str(tmp_path / "map.txt"))) == {
        folders[0]: (0, 2),
        folders[1]: (1, 4),
    }


def test_a_map_may_have_numbers_of_its_own(
    tree: Callable[..., Path], imagenet: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "map.txt").write_text("9 4\n7 2\n")
    root = tree("007", "009")
    assert classes(read_class_folders(root, imagenet, str(tmp_path / "map.txt"))) == {
        "007": (0, 2),
        "009": (1, 4),
    }
    (root / "007").rename(root / "001")
    with pytest.raises(DatasetError, match="names classes by number, and 1 is not among them"):
        read_class_folders(root, imagenet, str(tmp_path / "map.txt"))


def test_a_name_of_the_map_takes_precedence_over_the_models(
    tree: Callable[..., Path], digits: Bundle, tmp_path: Path
) -> None:
    """The digits model's class names are digits, too."""
    (tmp_path / "map.txt").write_text("1 8\n2 7\n3 1\n")
    assert classes(read_class_folders(tree("1", "2", "3"), digits, str(tmp_path / "map.txt"))) == {
        "1": (0, 8),
        "2": (1, 7),
        "3": (2, 1),
    }


def test_a_folder_that_a_map_lacks_is_refused_with_the_maps_names(
    tree: Callable[..., Path], digits: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("cat: 3\ndog: 4\n")
    assert classes(read_class_folders(tree("dog"), digits, str(path))) == {"dog": (1, 4)}
    root = tree("cow")
    with pytest.raises(DatasetError) as error:
        read_class_folders(root, digits, str(path))
    assert str(error.value) == (
        f"{root}/cow: 'cow' is not a class index, wnid or known class name; {path} names 'cat', "
        "'dog'. Correct it, or rename the folder. If it is not a class, move it out of the "
        "dataset."
    )


def test_a_class_that_is_a_link_to_another_is_refused(
    tree: Callable[..., Path], digits: Bundle
) -> None:
    root = tree("7", "8")
    (root / "9").symlink_to("8")
    with pytest.raises(DatasetError, match=r"set/9: is the same folder as 8, by a symlink"):
        read_class_folders(root, digits)


@pytest.mark.parametrize("deeper", ["images/images", "Images", "png"])
def test_class_folders_with_images_in_other_folders_are_refused(
    tmp_path: Path, digits: Bundle, deeper: str
) -> None:
    (tmp_path / "set" / "3" / deeper).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "set" / "3" / deeper / "0.png")
    with pytest.raises(DatasetError) as error:
        read_class_folders(tmp_path / "set", digits)
    assert str(error.value) == (
        f"{tmp_path}/set: its class folders hold no images, but folders in them do; expected "
        "CLASS/IMAGE or CLASS/images/IMAGE. Move the images up."
    )


@pytest.mark.parametrize(
    ("folders", "subset", "message"),
    [
        (("1", "01"), "model", "1 are both class 1"),
        (("n02099601",), "imagenette", "this wnid is not among the classes of imagenette"),
        (("n99999999",), None, "is not a wnid of ImageNet-1K"),
        (
            ("unheard",),
            None,
            "'unheard' is not a class index, wnid or known class name; rename it to its index, or "
            "give a class map",
        ),
        (("1", "n02099601"), None, "'n02099601' holds images or tensors but is not a class index"),
        (("12",), "imagewoof", "class 12 is out of range; imagewoof has classes 0 to 9"),
        (
            (imagenet_wnids()[420],),
            "compdd-music-hard",
            "this wnid occurs twice in compdd-music-hard",
        ),
        (
            ("0", "1"),
            None,
            r"has 2 index folders, but the model has 1000 classes.*--classes imagenette.*or "
            "set --classes model",
        ),
    ],
)
def test_folders_of_unknown_or_repeated_classes_are_refused(
    tree: Callable[..., Path],
    imagenet: Bundle,
    folders: tuple[str, ...],
    subset: str | None,
    message: str,
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_class_folders(tree(*folders), imagenet, subset)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("3", "10"), "class 10 is out of range; the model has classes 0 to 9"),
        (("n02099601",), "is a wnid of ImageNet, but the model has 10 classes"),
    ],
)
def test_classes_that_a_small_model_lacks_are_refused(
    tree: Callable[..., Path], digits: Bundle, folders: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_class_folders(tree(*folders), digits)


def test_places_without_a_dataset_are_refused(tmp_path: Path, digits: Bundle) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        read_class_folders(tmp_path / "missing", digits)
    with pytest.raises(DatasetError, match="holds no class folders"):
        read_class_folders(tmp_path, digits)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"holds images but no class folders \(a\.png, …\)"):
        read_class_folders(tmp_path, digits)
    with pytest.raises(DatasetError, match="is a file; expected a folder"):
        read_class_folders(tmp_path / "a.png", digits)
    (tmp_path / "3").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        read_class_folders(tmp_path, digits)


def test_names_that_differ_in_their_suffix_alone_are_noted(
    tree: Callable[..., Path], digits: Bundle
) -> None:
    both = ("0.jpg", "0.png", "1.png", "1b.png")
    found = read_class_folders(tree("3", "4", files=both), digits)
    assert len(found.files) == 8
    assert found.notes == (
        "the names of 2 images differ from another one's in the suffix alone, such as 3/0.jpg and "
        "3/0.png, and both are read: is one a copy in another format?",
    )


def test_folders_numbered_from_1_are_noted(tree: Callable[..., Path], digits: Bundle) -> None:
    """Each would be the class after its own; a tenth folder is refused."""
    found = read_dataset(tree(*map(str, range(1, 10))), digits)
    assert found.origin.notes == (
        "it has 9 class folders, but the model has 10 classes (no folder for class 0): is "
        "--classes right?",
    )
