"""An output folder: of an earlier run only what can be verified is used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import different
from diver_trt.files import file_sha256
from diver_trt.manifest import inspect_recovered
from diver_trt.recovered import journal
from tests.recovered.commands import manifest_of, put_journal
from tests.recovered.fake_run import head, recover, refused


def test_a_run_that_stopped_anywhere_ends_as_if_undisturbed(whole: Path, tmp_path: Path) -> None:
    for until in range(6):
        recover(tmp_path / str(until), until)
        assert recover(tmp_path / str(until)) == 0
        assert different(whole, tmp_path / str(until)) == []
    assert inspect_recovered(whole)["images"] == 5


def test_a_run_that_wrote_no_image_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    recover(tmp_path / "there" / "new" / "out", 0)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


CHANGES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "another sample's key": lambda entries: entries[1].update(key=entries.pop(4)["key"]),
    "no sample's key": lambda entries: entries[1].update(key="00007/00000"),
    "a key that is not a text": lambda entries: entries[1].update(key=[3]),
    "another sample's file": lambda entries: entries[1].update(
        file=entries[2]["file"], sha256=entries[2]["sha256"]
    ),
    "another label": lambda entries: entries[1].update(label=0),
    "another index": lambda entries: entries[1].update(index=1),
    "a label that is not a number": lambda entries: entries[1].update(label="\x1b[2J"),
    "another source": lambda entries: entries[1].update(source="\x1b[31mred"),
    "a hash of the source that is not a text": lambda entries: entries[1].update(
        source_sha256=[{}]
    ),
    "a file elsewhere": lambda entries: entries[1].update(file="../mine.png"),
    "a file whose name no system takes": lambda entries: entries[1].update(file="a\0b"),
    "no source": lambda entries: entries[1].pop("source"),
    "no source of an unusable image": lambda entries: entries[6].pop("source"),
    "an engine that cannot be printed": lambda entries: entries[1].update(
        engine="\x1b]0;title\x07"
    ),
    "no engine": lambda entries: entries[1].pop("engine"),
    "a problem that cannot be printed": lambda entries: entries[6].update(problem="\x1b[2J"),
    "a problem that is not a text": lambda entries: entries[6].update(problem={"a": 1}),
    "a problem beside an image": lambda entries: entries[1].update(problem="is damaged"),
    "a hash that is not a text": lambda entries: entries[1].update(sha256=7),
    "more fields": lambda entries: entries[1].update(more="fields"),
    "fields in another order": lambda entries: entries.insert(
        1, dict(reversed(entries.pop(1).items()))
    ),
    "a line twice": lambda entries: entries.insert(1, entries[1]),
    "no line": lambda entries: entries.pop(1),
    "a list": lambda entries: entries.insert(1, []),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_of_a_changed_line_only_what_can_be_verified_is_used(
    whole: Path, out: Path, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    recover(out)
    manifest = manifest_of(out)
    (out / "manifest.json").unlink()
    entries = [head(), *manifest["samples"], *manifest["skipped"]]
    change(entries)
    put_journal(out, entries)
    recover(out)
    assert different(whole, out) == []


@pytest.mark.parametrize("part", ["samples", "skipped", "companions"])
def test_a_manifest_that_lists_too_little_or_other_files_is_written_again(
    whole: Path, out: Path, part: str
) -> None:
    def broken(change: Callable[[list[Any]], object]) -> None:
        manifest = manifest_of(whole)
        change(manifest[part])
        (out / "manifest.json").write_text(json.dumps(manifest))

    recover(out)
    changes: list[Callable[[list[Any]], object]] = [
        lambda entries: entries.pop(),
        lambda entries: entries.append(3),
        lambda entries: entries.append(dict(entries[0])),
        lambda entries: entries[0].update(label=3, file="00000/00001.png"),
        lambda entries: entries[0].update(sha256="\n", problem=3),
    ]
    for change in changes:
        broken(change)
        recover(out)
        assert different(whole, out) == []


def test_a_missing_contact_sheet_is_drawn_again(whole: Path, out: Path) -> None:
    recover(out)
    (out / "contact_sheet.png").unlink()
    assert recover(out) == 0
    assert different(whole, out) == []


def test_a_finished_folder_needs_not_be_writable(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    recover(out)
    monkeypatch.setattr(Path, "unlink", failing)
    assert recover(out) == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("finished", [True, False])
def test_an_image_that_cannot_be_read_is_made_again(
    whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int, finished: bool
) -> None:
    recover(out, 6 if finished else 4)
    read = file_sha256

    def failing(path: Path) -> str:
        if path.name == "00001.png" and path.parent.name == "00000":
            raise OSError(number, os.strerror(number))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "file_sha256", failing)
        assert recover(out) == 1
    assert different(whole, out) == []


def test_a_journal_that_cannot_be_read_is_not_reported_as_unwritable(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    recover(out, 2)
    monkeypatch.setattr(journal, "_lines", failing)
    for overwrite in (False, True):
        assert (
            refused(out, overwrite=overwrite)
            == f"{out}/journal.jsonl: cannot be read (Permission denied)"
        )
