"""What a build of TensorRT proper keeps between runs; nothing here needs TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

from diver_trt.runtime.backends.tensorrt.sidecar import Machine, Profile
from diver_trt.runtime.backends.tensorrt.target import Target

TARGET = Target(
    backend="trt",
    machine=Machine(backend="trt", version="10.3.0"),
    compute_capabilities=("sm87",),
    batches=Profile.parse("4"),
)


def test_a_relative_cache_folder_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert TARGET.timing_cache == tmp_path / ".cache" / "diver-trt" / "timing-10.3.0-sm87.cache"


def test_a_user_without_a_home_builds_without_a_timing_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert TARGET.timing_cache is None
