"""The cache of TensorRT-RTX's kernels, against the stand-in: its logic, never TensorRT itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diver_trt.bundle import Bundle
from tests.stand_in import (
    StandInEngine,
    StandInRuntimeCache,
    stand_in_session,
    write_stand_in_plan,
)

Start = Callable[[], list[str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diver-trt" / "tensorrt-rtx"


@pytest.fixture
def start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Open and close the decoder, and return which graphs were compiled."""
    plan = write_stand_in_plan(bundle, batch=2)

    def run() -> list[str]:
        monkeypatch.setattr(StandInEngine, "compiled", [])
        session = stand_in_session(bundle, plan)
        session.open("decoder").close()
        session.close()
        return [Path(onnx).stem for onnx in StandInEngine.compiled]

    return run


def test_the_second_start_compiles_nothing(cache: Path, start: Start) -> None:
    assert start() == ["decoder"]
    (kept,) = cache.glob("*.kernels")
    written = kept.stat().st_mtime_ns
    assert start() == []
    assert kept.stat().st_mtime_ns == written  # what is there already is not written again


def test_kernels_are_found_again_whatever_the_umask(cache: Path, start: Start) -> None:
    before = os.umask(0o002)  # of users who are alone in their group
    try:
        assert (start(), start()) == (["decoder"], [])
    finally:
        os.umask(before)


def test_kernels_that_tensorrt_refuses_are_compiled_and_replaced(
    cache: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setattr(StandInRuntimeCache, "VERSION", "1.8.0.1")
    assert start() == ["decoder"]
    assert start() == []


def test_the_real_tensorrt_rtx_has_every_call_that_is_made() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert {"create_runtime_cache", "set_runtime_cache"} <= set(dir(trt.IRuntimeConfig))
    assert "set_execution_context_allocation_strategy" in dir(trt.IRuntimeConfig)
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))
    assert "create_runtime_config" in dir(trt.ICudaEngine)
