"""`--overwrite` deletes only what an earlier run wrote, and only when the model can be opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import different
from diver_trt.lock import locked
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.tensors import TensorSpec
from tests.cli.command import fails
from tests.conftest import DISTILLED
from tests.recovered.commands import interrupted_at, recover, recovered


def test_overwrite_begins_again_and_deletes_only_what_a_run_wrote(
    few: Path, tmp_path: Path
) -> None:
    out = recovered(few, tmp_path / "out")
    (out / "00003" / "mine.txt").touch()
    expected = recovered(few, tmp_path / "expected", "--seed", 1)
    recovered(few, out, "--seed", 1, "--overwrite")
    assert different(expected, out) == ["00003/mine.txt"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").touch()
    assert "already holds something" in fails(recover(few, tmp_path / "elsewhere", "--overwrite"))
    assert (tmp_path / "elsewhere" / "mine.txt").exists()


def test_overwrite_takes_no_folder_that_is_not_ours(few: Path, tmp_path: Path) -> None:
    for number, text in enumerate(
        ['{"file": "thesis.tex"}', '{"tool": {"name": "other"}}', '{"tool": 3}', "[]", '"text"']
    ):
        folder = tmp_path / f"foreign{number}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text(text + "\n")
        (folder / "thesis.tex").touch()
        (folder / "contact_sheet.png").touch()
        fails(recover(few, folder, "--overwrite"))
        assert {path.name for path in folder.iterdir()} == {
            "journal.jsonl",
            "thesis.tex",
            "contact_sheet.png",
        }


def test_a_model_that_was_opened_for_a_folder_that_is_refused_is_closed(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, closed, close = recovered(few, tmp_path / "out"), list[Recoverer](), Recoverer.close

    def closing(self: Recoverer) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(Recoverer, "close", closing)
    with locked(out):
        assert "another diver-trt is writing there" in fails(recover(few, out, "--overwrite"))
    assert len(closed) == 1


def test_overwrite_deletes_nothing_before_the_engine_works(few: Path, tmp_path: Path) -> None:
    expected = recovered(few, tmp_path / "expected")
    out = recovered(few, tmp_path / "out")
    assert "rtx" in fails(recover(few, out, "--overwrite", "--engine", "rtx"))
    assert different(expected, out) == []


def test_overwrite_leaves_nothing_of_a_run_that_was_killed(
    few: Path, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    expected = recovered(few, tmp_path / "expected", "--seed", 1)
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 4, "--layout", "npz")
    # An image that the killed run did not enter into its journal.
    shutil.copy(DISTILLED / "0" / "0.png", out / "00002" / "00009.png")
    for name in ("dataset.npz", ".images.stacked", ".dataset.npz.partial"):
        (out / name).touch()
    recovered(few, out, "--seed", 1, "--overwrite")
    assert different(expected, out) == []


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
def test_overwrite_deletes_nothing_if_the_model_does_not_fit_into_memory(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, expected = recovered(few, tmp_path / "out"), recovered(few, tmp_path / "expected")

    def short(self: TensorSpec, size: int) -> Any:
        raise MemoryError(f"Unable to allocate {size} GiB")

    monkeypatch.setattr(TensorSpec, "allocate", short)
    line = fails(recover(few, out, "--overwrite"))
    assert (
        "out of memory: ONNX Runtime cannot give the encoder its buffers "
        "(Unable to allocate 1 GiB); use a smaller --batch" in line
    )
    assert different(expected, out) == []
