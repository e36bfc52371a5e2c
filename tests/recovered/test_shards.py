"""Shards that are recovered apart and merged equal a recovery in one piece."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import fails, run
from tests.conftest import DISTILLED, files_of, ten_digits
from tests.recovered.commands import (
    different_data,
    in_manifest,
    interrupted_at,
    merge,
    recover,
    recovered,
    recovered_shards,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("of", "layout"), [(3, "index"), (4, "npz"), (2, "webdataset"), (10, "pt")]
)
def test_merged_shards_equal_an_unsharded_recovery(
    few: Path, tmp_path: Path, of: int, layout: str
) -> None:
    expected = recovered(few, tmp_path / "expected", "--layout", layout)
    shards = recovered_shards(few, tmp_path, of, "--layout", layout)
    assert sum(len(list(shard.rglob("0*.png"))) for shard in shards) == 10
    result = run("merge", *reversed(shards), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"merged {of} shards with 10 images" in result.stdout
    assert different_data(expected, tmp_path / "out") == []
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 100


def test_shards_that_do_not_belong_together_are_named(few: Path, tmp_path: Path) -> None:
    first, second, third = recovered_shards(few, tmp_path, 3)
    half = recovered(few, tmp_path / "half", "--shard", "1/2")
    other = recovered(few, tmp_path / "other", "--shard", "3/3", "--seed", 1)
    complete = recovered(few, tmp_path / "complete")

    def merge(*folders: Path, output: Path = tmp_path / "out") -> str:
        return fails(run("merge", *folders, output))

    assert "shard 2/3: missing; expected all 3" in merge(first, third)
    assert "are both shard 1/3; give each once" in merge(first, first, third)
    assert "are cut into 3 and 2 shards" in merge(first, half)
    assert "belong to different recoveries, which differ in their seed" in merge(
        first, second, other
    )
    assert "is a whole recovered dataset, not a shard" in merge(complete)
    (second / "00003" / "00001.png").write_bytes(b"other")
    whole = (first, second, third)
    assert "part2/00003/00001.png: is not the file that was written" in merge(*whole)
    assert "part1/new: overlaps the shard " in merge(*whole, output=first / "new")
    # A command without a new folder at its end.
    assert "part3: is a shard, and the last folder is the one to write" in merge(
        first, second, output=third
    )
    assert (
        "shard is '4/3'; expected NUMBER/OF"
        in recover(few, tmp_path / "x", "--shard", "4/3").output
    )


def test_missing_and_double_samples_are_named(few: Path, tmp_path: Path) -> None:
    first, second, third = recovered_shards(few, tmp_path, 3)

    def refused(spoil: Callable[[Path], object]) -> str:
        spoilt = shutil.copytree(second, tmp_path / "spoilt")
        spoil(spoilt)
        line = fails(merge(first, spoilt, third, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        shutil.rmtree(spoilt)
        return line.replace(f"{tmp_path}/", "")

    assert refused(
        lambda folder: in_manifest(folder, lambda manifest: manifest["samples"].pop(1))
    ).endswith(
        "error: spoilt: has 2 samples, expected 3, 00003/00001 is missing; recover this shard "
        "again with --overwrite"
    )
    assert refused(
        lambda folder: in_manifest(
            folder,
            lambda manifest: manifest["skipped"].append({**manifest["samples"][0], "problem": ""}),
        )
    ).endswith("error: sample 00003/00000: more than once, in spoilt; recover the shards again")
    assert refused(lambda folder: (folder / "00003" / "00001.png").unlink()).endswith(
        "error: spoilt/00003/00001.png: missing, but the manifest lists it; run the "
        "command that wrote the folder again, which restores it"
    )
    assert refused(lambda folder: shutil.copytree(first, folder, dirs_exist_ok=True)).endswith(
        "are both shard 1/3; give each once"
    )
    in_manifest(third, lambda manifest: manifest["samples"].pop())
    assert "part3: has 3 samples, expected 4, the last one of a class is missing" in fails(
        merge(first, second, third, tmp_path / "out")
    )


def test_a_class_whose_only_sample_is_missing_is_named(tmp_path: Path) -> None:
    first, second = recovered_shards(DISTILLED.parent / "ipc1", tmp_path, 2)
    in_manifest(
        first,
        lambda manifest: manifest.update(samples=manifest["samples"][:2] + manifest["samples"][4:]),
    )
    line = fails(merge(first, second, tmp_path / "out"))
    assert "part1: has 3 samples, expected 5, 00002/00000, 00003/00000 is missing" in line


def test_an_unfinished_shard_is_refused_until_it_is_finished(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    first = recovered(few, tmp_path / "part1", "--shard", "1/2")
    second = tmp_path / "part2"
    interrupted_at(few, second, fail_after, 2, "--shard", "2/2")
    line = fails(merge(first, second, tmp_path / "out"))
    assert line.endswith(
        "part2: is an unfinished shard; run the same command again to complete it first"
    )
    recovered(few, second, "--shard", "2/2")
    assert merge(first, second, tmp_path / "out").exit_code == 0
    assert "few: is not a shard (it has no manifest.json)" in fails(
        merge(first, few, tmp_path / "out")
    )


def test_another_merge_in_the_same_folder_is_refused_or_overwritten(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seeds = {
        seed: recovered_shards(few, tmp_path / str(seed), 2, "--seed", seed) for seed in (0, 1)
    }
    assert merge(*seeds[0], out).exit_code == 0
    assert merge(*seeds[0], out).exit_code == 0
    line = fails(merge(*seeds[1], out))
    assert "out: holds a run with seed 0, and this one has seed 1; " in line
    assert "--overwrite to begin again" in line
    line = fails(recover(few, out, "--shard", "1/2"))
    assert "out: holds a run with shard none, and this one has shard 1/2; " in line
    image = seeds[1][1] / "00008" / "00000.png"
    held = image.read_bytes()
    image.write_bytes(b"")
    before = files_of(out)
    assert "00008/00000.png: is not the file that was written" in fails(
        merge(*seeds[1], out, options=("--overwrite",))
    )
    assert files_of(out) == before
    image.write_bytes(held)
    assert merge(*seeds[1], out, options=("--overwrite",)).exit_code == 0
    assert different_data(recovered(few, tmp_path / "expected", "--seed", 1), out) == []


@pytest.mark.parametrize("layout", ["index", "npz"])
def test_merging_reports_the_images_that_shards_left_out(
    few: Path, tmp_path: Path, layout: str
) -> None:
    for name in ("3/1.png", "8/2.png"):
        (few / name).write_bytes(b"not a picture")
    options = ("--on-error", "skip", "--layout", layout)
    assert recover(few, tmp_path / "expected", *options).exit_code == 1
    shards = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    codes = [
        recover(few, shard, *options, "--shard", f"{i}/3").exit_code
        for i, shard in enumerate(shards, 1)
    ]
    assert codes == [0, 1, 1]
    for _ in range(2):  # the second one has nothing left to do
        result = merge(*shards, tmp_path / "out")
        assert result.exit_code == 1
        assert "merged 3 shards with 8 images" in result.stdout
        assert [line for line in result.stderr.splitlines() if "left out" in line] == [
            f"diver-trt: left out: {name}: not an image, or a damaged one"
            for name in ("3/1.png", "8/2.png")
        ]
    assert different_data(tmp_path / "expected", tmp_path / "out") == []
    result = merge(*shards, tmp_path / "again", options=("--json",))
    report = json.loads(result.stdout)
    assert (result.exit_code, report["images"]) == (1, 8)
    assert [entry["key"] for entry in report["skipped"]] == ["00003/00001", "00008/00002"]


@pytest.mark.parametrize("layout", ["index", "npz"])
def test_empty_shards_and_soft_labels_go_together(tmp_path: Path, layout: str) -> None:
    values = ten_digits()[:2]
    arrays = {
        "images": values,
        "labels": 9 * np.eye(10, dtype=np.float32)[:2] - 1,
        "format": np.array("mtt"),
    }
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    expected = recovered(tmp_path / "set.npz", tmp_path / "expected", "--layout", layout)
    shards = recovered_shards(tmp_path / "set.npz", tmp_path, 3, "--layout", layout)
    assert run("merge", *shards, tmp_path / "out").exit_code == 0
    assert different_data(expected, tmp_path / "out") == []
    (shards[2] / "soft_labels.npy").write_bytes(b"junk")
    result = run("merge", *shards, tmp_path / "again")
    assert "soft_labels.npy: is not the file that was written" in fails(result)
