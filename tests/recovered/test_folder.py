"""An output folder loses nothing, believes nothing that is not so, and touches nothing of anybody else's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import different
from diver_trt.errors import DatasetError, OutputError
from diver_trt.files import file_sha256
from diver_trt.lock import LOCK
from diver_trt.manifest import inspect_recovered
from diver_trt.recovered import journal, writer
from diver_trt.recovered.folder import open_output
from tests.conftest import ROOT
from tests.recovered.fake_run import CLASSES, PROBLEM, head, recover, samples


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run that nobody disturbed."""
    recover(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "journal.jsonl").read_text().splitlines()]


def put_lines(root: Path, values: list[Any]) -> None:
    (root / "journal.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(OutputError) as error:
        recover(root, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_run_that_stopped_anywhere_ends_as_if_undisturbed(whole: Path, tmp_path: Path) -> None:
    for until in range(6):
        recover(tmp_path / str(until), until)
        assert recover(tmp_path / str(until)) == 0
        assert different(whole, tmp_path / str(until)) == []
    assert inspect_recovered(whole)["images"] == 5


# What is believed


CHANGES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "another sample's key": lambda entries: entries[1].update(key=entries.pop(4)["key"]),
    "no sample's key": lambda entries: entries[1].update(key="00007/00000"),
    "a key that is none": lambda entries: entries[1].update(key=[3]),
    "another sample's file": lambda entries: entries[1].update(
        file=entries[2]["file"], sha256=entries[2]["sha256"]
    ),
    "another label": lambda entries: entries[1].update(label=0),
    "another index": lambda entries: entries[1].update(index=1),
    "a label that is none": lambda entries: entries[1].update(label="\x1b[2J"),
    "another source": lambda entries: entries[1].update(source="\x1b[31mred"),
    "no source": lambda entries: entries[1].pop("source"),
    "no source of one that came to nothing": lambda entries: entries[6].pop("source"),
    "an engine that cannot be printed": lambda entries: entries[1].update(
        engine="\x1b]0;title\x07"
    ),
    "no engine": lambda entries: entries[1].pop("engine"),
    "a problem that cannot be printed": lambda entries: entries[6].update(problem="\x1b[2J"),
    "a problem that is none": lambda entries: entries[6].update(problem={"a": 1}),
    "a problem beside an image": lambda entries: entries[1].update(problem="is damaged"),
    "a hash that is none": lambda entries: entries[1].update(sha256=7),
    "more fields": lambda entries: entries[1].update(more="fields"),
    "fields in another order": lambda entries: entries.insert(
        1, dict(reversed(entries.pop(1).items()))
    ),
    "a line twice": lambda entries: entries.insert(1, entries[1]),
    "no line": lambda entries: entries.pop(1),
    "a list": lambda entries: entries.insert(1, []),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_of_a_changed_line_only_what_is_so_is_believed(
    whole: Path, out: Path, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    recover(out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").unlink()
    entries = [head(), *manifest["samples"], *manifest["skipped"]]
    change(entries)
    put_lines(out, entries)
    recover(out)
    assert different(whole, out) == []


@pytest.mark.parametrize("part", ["samples", "skipped", "companions"])
def test_a_manifest_that_lists_less_or_otherwise_is_mended(
    whole: Path, out: Path, part: str
) -> None:
    def broken(change: Callable[[list[Any]], object]) -> None:
        manifest = json.loads((whole / "manifest.json").read_text())
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


def test_a_finished_folder_without_its_contact_sheet_is_mended(whole: Path, out: Path) -> None:
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
def test_an_image_that_cannot_be_read_is_done_again(
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


def test_a_journal_that_cannot_be_read_is_not_said_to_be_unwritable(
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


# A journal lost in a power loss


LOST_HEADS = {
    "empty": b"",
    "cut short": b'{"schema": 2, "tool": {"na',
    "zeros": bytes(4096),
    "zeros and a line": bytes(700) + b'}\n{"key": 3}\n',
}


@pytest.mark.parametrize("left", LOST_HEADS.values(), ids=LOST_HEADS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_whose_journal_was_lost_goes_on(
    whole: Path, out: Path, left: bytes, overwrite: bool
) -> None:
    recover(out, 4)
    (out / "00000" / "00002.png").rename(out / "00000" / ".00002.png.partial")
    (out / "journal.jsonl").write_bytes(left)
    assert recover(out, overwrite=overwrite) == (0 if overwrite else 4)
    assert different(whole, out) == []


def test_a_run_whose_journal_was_lost_at_once_goes_on(whole: Path, out: Path) -> None:
    out.mkdir()
    for name in ("journal.jsonl", ".journal.jsonl.partial"):
        (out / name).touch()
    recover(out)
    assert different(whole, out) == []


def test_the_journal_of_another_layout_was_lost(out: Path) -> None:
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
def test_without_a_journal_nothing_of_anybody_elses_is_touched(
    out: Path, name: str, overwrite: bool
) -> None:
    recover(out, 4)
    (out / "journal.jsonl").write_bytes(b"")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    complaint = refused(out, overwrite=overwrite)
    assert f"empty, as after a power loss, and beside it is {name!r}" in complaint
    assert "which no run writes; move it elsewhere to resume, or choose another folder" in complaint
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["README.md", "contact_sheet.png", "labels.pt"])
def test_an_empty_journal_alone_makes_no_file_ours(out: Path, name: str) -> None:
    out.mkdir()
    (out / "journal.jsonl").touch()
    (out / name).touch()
    refused(out, overwrite=True)
    assert (out / name).exists()


# What survives a power loss


@pytest.fixture
def deeds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, renamed and deleted, in order."""
    done: list[str] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def syncing(descriptor: int) -> None:
        done.append(f"sync {Path('/proc/self/fd', str(descriptor)).readlink().name}")
        fsync(descriptor)

    def replacing(self: Path, target: Path) -> Path:
        done.append(f"name {target.name}")
        return replace(self, target)

    def unlinking(self: Path, missing_ok: bool = False) -> None:
        if self.exists():
            done.append(f"delete {self.name}")
        unlink(self, missing_ok)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)
    return done


def in_order(deeds: list[str], *expected: str) -> bool:
    """Return whether some things were done in this order, whatever was done between them."""
    remaining = iter(deeds)
    return all(deed in remaining for deed in expected)


JOURNAL_LASTS = ("sync .journal.jsonl.partial", "name journal.jsonl", "sync out")


def test_the_journal_is_on_the_disk_before_anything_is_done(out: Path, deeds: list[str]) -> None:
    recover(out, 0)
    assert deeds[:3] == [*JOURNAL_LASTS]
    recover(out, 2)
    deeds.clear()
    recover(out, 2)
    assert deeds[:3] == [*JOURNAL_LASTS]


def test_the_manifest_is_on_the_disk_before_the_journal_goes_and_the_other_way_round(
    out: Path, deeds: list[str]
) -> None:
    recover(out)
    assert in_order(
        deeds,
        "sync .contact_sheet.png.partial",
        "sync .manifest.json.partial",
        "name manifest.json",
        "sync out",
        "delete journal.jsonl",
    )
    (out / "contact_sheet.png").unlink()
    deeds.clear()
    recover(out)
    assert in_order(deeds, *JOURNAL_LASTS, "delete manifest.json")
    deeds.clear()
    recover(out, seed=1, overwrite=True)
    assert in_order(
        deeds,
        *JOURNAL_LASTS,
        "delete manifest.json",
        "delete 00000.png",
        "sync .journal.jsonl.partial",
    )


def test_images_are_on_the_disk_before_their_lines(
    out: Path, monkeypatch: pytest.MonkeyPatch, deeds: list[str]
) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 0)
    recover(out, 4)
    for number in (0, 1, 2):
        assert in_order(
            deeds, f"name 0000{number}.png", f"sync 0000{number}.png", "sync journal.jsonl"
        )
        assert in_order(deeds, f"name 0000{number}.png", "sync 00000", "sync journal.jsonl")


def test_that_takes_two_percent_of_the_time_at_most(
    out: Path, monkeypatch: pytest.MonkeyPatch, deeds: list[str]
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
            synced.append(deeds.count("sync journal.jsonl"))
    assert synced[0] == 1
    assert 30 < synced[-1] < 45  # a journal and a folder in 0.2 s, and 50 times that without
    assert deeds[-2:] == ["sync journal.jsonl", f"delete {LOCK}"]


# What --overwrite deletes


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
def test_a_manifest_that_lists_what_no_run_writes_deletes_nothing(
    tmp_path: Path, out: Path, part: str, name: str
) -> None:
    recover(out)
    mine = plant(out, "mine", "../mine")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest[part][0]["file"] = name
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert (
        f"manifest.json: lists {name!r}, which no such run writes; delete the folder by hand"
        in refused(out, overwrite=True)
    )
    assert {path: path.read_bytes() for path in mine} == mine
    assert (out / "00000" / "00000.png").exists()


# Links


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_written_through_a_link_to_a_file(
    tmp_path: Path, out: Path, link: Callable[[Path, Path], None]
) -> None:
    recover(tmp_path / "expected")
    recover(out, 2)
    (out / "00001").mkdir()
    victims: list[Path] = []
    for name in (".journal.jsonl.partial", "00000/.00002.png.partial", "00001/.00000.png.partial", ".manifest.json.partial",
                 ".contact_sheet.png.partial", ".soft_labels.npy.partial", "00001/00001.png"):  # fmt: skip
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
def test_a_folder_of_images_that_is_a_link_is_refused(
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
    assert (
        complaint
        == f"{out / name}: is a symlink, and images are only written inside the output folder; delete it to resume"
    )
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before
    assert sorted(out.rglob("*")) == ours
    (out / name).unlink()
    recover(out, layout=layout, overwrite=overwrite)


def test_an_image_that_is_a_link_is_done_again(whole: Path, out: Path) -> None:
    recover(out, 4)
    (out / "00000" / "00001.png").unlink()
    (out / "00000" / "00001.png").symlink_to(whole / "00000" / "00001.png")
    assert recover(out) == 1
    assert not (out / "00000" / "00001.png").is_symlink()
    assert different(whole, out) == []


def test_a_recovered_folder_is_read_through_no_link_out_of_it(tmp_path: Path, whole: Path) -> None:
    (whole / "00001").rename(tmp_path / "elsewhere")
    (whole / "00001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"00001/00000\.png: is a link out of the dataset"):
        inspect_recovered(whole)
    (whole / "00001").unlink()
    (tmp_path / "elsewhere").rename(whole / "within")
    (whole / "00001").symlink_to(whole / "within")
    assert inspect_recovered(whole)["images"] == 5


def test_the_output_itself_may_be_a_link(whole: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk")
    recover(out, 3)
    recover(out)
    assert different(whole, out) == []


# Locks


def hold(folder: Path) -> str:
    """Open an output folder in another process, and return what it says."""
    code = f"import sys; from tests.recovered.fake_run import recover; from pathlib import Path; recover(Path({str(folder)!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    ).stderr


def test_a_folder_that_another_process_holds_is_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_output(out, head(), samples=samples(), classes=CLASSES):
        assert "another diver-trt is writing there; wait for it, or choose another folder" in hold(
            out
        )
        assert (out / "journal.jsonl").exists()
    assert not out.exists()
    recover(out, 2)
    assert not (out / LOCK).exists()
    (out / LOCK).touch()  # of a process that was killed
    assert hold(out) == ""
    assert not (out / LOCK).exists()


def test_the_lock_is_one_that_network_drives_have(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS locks bytes of a file, and exclusively only for who may write them."""
    flock = fcntl.flock

    def over_the_network(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", over_the_network)
    with (
        open_output(out, head(), samples=samples(), classes=CLASSES),
        pytest.raises(OutputError, match="another diver-trt is writing there"),
    ):
        recover(out)


def test_a_folder_that_cannot_be_locked_is_said_to_be_so(
    whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.warns(
        RuntimeWarning,
        match=r"out: cannot be locked \(No locks available\); let no other diver-trt write there",
    ):
        recover(out)
    assert different(whole, out) == []


def test_a_lock_that_was_deleted_by_its_holder_is_taken_anew(
    whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, iter(range(9))

    def late(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if next(calls) == 0:
            (out / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with open_output(out, head(), samples=samples(), classes=CLASSES):
        assert (out / LOCK).exists()
        assert next(calls) == 2
