"""Images that cannot be read end a run, or are left out and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.crash import different
from tests.cli.command import fails
from tests.conftest import DISTILLED, ten_digits
from tests.recovered.commands import during, manifest_of, recover, recovered


def test_a_bad_image_ends_the_run_before_any_work_or_is_left_out(few: Path, tmp_path: Path) -> None:
    (few / "3" / "1.png").write_bytes(b"not a picture")
    assert "3/1.png: not an image, or a damaged one" in fails(recover(few, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    result = recover(few, tmp_path / "out", "--on-error", "skip", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["images"], [entry["source"] for entry in report["skipped"]]) == (9, ["3/1.png"])
    manifest = manifest_of(tmp_path / "out")
    assert [entry["key"] for entry in manifest["skipped"]] == ["00003/00001"]
    assert "00003/00002" in [sample["key"] for sample in manifest["samples"]]
    assert not (tmp_path / "out" / "00003" / "00001.png").exists()
    again = recover(few, tmp_path / "out", "--on-error", "skip")
    assert again.exit_code == 1
    assert "left out: 3/1.png: " in again.stderr


@pytest.mark.parametrize("name", ["2/0.png", "8/2.png"])
def test_the_bad_image_may_be_the_first_or_the_last(few: Path, tmp_path: Path, name: str) -> None:
    (few / name).write_bytes(b"not a picture")
    result = recover(few, tmp_path / "out", "--on-error", "skip")
    assert (result.exit_code, f"left out: {name}" in result.stderr) == (1, True)


def save_set(path: Path, images: NDArray[Any], logits: NDArray[np.float32]) -> None:
    texts = {"format": np.array("mtt"), "normalisation": np.array("none")}
    np.savez(path, images=images, labels=logits, **texts)  # type: ignore[arg-type]


def test_a_bad_row_of_a_tensor_is_left_out(tmp_path: Path) -> None:
    values = (ten_digits().transpose(0, 3, 1, 2) / 255).astype(np.float32)
    values[0, 0, 5, 5] = np.nan
    logits = 9 * np.eye(10, dtype=np.float32) - 1
    save_set(tmp_path / "set.npz", values, logits)
    result = recover(tmp_path / "set.npz", tmp_path / "out", "--on-error", "skip")
    (skipped,) = manifest_of(tmp_path / "out")["skipped"]
    assert (skipped["source"], skipped["problem"].split(" ")[:2]) == ("set.npz[0]", ["image", "0"])
    assert result.exit_code == 1
    assert f"left out: set.npz[0]: {skipped['problem']}" in result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "soft_labels.npy"), logits[1:])


def test_an_input_that_vanishes_as_a_whole_ends_the_run(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unmounted drive is back, the same command resumes with every image."""
    with monkeypatch.context() as patched:
        during(patched, lambda: few.rename(tmp_path / "away"))
        assert "cannot be read any more" in fails(
            recover(few, tmp_path / "out", "--batch", "2", "--on-error", "skip")
        )
    (tmp_path / "away").rename(few)
    result = recover(few, tmp_path / "out", "--on-error", "skip")
    assert (result.exit_code, "of 10 images are already there" in result.stderr) == (0, True)
    assert different(recovered(few, tmp_path / "expected"), tmp_path / "out") == []


def test_many_bad_images_at_the_start_are_left_out_too(tmp_path: Path) -> None:
    source = shutil.copytree(DISTILLED, tmp_path / "set")
    for image in [*(source / "0").iterdir(), *(source / "1").iterdir()]:
        image.write_bytes(b"no picture")
    result = recover(source, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 1
    assert len(manifest_of(tmp_path / "out")["skipped"]) == 20


def test_other_soft_labels_are_another_input(tmp_path: Path) -> None:
    for scale in (9, 20):
        logits = scale * np.eye(10, dtype=np.float32) - 1
        save_set(tmp_path / "set.npz", ten_digits(), logits)
        result = recover(tmp_path / "set.npz", tmp_path / "out")
    assert (
        "another input (10 with another soft label: set.npz[0], set.npz[1], set.npz[2] and 7 more)"
        in fails(result)
    )
