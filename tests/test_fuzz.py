"""Reading a damaged file succeeds or fails in one line; `benchmarks/fuzz.py` tries many more."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diver_trt.errors import DatasetError
from tests import fuzzing
from tests.fuzzing import TARGETS, DefectError, Target, Trial, in_bytes

INPUTS = 50


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Trial]:
    return cache(lambda target: Trial(target, tmp_path_factory.mktemp("fuzz")))


@pytest.mark.parametrize("target", TARGETS, ids=str)
@settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(random=st.randoms(use_true_random=False))
def test_damaged_files_are_read_or_refused_in_one_line(
    trial_of: Callable[[Target], Trial], target: Target, random: Random
) -> None:
    trial_of(target).attempt(random)


def test_damage_is_neither_always_nor_never_fatal(tmp_path: Path) -> None:
    """A target whose every input is refused at its first byte would prove nothing."""
    for number, target in enumerate(TARGETS):
        trial, seen = Trial(target, tmp_path / str(number)), set()
        for seed in range(200):
            seen.add(trial.attempt(Random(seed)).accepted)
            if len(seen) == 2:
                break
        assert seen == {True, False}, target


def faulty(read: Callable[[Path], object], *, writes: bool = False) -> Target:
    """A target that goes wrong as soon as its file is damaged."""

    def whole(folder: Path) -> list[Path]:
        (folder / "a").write_bytes(b"whole")
        return [folder / "a"]

    return Target(
        "faulty",
        whole,
        in_bytes,
        (lambda folder: None if (folder / "a").read_bytes() == b"whole" else read(folder),),
        writes,
    )


def fail(error: Exception) -> Any:
    raise error


def attempts(target: Target, folder: Path) -> list[bool]:
    """Return which of twenty inputs a target accepts."""
    trial = Trial(target, folder)
    return [trial.attempt(Random(seed)).accepted for seed in range(20)]


@pytest.mark.parametrize(
    ("read", "complaint"),
    [
        (lambda folder: fail(ValueError("odd")), "ValueError escaped: 'odd'"),
        (lambda folder: fail(MemoryError()), "MemoryError escaped"),
        (
            lambda folder: fail(DatasetError("two\nlines")),
            "a message that is not one printable line",
        ),
        (
            lambda folder: fail(DatasetError("red \x1b[31m")),
            "a message that is not one printable line",
        ),
        (lambda folder: fail(DatasetError("a" * 2000)), "of at most 1000 characters"),
        (lambda folder: fail(DatasetError("")), "a message that is not one printable line"),
        (lambda folder: (folder / "b").touch(), "did more than read"),
        (lambda folder: (folder.parent.parent / "outside").write_bytes(b""), "did more than read"),
        (lambda folder: (folder / "a").rename(folder / "b"), "did more than read"),
        (lambda folder: (folder.parent / "made").mkdir(), "did more than read"),
        (lambda folder: os.system("true"), "did more than read"),
        (lambda folder: subprocess.run(["true"], check=True), "did more than read"),
    ],
)
def test_the_harness_notices(
    tmp_path: Path, read: Callable[[Path], object], complaint: str
) -> None:
    with pytest.raises(DefectError, match=complaint):
        attempts(faulty(read), tmp_path / "trial")


@pytest.mark.parametrize(
    ("limit", "read", "complaint"),
    [
        ("LIMIT_S", lambda folder: spin(), r"still reading after 0\.2 s of work"),
        ("ASLEEP_S", lambda folder: time.sleep(999), r"still reading after 0\.2 s"),
    ],
)
def test_the_harness_reports_a_reader_that_does_not_return(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    read: Callable[[Path], object],
    complaint: str,
) -> None:
    monkeypatch.setattr(fuzzing, limit, 0.2)
    with pytest.raises(DefectError, match=complaint):
        attempts(faulty(read), tmp_path / "trial")


def test_the_harness_lets_only_those_write_that_may_and_only_there(tmp_path: Path) -> None:
    def writes(name: str) -> Target:
        return faulty(lambda folder: (folder / name).write_bytes(b""), writes=True)

    assert all(attempts(writes("b"), tmp_path / "may"))
    assert [path.name for path in (tmp_path / "may" / "files").iterdir()] == ["a"]
    for number, name in enumerate(("../b", "../../b")):
        with pytest.raises(DefectError, match="did more than read"):
            attempts(writes(name), tmp_path / str(number))


def spin() -> None:
    """Never return, and treat every exception as a damaged file."""
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_a_busy_machine_causes_no_defects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of other processes does not count as the reader's."""
    monkeypatch.setattr(fuzzing, "LIMIT_S", 0.2)
    trial = Trial(faulty(lambda folder: time.sleep(0.5)), tmp_path / "trial")
    assert all(trial.attempt(Random(seed)).seconds < 0.2 for seed in range(2))


def write_output(folder: Path) -> None:
    output = folder.parent / "output"
    (output / "inner").mkdir(parents=True)
    (output / "a").write_bytes(b"a")
    (output / "a").rename(output / "inner" / "a")
    shutil.copyfile(folder / "a", output / "b")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "b").touch(),
        lambda folder: (folder.parent / "output" / ".." / "b").touch(),
        lambda folder: (folder.parent / "output" / "a").rename(folder / "b"),
        lambda folder: shutil.copyfile(folder.parent / "output" / "b", folder / "a"),
    ],
)
def test_the_harness_reports_a_write_outside_the_output(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    def also(folder: Path) -> None:
        write_output(folder)
        (folder.parent / "output" / "a").touch()
        write(folder)

    assert all(attempts(faulty(write_output, writes=True), tmp_path / "good"))
    with pytest.raises(DefectError, match="did more than read"):
        attempts(faulty(also, writes=True), tmp_path / "bad")


def test_the_harness_lets_good_readers_be(tmp_path: Path) -> None:
    refuses = faulty(lambda folder: fail(DatasetError("damaged; make it again")))
    assert not all(attempts(refuses, tmp_path / "refuses"))
    assert all(attempts(faulty(lambda folder: None), tmp_path / "accepts"))
