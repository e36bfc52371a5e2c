"""A run deletes and overwrites its own files only, and follows no symlink out of its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt.errors import DatasetError
from diver_trt.manifest import inspect_recovered
from tests.edited_json import set_in
from tests.recovered.commands import in_manifest
from tests.recovered.fake_run import recover, refused

BYSTANDERS = (
    "README.md",
    "labels.pt",
    "data.pt",
    "dataset.npz",
    "n1_my_notes/00001.png",
    "00042/12345.png",
    "00000/mine.txt",
    "train/a.png",
)


def plant(root: Path, *names: str) -> dict[Path, bytes]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"mine")
    return {root / name: b"mine" for name in names}


@pytest.mark.parametrize("until", [6, 4, 1])
@pytest.mark.parametrize("layout", ["index", "huggingface"])
def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(
    tmp_path: Path, out: Path, until: int, layout: str
) -> None:
    recover(tmp_path / "expected", seed=1)
    recover(out, until, layout=layout)
    mine = {
        path: data
        for path, data in plant(out, *BYSTANDERS).items()
        if layout == "index" or path.name != "README.md"
    }
    recover(out, seed=1, overwrite=True)
    assert {path: path.read_bytes() for path in mine} == mine
    assert sorted(set(different(tmp_path / "expected", out))) == sorted(
        path.relative_to(out).as_posix() for path in mine
    )


def test_of_a_finished_run_overwrite_deletes_what_the_manifest_lists(out: Path) -> None:
    recover(out)
    mine = plant(out, "00000/00004.png", "00001/00002.png", "00004/00001.png", "soft_labels.pt")
    recover(out, seed=1, overwrite=True)
    assert {path: path.read_bytes() for path in mine} == mine


def test_of_an_interrupted_run_overwrite_deletes_what_has_no_line_yet(
    tmp_path: Path, out: Path
) -> None:
    recover(tmp_path / "expected", seed=1)
    recover(out, 2)
    plant(
        out,
        "00001/00005.png",
        ".soft_labels.npy.partial",
        "00001/.00004.png.partial",
        "soft_labels.npy",
    )
    mine = plant(out, "00001/00006.png", "a", ".b.partial")  # six images have no number 6
    recover(out, seed=1, overwrite=True)
    assert {path: path.read_bytes() for path in mine} == mine
    assert len(different(tmp_path / "expected", out)) == 3


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("samples", "../mine"),
        ("samples", "mine"),
        ("companions", "mine"),
        ("samples", "manifest.json"),
    ],
)
def test_a_manifest_that_lists_foreign_files_deletes_nothing(
    tmp_path: Path, out: Path, part: str, name: str
) -> None:
    recover(out)
    mine = plant(out, "mine", "../mine")
    in_manifest(out, set_in(part, 0, "file", to=name))
    assert (
        f"manifest.json: lists {name!r}, which no such run writes; delete the folder by hand"
        in refused(out, overwrite=True)
    )
    assert {path: path.read_bytes() for path in mine} == mine
    assert (out / "00000" / "00000.png").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_written_through_a_link_to_a_file(
    tmp_path: Path, out: Path, link: Callable[[Path, Path], None]
) -> None:
    recover(tmp_path / "expected")
    recover(out, 2)
    (out / "00001").mkdir()
    victims: list[Path] = []
    for name in (
        ".journal.jsonl.partial",
        "00000/.00002.png.partial",
        "00001/.00000.png.partial",
        ".manifest.json.partial",
        ".contact_sheet.png.partial",
        ".soft_labels.npy.partial",
        "00001/00001.png",
    ):
        victims.append(tmp_path / f"victim{len(victims)}")
        victims[-1].write_bytes(b"precious")
        link(victims[-1], out / name)
    recover(out)
    assert [victim.read_bytes() for victim in victims] == [b"precious"] * len(victims)
    assert different(tmp_path / "expected", out) == []
    assert not [path for path in out.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("until", [6, 4, 2])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("layout", "name"),
    [("index", "00001"), ("huggingface", "train"), ("huggingface", "train/00001")],
)
def test_a_folder_of_images_that_is_a_symlink_is_refused(
    tmp_path: Path, out: Path, until: int, overwrite: bool, layout: str, name: str
) -> None:
    recover(out, until, layout=layout)
    if (out / name).exists():
        (out / name).rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    (out / name).symlink_to(tmp_path / "elsewhere")
    ours = sorted(out.rglob("*"))
    complaint = refused(out, layout=layout, overwrite=overwrite)
    assert complaint == (
        f"{out / name}: is a symlink, and images are only written inside the output folder; "
        "delete it, or choose another folder"
    )
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before
    assert sorted(out.rglob("*")) == ours
    (out / name).unlink()
    recover(out, layout=layout, overwrite=overwrite)


def test_an_image_that_is_a_symlink_is_made_again(whole: Path, out: Path) -> None:
    recover(out, 4)
    (out / "00000" / "00001.png").unlink()
    (out / "00000" / "00001.png").symlink_to(whole / "00000" / "00001.png")
    assert recover(out) == 1
    assert not (out / "00000" / "00001.png").is_symlink()
    assert different(whole, out) == []


def test_a_recovered_folder_is_not_read_through_symlinks_out_of_it(
    tmp_path: Path, whole: Path
) -> None:
    (whole / "00001").rename(tmp_path / "elsewhere")
    (whole / "00001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"00001/00000\.png: is a link out of the dataset"):
        inspect_recovered(whole)
    (whole / "00001").unlink()
    (tmp_path / "elsewhere").rename(whole / "within")
    (whole / "00001").symlink_to(whole / "within")
    assert inspect_recovered(whole)["images"] == 5


def test_the_output_itself_may_be_a_symlink(whole: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk")
    recover(out, 3)
    recover(out)
    assert different(whole, out) == []
