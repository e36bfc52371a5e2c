"""`--copies`: every distilled image recovered several times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt import recover as recover_folder
from diver_trt.errors import UsageError
from tests.cli.command import fails
from tests.conftest import digit_folder
from tests.recovered.commands import (
    during,
    interrupted_at,
    merge,
    recover,
    recovered,
    recovered_shards,
)


def pictures(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("0*/*.png"))
    }


def test_the_first_copies_are_the_images_of_a_run_without_copies(few: Path, tmp_path: Path) -> None:
    once = pictures(recovered(few, tmp_path / "once"))
    twice = pictures(recovered(few, tmp_path / "twice", "--copies", 2))
    thrice = pictures(recovered(few, tmp_path / "thrice", "--copies", 3))
    assert (len(once), len(twice), len(thrice)) == (10, 20, 30)
    assert once.items() < twice.items() < thrice.items()
    # Other noise gives another picture.
    assert len(set(thrice.values())) == 30


def test_the_manifest_says_which_image_each_copy_is_of(few: Path, tmp_path: Path) -> None:
    manifest = json.loads(
        (recovered(few, tmp_path / "out", "--copies", 2) / "manifest.json").read_text()
    )
    assert (manifest["copies"], manifest["source"]["images"]) == (2, 20)
    sources = {entry["key"]: entry["source"] for entry in manifest["samples"]}
    # Class 3 has four images: 00004 is the second copy of 00000.
    assert sources["00003/00004"] == sources["00003/00000"] == "3/0.png"
    assert sources["00003/00007"] == sources["00003/00003"] == "3/3.png"


def test_the_check_counts_distilled_images_and_not_copies(few: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    recover_folder(
        few,
        tmp_path / "out",
        copies=3,
        on_note=lambda _: None,
        on_progress=lambda *call: calls.append(call),
        stopping=lambda: True,
    )
    checks = [(done, total) for phase, done, total in calls if phase == "checking"]
    assert checks == [(done, 10) for done in range(11)]


def test_an_interrupted_run_and_shards_give_the_same_copies(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    expected = pictures(recovered(few, tmp_path / "expected", "--copies", 2))
    interrupted_at(few, tmp_path / "out", fail_after, 7, "--copies", 2)
    refusal = fails(recover(few, tmp_path / "out", "--copies", 3))
    assert "holds a run with copies 2, and this one has copies 3" in refusal
    assert pictures(recovered(few, tmp_path / "out", "--copies", 2)) == expected
    shards = recovered_shards(few, tmp_path, 2, "--copies", 2)
    assert merge(*shards, tmp_path / "merged").exit_code == 0
    assert pictures(tmp_path / "merged") == expected


def test_copies_of_a_vanished_image_are_not_the_whole_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = digit_folder(tmp_path / "few", {0: 1, 1: 1})
    during(monkeypatch, (few / "0" / "0.png").unlink)
    result = recover(few, tmp_path / "out", "--copies", 20, "--batch", 2, "--on-error", "skip")
    assert (result.exit_code, "left out: 0/0.png" in result.stderr) == (1, True)
    assert len(pictures(tmp_path / "out")) >= 20


@pytest.mark.parametrize("copies", [0, -1, 1001, True, 2.0, "2"])
def test_another_number_of_copies_is_refused(few: Path, tmp_path: Path, copies: object) -> None:
    with pytest.raises(UsageError, match=r"copies is .*; expected a whole number from 1 to 1,000"):
        recover_folder(few, tmp_path / "out", copies=copies)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_number_of_numpy_is_taken_as_every_other_setting_takes_it(
    few: Path, tmp_path: Path
) -> None:
    copies: Any = np.int64(2)
    recover_folder(few, tmp_path / "out", copies=copies, on_note=lambda _: None)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["copies"] == 2
