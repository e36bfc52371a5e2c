"""What is written is what trainers read: class order, names, normalisation, labels."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.crash import different
from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.distilled.class_map import imagenet_subsets, imagenet_wnids
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.normalisation import find_normalisation
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import OutputError
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written
from tests.conftest import save_random_pipeline
from tests.distilled import methods
from tests.distilled.test_dataset import known_images

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


@pytest.fixture(scope="session")
def thousand(tmp_path_factory: pytest.TempPathFactory, export_to: Callable[..., Bundle]) -> Bundle:
    """A tiny model of ImageNet's thousand classes with random weights, for images of 16 pixels."""
    return export_to(
        save_random_pipeline(
            tmp_path_factory.mktemp("models") / "thousand", num_embeds_ada_norm=1000, num_layers=1
        )
    )


def recover(source: Path, output: Path, bundle: Bundle, *options: object) -> dict[str, Any]:
    arguments = ["recover", source, output, "--bundle", bundle.path, *QUICK, *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def image_folder(root: Path) -> list[tuple[Path, int]]:
    """torchvision's ImageFolder: a class is the place of its folder among the sorted folder names, files are sorted as text."""
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return [
        (path, target)
        for target, name in enumerate(folders)
        for path in sorted((root / name).iterdir())
    ]


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_class_survives_a_trainer_that_sorts_folders(
    tmp_path: Path, thousand: Bundle, subset: str
) -> None:
    labels = imagenet_subsets()[subset]
    classes = list(range(len(labels)))
    wnids = [imagenet_wnids()[label] for label in labels]
    methods.MINIMAX(tmp_path / "in", known_images(len(classes), 16), classes, wnids)
    manifest = recover(tmp_path / "in", tmp_path / "out", thousand, "--classes", subset)
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
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "imagewoof",
        "--layout",
        "wnid",
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
    methods.mtt(tmp_path, known_images(20, 16), [index for index in range(10) for _ in range(2)])
    manifest = recover(
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "compdd-music-hard",
        "--layout",
        "wnid",
    )
    files = [sample["file"] for sample in manifest["samples"]]
    assert len(set(files)) == 20
    assert len(list((tmp_path / "out" / imagenet_wnids()[420]).iterdir())) == 4


@pytest.mark.parametrize(("size", "side"), [("keep", 16), ("128", 128), ("32", 32)])
def test_tensors_are_normalised_and_in_class_order(
    tmp_path: Path, thousand: Bundle, size: str, side: int
) -> None:
    methods.datm(tmp_path, known_images(20, 16), [i % 10 for i in range(20)])
    manifest = recover(
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "imagewoof",
        "--layout",
        "pt",
        "--size",
        size,
    )
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
    assert labels.tolist() == [index for index in range(10) for _ in range(2)]
    order = [i for index in range(10) for i in (index, index + 10)]
    torch.testing.assert_close(soft, methods.logits([i % 10 for i in range(20)], 10)[order])
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
    again = read_dataset(tmp_path / "out" / "images.pt", thousand, ReadOptions(classes="imagewoof"))
    np.testing.assert_array_equal(
        again.images.read(5),
        np.asarray(Image.open(tmp_path / "out" / manifest["samples"][5]["file"])),
    )


def test_npz_says_what_it_is_and_is_read_back(tmp_path: Path, thousand: Bundle) -> None:
    methods.datm(tmp_path, known_images(20, 16), [index for index in range(10) for _ in range(2)])
    manifest = recover(
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "imagewoof",
        "--layout",
        "npz",
        "--size",
        "48",
    )
    with np.load(tmp_path / "out" / "dataset.npz") as arrays:
        assert sorted(arrays.files) == [
            "collage",
            "format",
            "images",
            "labels",
            "normalisation",
            "soft_labels",
        ]
    again = read_dataset(
        tmp_path / "out" / "dataset.npz", thousand, ReadOptions(classes="imagewoof")
    )
    assert (again.origin.format.name, again.origin.normalisation) == ("mtt", "imagenet")
    for sample, record in zip(again.samples, manifest["samples"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file"]))
        np.testing.assert_array_equal(again.images.read(sample.position), pixels)


def test_idc_lists_are_not_normalised(tmp_path: Path, thousand: Bundle) -> None:
    methods.mtt(tmp_path, known_images(20, 16), [index for index in range(10) for _ in range(2)])
    recover(
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "imagenet-10",
        "--layout",
        "idc",
    )
    images, labels = torch.load(tmp_path / "out" / "data.pt", weights_only=True)
    pixels = np.asarray(Image.open(tmp_path / "out" / "00003" / "00001.png"))
    np.testing.assert_allclose(images[7].numpy(), pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    assert (labels[7], images.min() >= 0, images.max() <= 1) == (3, True, True)


def test_hugging_faces_datasets_loads_the_folder(
    tmp_path: Path, thousand: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    methods.mtt(tmp_path, known_images(20, 16), [index for index in range(10) for _ in range(2)])
    manifest = recover(
        tmp_path / "images_best.pt",
        tmp_path / "out",
        thousand,
        "--classes",
        "imagewoof",
        "--layout",
        "huggingface",
    )
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
    classes = [index for index in range(10) for _ in range(2)]
    methods.datm(tmp_path, known_images(20, 16), classes)
    manifest = recover(
        tmp_path / "images_best.pt", tmp_path / "out", thousand, "--classes", "imagewoof"
    )
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / "soft_labels.npy"), methods.logits(classes, 10).numpy()
    )
    assert [entry["file"] for entry in manifest["companions"]] == ["soft_labels.npy"]


def test_a_recovered_set_of_any_layout_is_recovered_again_with_its_classes(
    tmp_path: Path, thousand: Bundle
) -> None:
    methods.mtt(tmp_path, known_images(20, 16), [index for index in range(10) for _ in range(2)])
    first = recover(
        tmp_path / "images_best.pt",
        tmp_path / "a",
        thousand,
        "--classes",
        "imagewoof",
        "--layout",
        "wnid",
    )
    second = recover(tmp_path / "a", tmp_path / "b", thousand, "--layout", "huggingface")
    third = recover(tmp_path / "b", tmp_path / "c", thousand)
    for manifest in (second, third):
        for kept in ("key", "index", "label", "wnid"):
            assert [sample[kept] for sample in manifest["samples"]] == [
                sample[kept] for sample in first["samples"]
            ]


def test_layouts_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods.GVBSM(tmp_path / "in", known_images(2, 16), [0, 1])

    def refused(*options: str) -> str:
        result = CliRunner().invoke(
            app, ["recover", str(tmp_path / "in"), str(tmp_path / "out"), *options]
        )
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


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many pages of 4 kB that grows on demand, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def of(pages: int) -> Path:
        option = "remount," if folder.is_mount() else ""
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"{option}size={pages * 4096}",
            "none",
            str(folder),
        ]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system")
        return folder

    yield of
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_a_disk_is_full_it_is_said_in_one_line_and_gone_on_from(
    tmp_path: Path, thousand: Bundle, disk: Callable[[int], Path], layout: str
) -> None:
    methods.datm(tmp_path, known_images(6, 16), [0, 0, 1, 1, 2, 2])
    options = ("--classes", "imagewoof", "--layout", layout, "--size", "64")
    recover(tmp_path / "images_best.pt", tmp_path / "expected", thousand, *options)
    arguments = [
        "recover",
        tmp_path / "images_best.pt",
        disk(8) / "out",
        "--bundle",
        thousand.path,
        *QUICK,
        *options,
    ]
    messages = []
    step = 6 if layout in ("index", "wnid", "huggingface") else 16  # tensors take more of a disk
    for pages in range(8, 400, step):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exit_code == 0:
            break
        assert (result.exit_code, result.exception.__class__) == (1, SystemExit), result.output
        messages.append(result.stderr.splitlines()[-1])
        assert messages[-1].endswith("cannot be written (No space left on device)")
        assert not list(disk(pages).rglob("*.partial"))
        del result  # its traceback holds mapped files, which take up the disk until this process, unlike the command, lets go of them
        gc.collect()
        disk(pages + step)
    assert different(tmp_path / "expected", disk(400) / "out") == []
    said = " ".join(messages)
    for name in {
        "pt": ["images.pt", ".images.stacked"],
        "npz": ["dataset.npz"],
        "idc": ["data.pt"],
    }.get(layout, ["contact_sheet.png"]):
        assert f"{name}: cannot" in said


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Ten images of 32 pixels."""
    files = [f"{number:05d}.png" for number in range(10)]
    for name, image in zip(files, known_images(10, 32), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    return Written(
        tmp_path, files, list(range(10)), [], lambda number: np.full(20_000, number, np.float32), 32
    )


@pytest.mark.parametrize(
    ("layout", "limit", "name"),
    [
        *((layout, 100_000, ".images.stacked") for layout in ("npz", "pt", "idc")),
        *(
            ("npz", 125_000, "dataset.npz"),
            ("pt", 123_100, "images.pt"),
            ("idc", 123_100, "data.pt"),
            ("pt", 200_000, "soft_labels.pt"),
        ),
        ("index", 700_000, "soft_labels.npy"),
    ],
)
def test_a_file_that_may_not_grow_is_named_and_not_left(
    written: Written, layout: str, limit: int, name: str
) -> None:
    normalisation = LAYOUTS[layout].normalisation_for(None, 32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError) as error:
            LAYOUTS[layout].write(written, normalisation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == f"{written.root / name}: cannot be written (File too large)"
    assert not list(written.root.glob(".*"))


@pytest.mark.parametrize("layout", ["npz", "pt", "idc"])
def test_tensors_of_no_images_are_empty(written: Written, layout: str) -> None:
    none = replace(written, files=[], indices=[])
    for name in LAYOUTS[layout].write(none, LAYOUTS[layout].normalisation_for(None, 32)):
        assert (written.root / name).stat().st_size > 0


def test_what_torch_says_of_itself_becomes_one_line(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(value: object, file: object) -> None:
        raise RuntimeError("[enforce fail]\nof its own")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(
        OutputError, match=r"images\.pt: cannot be written \(\[enforce fail\]\\nof its own\)$"
    ):
        LAYOUTS["pt"].write(written, LAYOUTS["pt"].normalisation_for(None, 32))
