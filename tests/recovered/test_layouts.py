"""What is written is what trainers read: class order, names, normalisation, labels."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import imagenet_subsets, imagenet_wnids
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.pixels import Pixels
from diver_trt.recovered.layouts import tensors
from tests.cli.command import run
from tests.distilled import methods
from tests.distilled.test_dataset import known_images
from tests.recovered.commands import manifest_of

pytestmark = pytest.mark.slow

QUICK = ("--steps", "2", "--inherit-step", "1", "--start-step", "2", "--window", "2:1")
SUBSETS = [
    "imagewoof",
    "imagesquawk",
    "imagefruit",
    *(f"imagenet-{letter}" for letter in "abcde"),
    "imagenet-10",
    "imagenet-100",
]
PAIRS = [index for index in range(10) for _ in range(2)]


def recover(source: Path, output: Path, bundle: Bundle, **options: object) -> dict[str, Any]:
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = run("recover", source, output, "--bundle", bundle.path, *QUICK, *given)
    assert result.exit_code == 0, result.output
    return manifest_of(output)


def recover_pairs(
    folder: Path,
    bundle: Bundle,
    write: Callable[[Path, Pixels, list[int]], Path] = methods.mtt,
    order: list[int] = PAIRS,
    **options: object,
) -> dict[str, Any]:
    """Recover two images of each of ten classes into `out`, and return the manifest."""
    write(folder, known_images(20, 16), order)
    given = {"classes": "imagewoof", **options}
    return recover(folder / "images_best.pt", folder / "out", bundle, **given)


def image_folder(root: Path) -> list[tuple[Path, int]]:
    """Return classes as torchvision's ImageFolder numbers them: by sorted folder names."""
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return [
        (path, target)
        for target, name in enumerate(folders)
        for path in sorted((root / name).iterdir())
    ]


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_ctrl_c_while_torch_writes_is_no_error_of_the_file(writes: int) -> None:
    class Interrupted(io.BytesIO):
        done = 0

        def write(self, data: Any) -> int:
            self.done += 1
            if self.done > writes:
                raise KeyboardInterrupt
            return super().write(data)

    written: Any = SimpleNamespace(companion=lambda name: nullcontext(Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        tensors._save(written, "images.pt", torch.zeros(1000))


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_class_survives_a_trainer_that_sorts_folders(
    tmp_path: Path, thousand: Bundle, subset: str
) -> None:
    labels = imagenet_subsets()[subset]
    classes = list(range(len(labels)))
    wnids = [imagenet_wnids()[label] for label in labels]
    methods.MINIMAX(tmp_path / "in", known_images(len(classes), 16), classes, wnids)
    manifest = recover(tmp_path / "in", tmp_path / "out", thousand, classes=subset)
    by_file = {sample["file"]: sample for sample in manifest["samples"]}
    read = image_folder(tmp_path / "out")
    assert len(read) == len(labels)
    for path, target in read:
        sample = by_file[path.relative_to(tmp_path / "out").as_posix()]
        assert (target, wnids[target]) == (sample["index"], sample["wnid"])
        assert sample["source"].split("/")[0] == wnids[target]
        assert sample["label"] == labels[target]


def test_wnid_folders_hold_the_class_they_are_named_after(tmp_path: Path, thousand: Bundle) -> None:
    classes = [index for index in range(10) for _ in range(12)]
    methods.mtt(tmp_path, known_images(120, 16), classes)
    manifest = recover(
        tmp_path / "images_best.pt", tmp_path / "out", thousand, classes="imagewoof", layout="wnid"
    )
    for sample in manifest["samples"]:
        assert (
            sample["file"].split("/")[0]
            == imagenet_wnids()[imagenet_subsets()["imagewoof"][sample["index"]]]
        )
    numbers = [path.name for path in sorted((tmp_path / "out" / imagenet_wnids()[193]).iterdir())]
    assert numbers == [f"{number:05d}.png" for number in range(12)]


def test_two_indices_of_one_class_share_its_wnid_folder(tmp_path: Path, thousand: Bundle) -> None:
    """Comp-DD's hard music lists class 420 twice."""
    manifest = recover_pairs(tmp_path, thousand, classes="compdd-music-hard", layout="wnid")
    files = [sample["file"] for sample in manifest["samples"]]
    assert len(set(files)) == 20
    assert len(list((tmp_path / "out" / imagenet_wnids()[420]).iterdir())) == 4


@pytest.mark.parametrize(("size", "side"), [("keep", 16), ("128", 128), ("32", 32)])
def test_tensors_are_normalised_and_in_class_order(
    tmp_path: Path, thousand: Bundle, size: str, side: int
) -> None:
    classes = [i % 10 for i in range(20)]
    manifest = recover_pairs(tmp_path, thousand, methods.datm, classes, layout="pt", size=size)
    images, labels, soft = (
        torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)
        for name in ("images", "labels", "soft_labels")
    )
    assert (images.dtype, images.shape, labels.dtype, soft.dtype) == (
        torch.float32,
        (20, 3, side, side),
        torch.int64,
        torch.float32,
    )
    assert labels.tolist() == PAIRS
    order = [i for index in range(10) for i in (index, index + 10)]
    torch.testing.assert_close(soft, methods.logits(classes, 10)[order])
    statistics = find_normalisation("cifar10" if side == 32 else "imagenet")
    assert manifest["layout"] == {
        "name": "pt",
        "size": side,
        "resampling": None if side == 16 else "bicubic, antialiased",
        "normalisation": statistics.name,
    }
    for tensor, sample in zip(images, manifest["samples"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / sample["file"]))
        assert pixels.shape == (side, side, 3)
        np.testing.assert_allclose(tensor.numpy(), statistics.normalise(pixels), atol=1e-6)
    again = read_dataset(tmp_path / "out" / "images.pt", thousand)
    assert again.classes == "imagewoof"
    np.testing.assert_array_equal(
        again.images.read(5),
        np.asarray(Image.open(tmp_path / "out" / manifest["samples"][5]["file"])),
    )


def test_npz_describes_itself_and_is_read_back(tmp_path: Path, thousand: Bundle) -> None:
    manifest = recover_pairs(tmp_path, thousand, methods.datm, layout="npz", size="48")
    with np.load(tmp_path / "out" / "dataset.npz") as arrays:
        texts = {"collage", "format", "normalisation"}
        assert set(arrays.files) == {"images", "labels", "soft_labels"} | texts
    (tmp_path / "out" / "dataset.npz").rename(tmp_path / "moved.npz")
    again = read_dataset(tmp_path / "moved.npz", thousand, ReadOptions(classes="imagewoof"))
    assert (again.origin.format.name, again.origin.normalisation) == ("mtt", "imagenet")
    for sample, record in zip(again.samples, manifest["samples"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file"]))
        np.testing.assert_array_equal(again.images.read(sample.position), pixels)


def test_idc_lists_are_not_normalised(tmp_path: Path, thousand: Bundle) -> None:
    recover_pairs(tmp_path, thousand, classes="imagenet-10", layout="idc")
    images, labels = torch.load(tmp_path / "out" / "data.pt", weights_only=True)
    pixels = np.asarray(Image.open(tmp_path / "out" / "00003" / "00001.png"))
    np.testing.assert_allclose(images[7].numpy(), pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    assert (labels[7], images.min() >= 0, images.max() <= 1) == (3, True, True)


def test_hugging_faces_datasets_loads_the_folder(
    tmp_path: Path, thousand: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    manifest = recover_pairs(tmp_path, thousand, layout="huggingface")
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["label"].names == [
        imagenet_wnids()[label] for label in imagenet_subsets()["imagewoof"]
    ]
    assert len(loaded) == 20
    rows = {
        (row["label"], row["model_class"], np.asarray(row["image"]).tobytes()) for row in loaded
    }
    for sample in manifest["samples"]:
        pixels = np.asarray(Image.open(tmp_path / "out" / sample["file"]))
        assert (sample["index"], sample["label"], pixels.tobytes()) in rows


def test_soft_labels_lie_beside_plain_folders(tmp_path: Path, thousand: Bundle) -> None:
    manifest = recover_pairs(tmp_path, thousand, methods.datm)
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "soft_labels.npy"), methods.logits(PAIRS, 10).numpy()
    )
    assert [entry["file"] for entry in manifest["companions"]] == ["soft_labels.npy"]


def test_a_recovered_set_of_any_layout_is_recovered_again_with_its_classes(
    tmp_path: Path, thousand: Bundle
) -> None:
    first = recover_pairs(tmp_path, thousand, layout="wnid")
    second = recover(tmp_path / "out", tmp_path / "b", thousand, layout="huggingface")
    third = recover(tmp_path / "b", tmp_path / "c", thousand)
    for manifest in (second, third):
        for kept in ("key", "index", "label", "wnid"):
            assert [sample[kept] for sample in manifest["samples"]] == [
                sample[kept] for sample in first["samples"]
            ]


def test_layouts_that_cannot_be_written_are_refused_before_any_work(
    tmp_path: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods.GVBSM(tmp_path / "in", known_images(2, 16), [0, 1])

    def refused(*options: str) -> str:
        result = run("recover", tmp_path / "in", tmp_path / "out", *options)
        assert result.exit_code in (1, 2)
        assert not (tmp_path / "out").exists()
        return result.output

    assert "--layout wnid: the model's classes are not ImageNet's" in refused("--layout", "wnid")
    assert "layout is 'tar'; expected one of index, wnid" in refused("--layout", "tar")
    assert "--size is '0'" in refused("--size", "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--layout pt needs torch, which is not installed; choose --layout npz" in refused(
        "--layout", "pt"
    )


def test_names_of_a_class_map_are_those_that_trainers_see(tmp_path: Path, digits: Bundle) -> None:
    (tmp_path / "map.txt").write_text("emu 9\n🐈 7\n3 2\n", encoding="utf-8")
    for name in ("emu", "🐈", "3"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(known_images(1, 16)[0]).save(tmp_path / "in" / name / "0.png")
    names = tmp_path / "map.txt"
    manifest = recover(
        tmp_path / "in", tmp_path / "out", digits, classes=names, layout="huggingface"
    )
    classes = [(entry["name"], entry.get("own_name")) for entry in manifest["classes"]]
    assert classes == [("9", "emu"), ("7", "🐈"), ("2", None)]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "'0': \"emu\"\n          '1': \"🐈\"\n          '2': \"2\"\n" in card
    page = (tmp_path / "out" / "index.html").read_text()
    assert '"name":"emu","drawn":"9"' in page
    assert '"name":"2","drawn":null' in page
    again = recover(tmp_path / "out", tmp_path / "again", digits)
    assert again["classes"] == manifest["classes"]


def test_soft_labels_that_a_layout_does_not_hold_are_dropped_with_a_note(
    tmp_path: Path, thousand: Bundle
) -> None:
    methods.datm(tmp_path, known_images(20, 16), PAIRS)
    source = tmp_path / "images_best.pt"
    dropped = "layout idc does not hold soft labels, so those of the input are dropped"
    for layout in ("idc", "pt"):
        options = ("--classes", "imagewoof", "--layout", layout)
        arguments = ["recover", source, tmp_path / layout, "--bundle", thousand.path, *QUICK]
        result = run(*arguments, *options)
        assert result.exit_code == 0, result.output
        assert (dropped in result.stderr) == (layout == "idc")
