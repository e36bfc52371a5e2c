"""A power loss may take the journal or images that were not flushed; what is flushed, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt.lock import LOCK
from diver_trt.recovered import writer
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.merge import merge_shards
from tests.conftest import files_of
from tests.recovered.commands import manifest_of
from tests.recovered.fake_run import CLASSES, PROBLEM, head, recover, refused, samples

LOST_HEADS = {
    "empty": b"",
    "cut short": b'{"schema": 2, "tool": {"na',
    "zeros": bytes(4096),
    "zeros and a line": bytes(700) + b'}\n{"key": 3}\n',
}


@pytest.mark.parametrize("left", LOST_HEADS.values(), ids=LOST_HEADS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_whose_journal_was_lost_is_resumed(
    whole: Path, out: Path, left: bytes, overwrite: bool
) -> None:
    recover(out, 4)
    (out / "00000" / "00002.png").rename(out / "00000" / ".00002.png.partial")
    (out / "journal.jsonl").write_bytes(left)
    assert recover(out, overwrite=overwrite) == (0 if overwrite else 4)
    assert different(whole, out) == []


def test_a_run_whose_journal_was_lost_at_once_is_resumed(whole: Path, out: Path) -> None:
    out.mkdir()
    for name in ("journal.jsonl", ".journal.jsonl.partial"):
        (out / name).touch()
    recover(out)
    assert different(whole, out) == []


def test_a_lost_journal_of_another_layout_is_refused(out: Path) -> None:
    recover(out, 4, layout="huggingface")
    (out / "journal.jsonl").write_bytes(b"")
    for overwrite in (False, True):
        assert "beside it is 'train/00000/00000.png', which no run writes" in refused(
            out, overwrite=overwrite
        )


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        "README.md",
        "00000/notes.txt",
        "n1_my_notes/00001.png",
        "labels.pt",
        "a",
        "00000/.hidden",
        "00003",
    ],
)
def test_without_a_journal_other_peoples_files_are_not_touched(
    out: Path, name: str, overwrite: bool
) -> None:
    recover(out, 4)
    (out / "journal.jsonl").write_bytes(b"")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"mine")
    before = files_of(out)
    complaint = refused(out, overwrite=overwrite)
    assert f"empty, as after a power loss, and beside it is {name!r}" in complaint
    assert "which no run writes; move it elsewhere to resume, or choose another folder" in complaint
    assert files_of(out) == before


@pytest.mark.parametrize("name", ["README.md", "contact_sheet.png", "labels.pt"])
def test_an_empty_journal_alone_makes_no_file_ours(out: Path, name: str) -> None:
    out.mkdir()
    (out / "journal.jsonl").touch()
    (out / name).touch()
    refused(out, overwrite=True)
    assert (out / name).exists()


def in_order(operations: list[str], *expected: str) -> bool:
    """Return whether some things were done in this order, whatever was done between them."""
    remaining = iter(operations)
    return all(deed in remaining for deed in expected)


JOURNAL_FLUSHED = ("sync .journal.jsonl.partial", "name journal.jsonl", "sync out")


def test_the_journal_is_flushed_before_the_first_image(out: Path, operations: list[str]) -> None:
    recover(out, 0)
    assert operations[:3] == [*JOURNAL_FLUSHED]
    recover(out, 2)
    operations.clear()
    recover(out, 2)
    assert operations[:3] == [*JOURNAL_FLUSHED]


def test_manifest_and_journal_are_flushed_before_the_other_is_deleted(
    out: Path, operations: list[str]
) -> None:
    recover(out)
    assert in_order(
        operations,
        "sync .contact_sheet.png.partial",
        "sync .manifest.json.partial",
        "name manifest.json",
        "sync out",
        "delete journal.jsonl",
    )
    (out / "contact_sheet.png").unlink()
    operations.clear()
    recover(out)
    assert in_order(operations, *JOURNAL_FLUSHED, "delete manifest.json")
    operations.clear()
    recover(out, seed=1, overwrite=True)
    assert in_order(
        operations,
        *JOURNAL_FLUSHED,
        "delete manifest.json",
        "delete 00000.png",
        "sync .journal.jsonl.partial",
    )


@pytest.mark.parametrize(
    ("layout", "folders"), [("index", ["00000", "out"]), ("huggingface", ["00000", "train", "out"])]
)
def test_images_are_flushed_before_their_lines(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    operations: list[str],
    layout: str,
    folders: list[str],
) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 0)
    recover(out, 4, layout=layout)
    for number in (0, 1, 2):
        assert in_order(
            operations, f"name 0000{number}.png", f"sync 0000{number}.png", "sync journal.jsonl"
        )
        for folder in folders:
            name = f"name 0000{number}.png"
            assert in_order(operations, name, f"sync {folder}", "sync journal.jsonl")


def test_merged_images_are_flushed_before_the_manifest(
    parts: list[Path], out: Path, operations: list[str]
) -> None:
    operations.clear()
    merged = merge_shards(parts, out)
    before = operations[: operations.index("name manifest.json")]
    assert merged.images == 2
    for entry in manifest_of(out)["samples"]:
        folder, name = entry["file"].split("/")
        assert in_order(before, f"name {name}", f"sync {name}", f"sync {folder}")
    assert [name for name in before if name.startswith("sync 0000") and ".png" in name] == [
        "sync 00000.png"
    ] * 2


def test_flushing_takes_two_percent_of_the_time_at_most(
    out: Path, monkeypatch: pytest.MonkeyPatch, operations: list[str]
) -> None:
    now, fsync = [0.0], os.fsync

    def slow(descriptor: int) -> None:
        now[0] += 0.1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(writer, "perf_counter", lambda: now[0])
    synced = []
    with open_output(out, head(), samples=samples(), classes=CLASSES) as held:
        for number in range(400):
            now[0] += 1
            held.record({"key": f"00000/{number:05d}", "engine": "onnx", "problem": PROBLEM})
            synced.append(operations.count("sync journal.jsonl"))
    assert synced[0] == 1
    assert 30 < synced[-1] < 45  # a journal and a folder in 0.2 s, and 50 times that without
    assert operations[-2:] == ["sync journal.jsonl", f"delete {LOCK}"]
