"""Class order survives: subsets, files, and the model's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diver_trt.distilled.class_map import (
    Classes,
    imagenet_names,
    imagenet_subsets,
    imagenet_wnids,
    is_imagenet,
    load_class_map,
    wnid_of,
)
from diver_trt.errors import DatasetError, UsageError


def test_wnids_are_sorted_and_thousand() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[207], wnids[999]) == ("n01440764", "n02099601", "n15075141")


def test_every_subset_names_classes_of_imagenet() -> None:
    for name, labels in imagenet_subsets().items():
        assert len(labels) in (10, 100), name
        assert all(0 <= label < 1000 for label in labels)


def test_imagewoof_keeps_the_methods_order_which_is_not_sorted() -> None:
    woof = load_class_map("imagewoof", Classes(1000))
    assert woof.labels == (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)
    assert woof.names[0] == "n02096294"
    assert list(woof.labels) != sorted(woof.labels)


def test_the_models_own_classes() -> None:
    own = load_class_map("model", Classes(3, ("cat", "dog", "owl")))
    assert own.labels == (0, 1, 2)
    assert own.names == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("3\n1\n", (3, 1), (None, None)),
        ("sea lion 3  # a comment\n\nowl 1\n", (3, 1), ("sea lion", "owl")),
        ("sea lion,3\nowl, 1\n", (3, 1), ("sea lion", "owl")),
        ("sea lion, a seal: 3\nowl\t1\n", (3, 1), ("sea lion, a seal", "owl")),
        # Numbers are the indices, whatever order a file of YAML or CSV has them in.
        ("1: 5\n0: 7\n", (7, 5), ("0", "1")),
        ("'10': 5\n'2': 7\n", (7, 5), ("2", "10")),
        ("[3, 1]", (3, 1), (None, None)),
        ('{"owl": 1, "sea lion": 3}', (1, 3), ("owl", "sea lion")),
        ('{"9": 1, "owl": 3}', (1, 3), ("9", "owl")),
    ],
)
def test_a_file_gives_labels_in_its_own_order(
    tmp_path: Path, text: str, labels: tuple[int, ...], names: tuple[str | None, ...]
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    found = load_class_map(str(path), Classes(10))
    assert (found.labels, found.names) == (labels, names)


@pytest.mark.parametrize("names", ["{}", "0{}", "{:05d}", "new{:03d}"])
def test_names_from_0_on_are_the_indices_themselves(tmp_path: Path, names: str) -> None:
    """`json.dump(..., sort_keys=True)` writes "10" before "2"."""
    entries = {names.format(number): number + 50 for number in range(12)}
    (tmp_path / "map.json").write_text(json.dumps(entries, sort_keys=True))
    found = load_class_map(str(tmp_path / "map.json"), Classes(100))
    assert found.labels == tuple(range(50, 62))
    assert found.names == tuple(names.format(number) for number in range(12))


@pytest.mark.parametrize(
    ("entries", "order"),
    [
        ({str(number): number - 1 for number in range(1, 12)}, list(range(1, 12))),
        ({"5": 7, "1": 2, "0": 9, "2": 4}, [0, 1, 2, 5]),
    ],
)
def test_other_numbers_are_taken_in_their_order(
    tmp_path: Path, entries: dict[str, int], order: list[int]
) -> None:
    (tmp_path / "map.json").write_text(json.dumps(entries, sort_keys=len(entries) > 9))
    found = load_class_map(str(tmp_path / "map.json"), Classes(11))
    assert found.names == tuple(map(str, order))
    assert found.labels == tuple(entries[str(number)] for number in order)


@pytest.mark.parametrize("name", ["model", "imagenette"])
def test_a_file_is_not_taken_for_a_word_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The name in a manifest is the one that `--classes` takes again."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("2 3\n1 5\n7 4\n")
    found = load_class_map(f"./{name}", Classes(10))
    assert (found.name, found.labels, found.numbers) == (f"./{name}", (5, 3, 4), {1: 0, 2: 1, 7: 2})
    assert load_class_map(found.name, Classes(10)) == found


def test_a_file_may_name_wnids(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("n02099601\ngolden n01440764\n")
    assert load_class_map(str(path), Classes(1000)).labels == (207, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10\n", "found 10; expected a class of the model, 0 to 9"),
        ("-1\n", "found '-1'"),
        ("owl\n", "found 'owl'"),
        ("n02099601\n", "found 'n02099601'"),
        ("[true]", "found True"),
        ("[1.5]", "found 1.5"),
        ("[1", "not valid JSON"),
        ("# nothing\n", "does not name a class"),
        ("a 1\na 2\n", "a name occurs twice"),
        ('{"a": 1, "a": 2}', "a name occurs twice"),
        ('{"1": 1, "01": 2}', "a number occurs twice among its names"),
        ('{"a": {"b": 1}}', "found .* expected a class of the model"),
        ("x" * 10_000, r"classes\.txt: found 'x{199}…; expected a class of the model"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_class_map(str(path), Classes(10))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("lines", "labels", "names"),
    [
        (("3", "1"), (3, 1), (None, None)),
        (("h\u00e9ron 3", "owl\t1"), (3, 1), ("h\u00e9ron", "owl")),
        (("[3,", "1]"), (3, 1), (None, None)),
        (('{"h\u00e9ron": 3,', '"owl": 1}'), (3, 1), ("h\u00e9ron", "owl")),
    ],
)
def test_byte_order_marks_and_line_ends_mean_nothing(
    tmp_path: Path,
    encoding: str,
    newline: str,
    lines: tuple[str, ...],
    labels: tuple[int, ...],
    names: tuple[str | None, ...],
) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    text = mark + newline.join((*lines, ""))
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    found = load_class_map(str(tmp_path / "classes.txt"), Classes(10))
    assert (found.labels, found.names) == (labels, names)


def test_a_path_that_a_manifest_cannot_hold_is_refused(tmp_path: Path) -> None:
    for name in ("c\nx", "c\udcff"):
        (tmp_path / name).write_text("1\n")
        with pytest.raises(DatasetError, match=r"the path cannot be printed") as caught:
            load_class_map(str(tmp_path / name), Classes(10))
        assert str(caught.value).isprintable()


def test_a_file_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "map").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DatasetError, match="is longer than 16,777,216 bytes"):
        load_class_map(str(tmp_path / "map"), Classes(10))


def test_a_file_that_is_not_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read as text"):
        load_class_map(str(tmp_path / "classes.txt"), Classes(10))


def test_unknown_maps_and_wrong_models_are_refused() -> None:
    with pytest.raises(
        UsageError,
        match="--classes imagefruits: neither a file nor a known subset; expected a file, model, "
        "imagenette",
    ):
        load_class_map("imagefruits", Classes(1000))
    with pytest.raises(
        DatasetError, match="imagewoof is a subset of ImageNet-1K, but the model has 10 classes"
    ):
        load_class_map("imagewoof", Classes(10))


def test_only_models_of_imagenet_have_wnids() -> None:
    assert wnid_of(207, Classes(1000)) == "n02099601"
    assert wnid_of(7, Classes(10)) is None


def test_a_thousand_classes_are_imagenets_only_by_its_names() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    first_synonyms = [name.split(",")[0].upper().replace(" ", "_") for name in names]
    numbers = [f"LABEL_{i}" for i in range(1000)]
    for own in (None, names, first_synonyms, imagenet_wnids(), numbers, [names[0], *numbers[1:]]):
        assert is_imagenet(Classes(1000, own))
        assert wnid_of(207, Classes(1000, own)) == "n02099601"
    others = [f"{i} of a thousand" for i in range(1000)]
    for own in (sorted(names), others, [*names[:400], *others[400:]]):
        assert not is_imagenet(Classes(1000, own))
        assert wnid_of(207, Classes(1000, own)) is None
    with pytest.raises(DatasetError, match="the model has other classes"):
        load_class_map("imagewoof", Classes(1000, others))
