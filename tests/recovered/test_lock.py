"""One process per output folder."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.crash import different
from diver_trt.errors import OutputError
from diver_trt.lock import LOCK
from diver_trt.recovered.folder import open_output
from tests.conftest import ROOT
from tests.recovered.fake_run import CLASSES, head, recover, samples


def hold(folder: Path) -> str:
    """Open an output folder in another process, and return its standard error."""
    code = (
        "from pathlib import Path; from tests.recovered.fake_run import recover; "
        f"recover(Path({str(folder)!r}))"
    )
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


def test_a_folder_that_cannot_be_locked_is_a_warning(
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


def test_a_lock_that_its_holder_deleted_is_taken_again(
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
