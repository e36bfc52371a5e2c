"""Nothing is lost: interrupted, sharded, short of memory or disk, fed with bad images, a recovery ends as if nothing had happened."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from benchmarks.crash import RECIPE, after_some_images, crash, different
from diver_trt.bundle import Bundle
from diver_trt.cli import app
from diver_trt.errors import DeviceMemoryError, EngineError, MissingExtraError
from diver_trt.files import temporary_of
from diver_trt.recovered import job as recovery
from diver_trt.recovered.job import _Run
from diver_trt.recovered.journal import Journal
from diver_trt.runtime.backends.onnx import OnnxEngine
from diver_trt.tensors import TensorSpec
from tests.conftest import DISTILLED, ROOT, default_signals

pytestmark = pytest.mark.slow


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Ten distilled digits of three classes."""
    for index, count in ((2, 3), (3, 4), (8, 3)):
        (tmp_path / "few" / str(index)).mkdir(parents=True)
        for number in range(count):
            shutil.copy(DISTILLED / str(index) / f"{number}.png", tmp_path / "few" / str(index))
    return tmp_path / "few"


def recover(source: Path, output: Path, *options: object) -> Result:
    return CliRunner().invoke(
        app, ["recover", str(source), str(output), *RECIPE, *map(str, options)]
    )


def whole(source: Path, output: Path, *options: object) -> Path:
    result = recover(source, output, *options)
    assert result.exit_code == 0, result.output
    return output


def error(result: Result, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    return line


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """Let the write of the journal's n-th image fail, once."""

    def arm(count: int, failure: BaseException) -> None:
        append, calls = Journal.append, iter(range(1, 10_000))

        def failing(self: Journal, entry: dict[str, Any]) -> None:
            if next(calls) == count + 1:
                raise failure
            append(self, entry)

        monkeypatch.setattr(Journal, "append", failing)

    return arm


def journal_keys(output: Path) -> list[str]:
    return [
        json.loads(line)["key"] for line in (output / "journal.jsonl").read_text().splitlines()[1:]
    ]


# Resume


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_second_run_goes_on_and_ends_as_if_undisturbed(
    few: Path, tmp_path: Path, fail_after: Callable[..., None], batch: int
) -> None:
    expected = whole(few, tmp_path / "expected", "--layout", "npz")
    fail_after(4, OSError(errno.EIO, "Input/output error"))
    assert "journal.jsonl: cannot be written (Input/output error)" in error(
        recover(few, tmp_path / "out", "--layout", "npz", "--batch", batch)
    )
    assert len(journal_keys(tmp_path / "out")) == 4
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert "is a recovery that has not come to its end" in error(
        recover(tmp_path / "out", tmp_path / "next")
    )
    result = recover(few, tmp_path / "out", "--layout", "npz")
    assert result.exit_code == 0
    assert "4 of 10 images are already there" in result.stderr
    assert different(expected, tmp_path / "out") == []


def test_a_finished_run_has_nothing_left_to_do(few: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole(few, tmp_path / "out").rglob("*.*")}
    result = recover(few, tmp_path / "out")
    assert result.exit_code == 0
    assert "10 of 10 images are already there" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--seed", 1), "holds a run with seed 0, and this one has seed 1"),
        (("--gamma", 0.02), "recipe gamma 0.1, and this one has recipe gamma 0.02"),
        (("--layout", "npz"), 'layout name "index", and this one has layout name "npz"'),
        (("--size", 16), "layout size 32, and this one has layout size 16"),
        (("--shard", "1/2"), "shard null, and this one has shard {"),
        (("--collage", 2), "source collage 1, and this one has source collage 2"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_something_else_in_the_same_folder_is_refused(
    few: Path,
    tmp_path: Path,
    fail_after: Callable[..., None],
    change: tuple[str, object],
    message: str,
    finished: bool,
) -> None:
    if finished:
        whole(few, tmp_path / "out")
    else:
        fail_after(4, OSError(errno.EIO, "Input/output error"))
        assert recover(few, tmp_path / "out").exit_code == 1
    line = error(recover(few, tmp_path / "out", *change))
    assert message in line
    assert "use the same to resume it, --overwrite to begin again, or choose another folder" in line


def test_another_model_or_input_is_refused(few: Path, tmp_path: Path, digits: Bundle) -> None:
    whole(few, tmp_path / "out")
    shutil.copytree(digits.path, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "bundle.json").read_text())
    manifest["model"]["id"] = "another"
    (tmp_path / "other" / "bundle.json").write_text(json.dumps(manifest))
    assert 'bundle model "dit-digits", and this one has bundle model "another"' in error(
        recover(few, tmp_path / "out", "--bundle", tmp_path / "other")
    )
    Image.new("RGB", (32, 32), (9, 9, 200)).save(few / "3" / "1.png")
    assert "holds a run of another input (1 changed: 3/1.png); " in error(
        recover(few, tmp_path / "out")
    )


def test_overwrite_begins_again_and_deletes_only_what_a_run_wrote(
    few: Path, tmp_path: Path
) -> None:
    out = whole(few, tmp_path / "out")
    (out / "00003" / "mine.txt").touch()
    expected = whole(few, tmp_path / "expected", "--seed", 1)
    whole(few, out, "--seed", 1, "--overwrite")
    assert different(expected, out) == ["00003/mine.txt"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").touch()
    assert "already holds something" in error(recover(few, tmp_path / "elsewhere", "--overwrite"))
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
        error(recover(few, folder, "--overwrite"))
        assert {path.name for path in folder.iterdir()} == {
            "journal.jsonl",
            "thesis.tex",
            "contact_sheet.png",
        }


def test_overwrite_deletes_nothing_before_the_engine_works(few: Path, tmp_path: Path) -> None:
    expected = whole(few, tmp_path / "expected")
    out = whole(few, tmp_path / "out")
    assert "rtx" in error(recover(few, out, "--overwrite", "--engine", "rtx"))
    assert different(expected, out) == []


def test_overwrite_leaves_nothing_of_a_run_that_was_killed(
    few: Path, tmp_path: Path, fail_after: Callable[..., None]
) -> None:
    expected = whole(few, tmp_path / "expected", "--seed", 1)
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 4, "--layout", "npz")
    # An image that the killed run did not enter into its journal.
    shutil.copy(DISTILLED / "0" / "0.png", out / "00002" / "00009.png")
    for name in ("dataset.npz", ".images.stacked", ".dataset.npz.partial"):
        (out / name).touch()
    whole(few, out, "--seed", 1, "--overwrite")
    assert different(expected, out) == []


def test_a_finished_folder_that_was_damaged_is_mended(few: Path, tmp_path: Path) -> None:
    expected = whole(few, tmp_path / "expected", "--layout", "npz")
    out = whole(few, tmp_path / "out", "--layout", "npz")
    (out / "00003" / "00001.png").write_bytes(b"")
    (out / "00008" / "00002.png").unlink()
    result = recover(few, out, "--layout", "npz")
    assert "2 images are not on disk as recorded" in result.stderr
    assert "8 of 10 images are already there" in result.stderr
    assert different(expected, out) == []
    (out / "dataset.npz").unlink()
    assert recover(few, out, "--layout", "npz").exit_code == 0
    assert different(expected, out) == []


def test_a_disk_that_is_full_from_the_start_can_be_gone_on_from(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = whole(few, tmp_path / "expected")
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        assert "No space left on device" in error(recover(few, tmp_path / "out"))
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []


def test_what_folders_are_called_makes_no_difference(few: Path, tmp_path: Path) -> None:
    """Shards come from two machines, and a class map may be named from another folder."""
    shutil.copytree(few, tmp_path / "elsewhere")
    (tmp_path / "map.txt").write_text("\n".join("0123456789"))
    out = tmp_path / "out"
    first = whole(few, tmp_path / "part1", "--shard", "1/2", "--classes", tmp_path / "map.txt")
    shutil.copy(tmp_path / "map.txt", tmp_path / "other.txt")
    second = whole(
        tmp_path / "elsewhere",
        tmp_path / "part2",
        "--shard",
        "2/2",
        "--classes",
        tmp_path / "other.txt",
    )
    assert CliRunner().invoke(app, ["merge", str(first), str(second), str(out)]).exit_code == 0
    assert (
        recover(
            tmp_path / "elsewhere",
            tmp_path / "part1",
            "--shard",
            "1/2",
            "--classes",
            tmp_path / "other.txt",
        ).exit_code
        == 0
    )


def test_a_manifest_that_names_files_elsewhere_deletes_none(few: Path, tmp_path: Path) -> None:
    out = whole(few, tmp_path / "out")
    (tmp_path / "mine.txt").touch()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["samples"][0]["file"] = "../mine.txt"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "lists '../mine.txt', which no such run writes; delete the folder by hand" in error(
        recover(few, out, "--overwrite")
    )
    assert (tmp_path / "mine.txt").exists()


def interrupted_at(
    few: Path, out: Path, fail_after: Callable[..., None], count: int, *options: object
) -> None:
    fail_after(count, OSError(errno.EIO, "Input/output error"))
    assert recover(few, out, *options).exit_code == 1


def test_what_a_power_failure_does_is_found_and_done_again(
    few: Path, tmp_path: Path, fail_after: Callable[..., None]
) -> None:
    expected = whole(few, tmp_path / "expected")
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 6)
    files = [
        json.loads(line)["file"] for line in (out / "journal.jsonl").read_text().splitlines()[1:]
    ]
    (out / files[0]).write_bytes(b"")
    (out / files[1]).unlink()
    (out / files[2]).write_bytes((out / files[3]).read_bytes())
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"key": "00008/0000')
    temporary_of(out / files[5]).write_bytes(b"half a picture")
    result = recover(few, out)
    assert "3 images are not on disk as recorded" in result.stderr
    assert "3 of 10 images are already there" in result.stderr
    assert sorted(different(expected, out)) == [str(temporary_of(Path(files[5])))]


def test_a_journal_that_is_none_is_refused(few: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("once upon a time\n")
    for options in ((), ("--overwrite",)):
        assert (
            "is not a journal of diver-trt; delete it by hand, or choose another folder"
            in error(recover(few, tmp_path / "out", *options))
        )
    assert (tmp_path / "out" / "journal.jsonl").exists()


def test_entries_of_other_places_are_not_believed(
    few: Path, tmp_path: Path, fail_after: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 2)
    with (out / "journal.jsonl").open("a") as journal:
        for name in ("../few/3/0.png", "/etc/passwd", "a\0b"):
            journal.write(
                json.dumps({"key": "00008/00002", "file": name, "sha256": "0" * 64}) + "\n"
            )
        journal.write('{"key": 3}\n[]\n')
    result = recover(few, out)
    assert "1 image is not on disk as recorded, to be recovered again" in result.stderr
    assert "2 records are not of an image of this run, and ignored" in result.stderr
    assert different(whole(few, tmp_path / "expected"), out) == []


def test_a_damaged_journal_leads_to_the_same_folder(
    few: Path, tmp_path: Path, fail_after: Callable[..., None]
) -> None:
    expected = whole(few, tmp_path / "expected")
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 6)
    head, *entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    entries[0] |= {"label": 7, "index": 9, "wnid": "n00000000", "source": "\x1b[31mred"}
    entries[1]["key"] = "00008/00002"
    del entries[2]["source"]
    entries[3] = {"key": entries[3]["key"], "engine": "onnx", "problem": "\x1b[2J"}
    entries[4]["source_sha256"] = [{}]
    (out / "journal.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (head, *entries))
    )
    result = recover(few, out, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert "2 images are not on disk as recorded" in result.stderr
    assert "4 of 10 images are already there" in result.stderr
    assert all(line.isprintable() for line in result.output.splitlines())
    assert different(expected, out) == []


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_journal_that_a_power_failure_took_stops_nothing(
    few: Path, tmp_path: Path, fail_after: Callable[..., None], options: tuple[str, ...]
) -> None:
    expected = whole(few, tmp_path / "expected")
    out = tmp_path / "out"
    interrupted_at(few, out, fail_after, 4)
    (out / "journal.jsonl").write_bytes(b"")
    assert recover(few, out, *options).exit_code == 0
    assert different(expected, out) == []


def test_a_finished_folder_that_lacks_anything_is_mended(few: Path, tmp_path: Path) -> None:
    expected = whole(few, tmp_path / "expected")
    out = whole(few, tmp_path / "out")
    (out / "contact_sheet.png").unlink()
    assert "10 of 10 images are already there" in recover(few, out).stderr
    assert different(expected, out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["samples"][3]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert recover(few, out).exit_code == 0
    assert different(expected, out) == []


def test_merging_writes_nothing_elsewhere(few: Path, tmp_path: Path) -> None:
    shards = [str(whole(few, tmp_path / f"part{i}", "--shard", f"{i}/2")) for i in (1, 2)]
    out = tmp_path / "out"
    assert CliRunner().invoke(app, ["merge", *shards, str(out)]).exit_code == 0
    shutil.rmtree(out / "00003")
    (tmp_path / "elsewhere").mkdir()
    (out / "00003").symlink_to(tmp_path / "elsewhere")
    assert "out/00003: is a symlink" in error(CliRunner().invoke(app, ["merge", *shards, str(out)]))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_that_comes_to_nothing_leaves_nothing(few: Path, tmp_path: Path) -> None:
    assert recover(few, tmp_path / "out", "--engine", "rtx").exit_code == 1
    assert not (tmp_path / "out").exists()


# Signals


IN_FRONT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""
"""Code that undoes what a process inherits where the tests run in the background, or under nohup: signals that are ignored."""


def started(
    source: Path, output: Path, *options: str, after_images: int = 1
) -> subprocess.Popen[str]:
    """Start a recovery as a process of its own and wait until it has some images on disk."""
    command = [
        sys.executable,
        "-c",
        f"{IN_FRONT}from diver_trt.cli import main; main()",
        "recover",
        str(source),
        str(output),
        "--batch",
        "2",
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=default_signals,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "journal.jsonl").exists() and len(
            (output / "journal.jsonl").read_text().splitlines()
        ) > after_images:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_batch_in_hand_end(tmp_path: Path, number: signal.Signals) -> None:
    process = started(DISTILLED, tmp_path / "out")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    keys = journal_keys(tmp_path / "out")
    assert 0 < len(keys) < 100
    assert len(keys) % 2 == 0
    assert f"interrupted: {len(keys)} of 100 images are done; the same command resumes it" in said
    assert "Traceback" not in said


def test_an_end_that_is_asked_for_while_a_batch_is_read_waits_for_it(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = _Run._read

    def counted(self: _Run, sample: Any) -> Any:
        reads.append(sample)
        return read(self, sample)

    @contextmanager
    def asked_while_the_fifth_is_read() -> Iterator[Callable[[], bool]]:
        yield lambda: len(reads) >= 5

    monkeypatch.setattr(_Run, "_read", counted)
    monkeypatch.setattr("diver_trt.cli.recover.stop_requested", asked_while_the_fifth_is_read)
    result = recover(few, tmp_path / "out", "--batch", 3)
    assert (result.exit_code, len(journal_keys(tmp_path / "out"))) == (130, 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_there_is_a_folder_both_signals_end_it_alike(
    tmp_path: Path, number: signal.Signals
) -> None:
    asking = (
        f"run.check_images = lambda *_, **__: (signal.raise_signal({int(number)}), time.sleep(60))"
    )
    code = f"{IN_FRONT}import time; from diver_trt.cli import main; from diver_trt.recovered import run; {asking}; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "recover",
        str(DISTILLED),
        str(tmp_path / "out"),
        *RECIPE,
    ]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        preexec_fn=default_signals,
    )
    assert (result.returncode, result.stderr) == (130, "diver-trt: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_two_processes_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    process = started(DISTILLED, tmp_path / "out")
    try:
        result = CliRunner().invoke(app, ["recover", str(DISTILLED), str(tmp_path / "out")])
        assert "another diver-trt is writing there; wait for it, or choose another folder" in error(
            result
        )
    finally:
        process.kill()
        process.communicate()


@pytest.mark.filterwarnings("always:.*cannot be locked:RuntimeWarning")
def test_a_folder_that_cannot_be_locked_is_said_to_be_so_in_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    result = recover(few, tmp_path / "out")
    assert result.exit_code == 0
    assert "diver-trt: warning: " in result.stderr
    assert (
        "out: cannot be locked (No locks available); let no other diver-trt write there\n"
        in result.stderr
    )


def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    outcome = crash(DISTILLED, tmp_path, kills=10, seed=1, wait=after_some_images(40, Random(1)))
    assert outcome.kills == 10
    assert outcome.early < 10
    assert (outcome.doubles, outcome.lost, outcome.differences) == ((), (), ())


def test_a_run_that_had_come_to_its_end_was_not_killed(few: Path, tmp_path: Path) -> None:
    runs = iter(range(10))

    def after_the_end(process: subprocess.Popen[bytes], output: Path) -> None:
        if next(runs) < 2:
            process.wait()

    outcome = crash(few, tmp_path, kills=1, seed=1, wait=after_the_end)
    assert (outcome.runs, outcome.kills, outcome.early, outcome.late) == (3, 1, 1, 0)


# Shards


@pytest.mark.parametrize(("of", "layout"), [(3, "index"), (4, "npz"), (10, "pt")])
def test_shards_make_the_same_images_and_the_same_manifest(
    few: Path, tmp_path: Path, of: int, layout: str
) -> None:
    expected = whole(few, tmp_path / "expected", "--layout", layout)
    shards = [
        whole(few, tmp_path / f"part{i}", "--layout", layout, "--shard", f"{i}/{of}")
        for i in range(1, of + 1)
    ]
    assert sum(len(list(shard.rglob("0*.png"))) for shard in shards) == 10
    result = CliRunner().invoke(app, ["merge", *map(str, reversed(shards)), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert f"merged {of} shards with 10 images" in result.stdout
    assert different(expected, tmp_path / "out") == ["contact_sheet.png"]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 100


def test_shards_that_do_not_belong_together_are_named(few: Path, tmp_path: Path) -> None:
    parts = {f"{i}/3": whole(few, tmp_path / f"part{i}", "--shard", f"{i}/3") for i in (1, 2, 3)}
    half = whole(few, tmp_path / "half", "--shard", "1/2")
    other = whole(few, tmp_path / "other", "--shard", "3/3", "--seed", 1)
    complete = whole(few, tmp_path / "complete")

    def merge(*folders: Path, output: Path = tmp_path / "out") -> str:
        return error(CliRunner().invoke(app, ["merge", *map(str, folders), str(output)]))

    assert "shard 2/3: missing; expected all 3" in merge(parts["1/3"], parts["3/3"])
    assert "are both shard 1/3; give each once" in merge(parts["1/3"], parts["1/3"], parts["3/3"])
    assert "are cut into 3 and 2 shards" in merge(parts["1/3"], half)
    assert "are of different recoveries, their seed differs" in merge(
        parts["1/3"], parts["2/3"], other
    )
    assert "is a whole recovered dataset, not a shard" in merge(complete)
    (tmp_path / "part2" / "00003" / "00001.png").write_bytes(b"other")
    assert "part2/00003/00001.png: is not the file that was written" in merge(*parts.values())
    assert "part1: overlaps the shard " in merge(*parts.values(), output=parts["1/3"])
    assert (
        "shard is '4/3'; expected NUMBER/OF"
        in recover(few, tmp_path / "x", "--shard", "4/3").output
    )


def merge(*folders: Path, options: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, folders), *options])


def in_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_missing_and_double_samples_are_named(few: Path, tmp_path: Path) -> None:
    first, second, third = (
        whole(few, tmp_path / f"part{i}", "--shard", f"{i}/3") for i in (1, 2, 3)
    )

    def refused(spoil: Callable[[Path], object]) -> str:
        spoilt = shutil.copytree(second, tmp_path / "spoilt")
        spoil(spoilt)
        line = error(merge(first, spoilt, third, tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        shutil.rmtree(spoilt)
        return line.replace(f"{tmp_path}/", "")

    assert refused(
        lambda folder: in_manifest(folder, lambda manifest: manifest["samples"].pop(1))
    ).endswith(
        "error: spoilt: has 2 samples, expected 3, 00003/00001 is missing; recover this shard again with --overwrite"
    )
    assert refused(
        lambda folder: in_manifest(
            folder,
            lambda manifest: manifest["skipped"].append({**manifest["samples"][0], "problem": ""}),
        )
    ).endswith("error: sample 00003/00000: more than once, in spoilt; recover the shards again")
    assert refused(lambda folder: (folder / "00003" / "00001.png").unlink()).endswith(
        "error: spoilt/00003/00001.png: missing, but the manifest lists it; run the shard's command again, which writes it again"
    )
    assert refused(lambda folder: shutil.copytree(first, folder, dirs_exist_ok=True)).endswith(
        "are both shard 1/3; give each once"
    )
    in_manifest(third, lambda manifest: manifest["samples"].pop())
    assert "part3: has 3 samples, expected 4, the last one of a class is missing" in error(
        merge(first, second, third, tmp_path / "out")
    )


def test_a_class_whose_only_sample_is_missing_is_named(tmp_path: Path) -> None:
    first, second = (
        whole(DISTILLED.parent / "ipc1", tmp_path / f"part{i}", "--shard", f"{i}/2") for i in (1, 2)
    )
    in_manifest(
        first,
        lambda manifest: manifest.update(samples=manifest["samples"][:2] + manifest["samples"][4:]),
    )
    line = error(merge(first, second, tmp_path / "out"))
    assert "part1: has 3 samples, expected 5, 00002/00000, 00003/00000 is missing" in line


def test_a_shard_that_is_not_finished_is_to_be_gone_on_with(
    few: Path, tmp_path: Path, fail_after: Callable[..., None]
) -> None:
    first = whole(few, tmp_path / "part1", "--shard", "1/2")
    fail_after(2, OSError(errno.EIO, "Input/output error"))
    second = tmp_path / "part2"
    assert recover(few, second, "--shard", "2/2").exit_code == 1
    line = error(merge(first, second, tmp_path / "out"))
    assert line.endswith(
        "part2: is an unfinished shard; run the same command again to complete it first"
    )
    whole(few, second, "--shard", "2/2")
    assert merge(first, second, tmp_path / "out").exit_code == 0
    assert "few: is not a shard (it has no manifest.json)" in error(
        merge(first, few, tmp_path / "out")
    )


def test_another_merge_in_the_same_folder_is_refused_or_overwritten(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seeds = {
        seed: [
            whole(few, tmp_path / f"{seed}-{i}", "--shard", f"{i}/2", "--seed", seed)
            for i in (1, 2)
        ]
        for seed in (0, 1)
    }
    assert merge(*seeds[0], out).exit_code == 0
    assert merge(*seeds[0], out).exit_code == 0
    line = error(merge(*seeds[1], out))
    assert "out: holds a run with seed 0, and this one has seed 1; " in line
    assert "--overwrite to begin again" in line
    image = seeds[1][1] / "00008" / "00000.png"
    held = image.read_bytes()
    image.write_bytes(b"")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert "00008/00000.png: is not the file that was written" in error(
        merge(*seeds[1], out, options=("--overwrite",))
    )
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    image.write_bytes(held)
    assert merge(*seeds[1], out, options=("--overwrite",)).exit_code == 0
    assert different(whole(few, tmp_path / "expected", "--seed", 1), out) == ["contact_sheet.png"]


@pytest.mark.parametrize("layout", ["index", "npz"])
def test_what_the_shards_left_out_is_told_again(few: Path, tmp_path: Path, layout: str) -> None:
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
    assert different(tmp_path / "expected", tmp_path / "out") == ["contact_sheet.png"]
    result = merge(*shards, tmp_path / "again", options=("--json",))
    report = json.loads(result.stdout)
    assert (result.exit_code, report["images"]) == (1, 8)
    assert [entry["key"] for entry in report["skipped"]] == ["00003/00001", "00008/00002"]


# Memory


@pytest.fixture
def out_of_memory_above(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the denoiser run out of device memory in batches of more than so many images."""

    def arm(limit: int) -> None:
        run = OnnxEngine.run

        def running(self: OnnxEngine) -> None:
            if self._name == "denoiser" and self.batch > limit:
                raise DeviceMemoryError("out of memory: a gigabyte failed")
            run(self)

        monkeypatch.setattr(OnnxEngine, "run", running)

    return arm


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
def test_out_of_device_memory_halves_the_batch_and_goes_on(
    few: Path, tmp_path: Path, out_of_memory_above: Callable[[int], None]
) -> None:
    expected = whole(few, tmp_path / "expected")
    out_of_memory_above(2)
    result = recover(few, tmp_path / "out", "--batch", 8)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: out of memory: going on in smaller batches") == 1
    assert "in 5 batches of up to 2" in result.stderr
    assert different(expected, tmp_path / "out") == []
    shutil.rmtree(tmp_path / "out")
    out_of_memory_above(0)
    assert "out of memory: a gigabyte failed" in error(recover(few, tmp_path / "out"))


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
@pytest.mark.parametrize("overwrite", [True, False])
def test_out_of_host_memory_is_no_different(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Where the networks get their buffers: before anything is deleted, if something is to be."""
    expected = whole(few, tmp_path / "expected")
    if overwrite:
        whole(few, tmp_path / "out", "--seed", 1)
    allocate = TensorSpec.allocate

    def short(self: TensorSpec, size: int) -> Any:
        if self.name == "anchor" and size > 2:
            raise MemoryError("Unable to allocate 954. GiB for an array")
        return allocate(self, size)

    monkeypatch.setattr(TensorSpec, "allocate", short)
    result = recover(
        few, tmp_path / "out", "--batch", 999_999_999, *(["--overwrite"] if overwrite else [])
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: out of memory: going on in smaller batches") == 1
    assert "in 5 batches of up to 2" in result.stderr
    assert different(expected, tmp_path / "out") == []


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
def test_a_model_that_no_memory_holds_deletes_nothing(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, expected = whole(few, tmp_path / "out"), whole(few, tmp_path / "expected")

    def short(self: TensorSpec, size: int) -> Any:
        raise MemoryError(f"Unable to allocate {size} GiB")

    monkeypatch.setattr(TensorSpec, "allocate", short)
    line = error(recover(few, out, "--overwrite"))
    assert (
        "out of memory: ONNX Runtime cannot give the encoder its buffers (Unable to allocate 1 GiB); use a smaller --batch"
        in line
    )
    assert different(expected, out) == []


def test_want_of_memory_anywhere_else_is_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 2.00 TiB")

    monkeypatch.setattr("diver_trt.recovered.run.read_dataset", short)
    assert "out of memory (Unable to allocate 2.00 TiB); close other programs" in error(
        recover(few, tmp_path / "out")
    )


def test_an_engine_that_fails_leaves_the_journal_to_go_on_from(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(few, tmp_path / "expected")
    run, runs = OnnxEngine.run, iter(range(10_000))

    def poisoned(self: OnnxEngine) -> None:
        if self._name == "denoiser" and next(runs) >= 10:
            raise EngineError("an illegal memory access was encountered")
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxEngine, "run", poisoned)
        assert "an illegal memory access was encountered" in error(
            recover(few, tmp_path / "out", "--batch", 2)
        )
    assert len(journal_keys(tmp_path / "out")) == 4
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []


# Disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 kB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    # Lazily, since another process may have a file of it open.
    subprocess.run(["umount", "--lazy", str(disk)], check=False)


def test_a_full_disk_ends_in_one_line_and_can_be_gone_on_from(
    few: Path, tmp_path: Path, small_disk: Path
) -> None:
    expected = whole(few, tmp_path / "expected")
    assert "cannot be written (No space left on device)" in error(
        recover(few, small_disk / "out", "--batch", 1)
    )
    done = journal_keys(small_disk / "out")
    assert 0 < len(done) < 10
    assert not list((small_disk / "out").rglob("*.partial"))
    shutil.copytree(small_disk / "out", tmp_path / "out")
    result = recover(few, tmp_path / "out")
    assert f"{len(done)} of 10 images are already there" in result.stderr
    assert different(expected, tmp_path / "out") == []


@pytest.mark.parametrize("failing", ["save", "replace"])
def test_an_error_of_the_disk_leaves_nothing_half_written(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    expected = whole(few, tmp_path / "expected")
    original: Any = Image.Image.save if failing == "save" else Path.replace
    calls = iter(range(10_000))

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:
            raise OSError(errno.EIO, "Input/output error")
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image if failing == "save" else Path, failing, broken)
        assert "cannot be written (Input/output error)" in error(recover(few, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []


def test_a_clock_that_jumps_changes_nothing(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(few, tmp_path / "expected")
    fourteen_years = 450_000_000
    calls = iter(range(10_000))
    clock = time.time
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: clock() + (-1) ** next(calls) * fourteen_years)
    out = whole(few, tmp_path / "out")
    for path in out.rglob("*.png"):
        os.utime(path, (0, 0))
    assert recover(few, out).exit_code == 0
    assert different(expected, out) == []


# Bad samples


def test_a_bad_image_ends_the_run_before_any_work_or_is_left_out(few: Path, tmp_path: Path) -> None:
    (few / "3" / "1.png").write_bytes(b"not a picture")
    assert "3/1.png: not an image, or a damaged one" in error(recover(few, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    result = recover(few, tmp_path / "out", "--on-error", "skip", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["images"], [entry["source"] for entry in report["skipped"]]) == (9, ["3/1.png"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
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


def test_a_bad_row_of_a_tensor_is_left_out(tmp_path: Path) -> None:
    images = np.stack(
        [
            np.asarray(Image.open(DISTILLED / str(index) / "0.png").convert("RGB"))
            for index in range(10)
        ]
    )
    values = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    values[0, 0, 5, 5] = np.nan
    logits = 9 * np.eye(10, dtype=np.float32) - 1
    np.savez(
        tmp_path / "set.npz",
        images=values,
        labels=logits,
        format=np.array("mtt"),
        normalisation=np.array("none"),
    )
    result = recover(tmp_path / "set.npz", tmp_path / "out", "--on-error", "skip")
    assert (result.exit_code, "left out: set.npz[0]: " in result.stderr) == (1, True)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "soft_labels.npy"), logits[1:])


@pytest.mark.parametrize("layout", ["index", "npz"])
def test_empty_shards_and_soft_labels_go_together(tmp_path: Path, layout: str) -> None:
    values = np.stack(
        [
            np.asarray(Image.open(DISTILLED / str(index) / "0.png").convert("RGB"))
            for index in range(10)
        ]
    )[:2]
    arrays = {
        "images": values,
        "labels": 9 * np.eye(10, dtype=np.float32)[:2] - 1,
        "format": np.array("mtt"),
    }
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    expected = whole(tmp_path / "set.npz", tmp_path / "expected", "--layout", layout)
    shards = [
        whole(tmp_path / "set.npz", tmp_path / f"part{i}", "--layout", layout, "--shard", f"{i}/3")
        for i in (1, 2, 3)
    ]
    assert (
        CliRunner().invoke(app, ["merge", *map(str, shards), str(tmp_path / "out")]).exit_code == 0
    )
    assert different(expected, tmp_path / "out") == ["contact_sheet.png"]
    (shards[2] / "soft_labels.npy").write_bytes(b"junk")
    result = CliRunner().invoke(app, ["merge", *map(str, shards), str(tmp_path / "again")])
    assert "soft_labels.npy: is not the file that was written" in error(result)


def test_an_image_that_vanishes_on_the_way_is_left_out(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runs = OnnxEngine.run, iter(range(10_000))

    def removing(self: OnnxEngine) -> None:
        if self._name == "denoiser" and next(runs) == 0:
            (few / "8" / "0.png").unlink()
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxEngine, "run", removing)
        result = recover(few, tmp_path / "out", "--batch", "2", "--on-error", "skip")
    assert result.exit_code == 1
    assert "left out: 8/0.png" in result.stderr
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"]) == 9


def test_an_input_that_goes_away_as_a_whole_ends_the_run(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drive, say: nothing is left out for good, and with the drive the same command goes on."""
    run, runs = OnnxEngine.run, iter(range(10_000))

    def unmounting(self: OnnxEngine) -> None:
        if self._name == "denoiser" and next(runs) == 0:
            few.rename(tmp_path / "away")
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxEngine, "run", unmounting)
        assert "cannot be read any more" in error(
            recover(few, tmp_path / "out", "--batch", "2", "--on-error", "skip")
        )
    (tmp_path / "away").rename(few)
    result = recover(few, tmp_path / "out", "--on-error", "skip")
    assert (result.exit_code, "of 10 images are already there" in result.stderr) == (0, True)
    assert different(whole(few, tmp_path / "expected"), tmp_path / "out") == []


def test_what_is_left_out_is_told_the_same_every_time(few: Path, tmp_path: Path) -> None:
    """No address in memory, no path of this machine."""
    for name, content in (
        ("3/1.png", b"no picture at all"),
        ("8/0.png", (few / "8" / "0.png").read_bytes()[:-40]),
    ):
        (few / name).write_bytes(content)
    elsewhere = shutil.copytree(few, tmp_path / "elsewhere" / few.name)
    manifests = []
    for number, source in enumerate((few, elsewhere)):
        assert recover(source, tmp_path / f"out{number}", "--on-error", "skip").exit_code == 1
        manifests.append((tmp_path / f"out{number}" / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    problems = [entry["problem"] for entry in json.loads(manifests[0])["skipped"]]
    assert problems[0] == "not an image, or a damaged one"
    assert problems[1].startswith("not an image, or a damaged one (")


def test_many_bad_images_at_the_start_are_left_out_too(tmp_path: Path) -> None:
    source = shutil.copytree(DISTILLED, tmp_path / "set")
    for image in [*(source / "0").iterdir(), *(source / "1").iterdir()]:
        image.write_bytes(b"no picture")
    result = recover(source, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 1
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]) == 20


def test_other_soft_labels_are_another_input(tmp_path: Path) -> None:
    images = np.stack(
        [
            np.asarray(Image.open(DISTILLED / str(index) / "0.png").convert("RGB"))
            for index in range(10)
        ]
    )
    for scale in (9, 20):
        logits = scale * np.eye(10, dtype=np.float32) - 1
        np.savez(
            tmp_path / "set.npz",
            images=images,
            labels=logits,
            format=np.array("mtt"),
            normalisation=np.array("none"),
        )
        result = recover(tmp_path / "set.npz", tmp_path / "out")
    assert (
        "another input (10 with another soft label: set.npz[0], set.npz[1], set.npz[2] and 7 more)"
        in error(result)
    )


def decode_badly(monkeypatch: pytest.MonkeyPatch, bad: float, precision: str = "fp32") -> None:
    """Let the decoder of a bundle in this precision answer with one value for every third image."""
    open_engine, read, reads = OnnxEngine.__init__, OnnxEngine.read, iter(range(10_000))
    engines = []

    def opening(
        self: OnnxEngine, bundle: Bundle, network: Any, *arguments: Any, **options: Any
    ) -> None:
        open_engine(self, bundle, network, *arguments, **options)
        if (network, bundle.precision) == ("decoder", precision):
            engines.append(self)

    def reading(self: OnnxEngine, name: str) -> Any:
        values = read(self, name)
        return np.full_like(values, bad) if self in engines and next(reads) % 3 == 0 else values

    monkeypatch.setattr(OnnxEngine, "__init__", opening)
    monkeypatch.setattr(OnnxEngine, "read", reading)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [(np.nan, "holds NaN or infinite values"), (-1.0, "is all in one colour")],
)
def test_what_comes_to_nothing_is_never_written(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, problem: str
) -> None:
    decode_badly(monkeypatch, bad)
    assert problem in error(recover(few, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    decode_badly(monkeypatch, bad)
    result = recover(few, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["skipped"]) + len(manifest["samples"]) == 10
    assert manifest["skipped"]
    assert all(problem in entry["problem"] for entry in manifest["skipped"])


@pytest.fixture(scope="module")
def exported(export_to: Callable[..., Bundle], random_pipeline: Path) -> dict[str, Path]:
    return {precision: export_to(random_pipeline, precision).path for precision in ("fp16", "fp32")}


@pytest.fixture
def twins(exported: dict[str, Path], few: Path, tmp_path: Path) -> Path:
    """A folder with the random model in both precisions; it has seven classes, so that `few` loses one."""
    shutil.rmtree(few / "8")
    for precision, path in exported.items():
        shutil.copytree(path, tmp_path / "bundles" / precision)
    return tmp_path / "bundles"


@pytest.mark.usefixtures("twins")
def test_an_overflow_in_fp16_is_tried_again_in_fp32(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = shutil.copytree(
        tmp_path / "bundles" / "fp32", tmp_path / "bundles" / "another model's fp32"
    )
    manifest = json.loads((impostor / "bundle.json").read_text())
    manifest["model"]["weights_sha256"] = "0" * 64
    (impostor / "bundle.json").write_text(json.dumps(manifest))
    half = ("--bundle", tmp_path / "bundles" / "fp16")
    in_fp32 = whole(few, tmp_path / "in fp32", "--bundle", tmp_path / "bundles" / "fp32")
    decode_badly(monkeypatch, np.nan, "fp16")
    out = whole(few, tmp_path / "out", *half)
    samples = json.loads((out / "manifest.json").read_text())["samples"]
    again = [sample for sample in samples if sample["engine"].startswith("onnx fp32")]
    assert [sample["key"] for sample in again] == ["00002/00000", "00003/00000", "00003/00003"]
    for sample in again:
        assert (out / sample["file"]).read_bytes() == (in_fp32 / sample["file"]).read_bytes()
    shutil.rmtree(tmp_path / "bundles" / "fp32")
    assert "NaN or infinite values; the model may overflow in fp16, use its fp32 bundle" in error(
        recover(few, tmp_path / "alone", *half)
    )


BAD_OF_SEVEN = ["00002/00000", "00003/00000", "00003/00003"]
NO_SECOND_TRY = "what came to nothing cannot be tried again in fp32: "


def test_a_twin_that_is_damaged_helps_nobody_and_harms_nobody(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((twins / "fp32" / "decoder.onnx").read_bytes())
    data[-5] ^= 1
    (twins / "fp32" / "decoder.onnx").write_bytes(data)
    decode_badly(monkeypatch, np.nan, "fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    assert result.exit_code == 1
    assert f"warning: {NO_SECOND_TRY}{twins / 'fp32' / 'decoder.onnx'}: SHA-256 is" in result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN
    assert len(manifest["samples"]) == 4


def test_without_onnxruntime_there_is_no_second_try(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that has TensorRT only."""
    decode_badly(monkeypatch, np.nan, "fp16")
    open_engine = OnnxEngine.__init__

    def opening(self: OnnxEngine, bundle: Bundle, *arguments: Any, **options: Any) -> None:
        if bundle.precision == "fp32":
            raise MissingExtraError("onnxruntime", "cpu", "running a bundle")
        open_engine(self, bundle, *arguments, **options)

    monkeypatch.setattr(OnnxEngine, "__init__", opening)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    assert (
        f"{NO_SECOND_TRY}running a bundle needs onnxruntime, which is not installed"
        in result.stderr
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN


@pytest.mark.parametrize("gone", ["2/0.png", "."])
def test_an_input_that_vanishes_before_the_second_try(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """One image is one bad image more; the whole input is a drive that went away, and no image is left out for that."""
    decode_badly(monkeypatch, np.nan, "fp16")
    find = recovery.find_fp32_twin

    def finding(bundle: Bundle) -> Bundle | None:
        (few / gone).rename(tmp_path / "away") if (few / gone).exists() else None
        return find(bundle)

    monkeypatch.setattr(recovery, "find_fp32_twin", finding)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = recover(few, tmp_path / "out", "--bundle", twins / "fp16", "--on-error", "skip")
    if gone == ".":
        assert "cannot be read any more" in error(result)
        assert not (tmp_path / "out").exists()
        return
    assert f"{NO_SECOND_TRY}{few / gone}: " in result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["key"] for entry in manifest["skipped"]] == BAD_OF_SEVEN[:1]


def test_a_neighbour_that_may_not_be_looked_at_is_passed_over(
    few: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /tmp, where other users' folders are."""
    (twins / "a").mkdir()
    is_file = Path.is_file

    def forbidding(self: Path, **options: Any) -> bool:
        if self == twins / "a" / "bundle.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return is_file(self, **options)

    monkeypatch.setattr(Path, "is_file", forbidding)
    twin = recovery.find_fp32_twin(Bundle.open(twins / "fp16"))
    assert twin is not None
    assert twin.path == twins / "fp32"


# Determinism


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core"
)
def test_one_thread_writes_the_same_bytes_as_all(few: Path, tmp_path: Path) -> None:
    expected = whole(few, tmp_path / "expected", "--batch", 8)
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}]); from diver_trt.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "recover",
        str(few),
        str(tmp_path / "out"),
        *RECIPE,
        "--batch",
        "3",
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert different(expected, tmp_path / "out") == []
