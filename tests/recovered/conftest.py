"""Fixtures of the tests of this folder: inputs, faults, and folders of the fake run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.recovered.job import Job
from diver_trt.recovered.journal import Journal
from tests.conftest import digit_folder, made_once, save_random_pipeline
from tests.fuzzing import shards
from tests.recovered.fake_run import recover
from tests.recovered.job_runs import quick_job


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Ten distilled digits of three classes."""
    return digit_folder(tmp_path / "few", {2: 3, 3: 4, 8: 3})


@pytest.fixture
def job(digits: Bundle) -> Job:
    """Ten digits, one of each class."""
    return quick_job(digits)


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the write to the journal after so many images fail, once."""

    def arm(count: int) -> None:
        append, calls = Journal.append, iter(range(1, 10_000))

        def failing(self: Journal, entry: dict[str, Any]) -> None:
            if next(calls) == count + 1:
                raise OSError(errno.EIO, "Input/output error")
            append(self, entry)

        monkeypatch.setattr(Journal, "append", failing)

    return arm


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An undisturbed run."""
    recover(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
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


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two shards of layout npz with soft labels: three digits, one of them left out."""
    (tmp_path / "shards").mkdir()
    return [path.parent for path in shards("npz", 2, tmp_path / "shards")]


@pytest.fixture(scope="session")
def thousand(shared: Path, export_to: Callable[..., Bundle]) -> Bundle:
    """A tiny model of ImageNet's thousand classes with random weights, for images of 16 pixels."""

    def save(folder: Path) -> None:
        save_random_pipeline(folder, num_embeds_ada_norm=1000, num_layers=1)

    return export_to(made_once(shared / "thousand", save))
