"""When memory runs out the batch is halved; when an engine fails the run can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import different
from diver_trt.errors import DeviceMemoryError, EngineError
from diver_trt.runtime.backends.onnx import OnnxEngine
from diver_trt.tensors import TensorSpec
from tests.cli.command import fails
from tests.recovered.commands import journal_keys, recover, recovered


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
def test_out_of_device_memory_halves_the_batch(
    few: Path, tmp_path: Path, out_of_memory_above: Callable[[int], None]
) -> None:
    expected = recovered(few, tmp_path / "expected")
    out_of_memory_above(2)
    result = recover(few, tmp_path / "out", "--batch", 8)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: out of memory: continuing in smaller batches") == 1
    assert "in 5 batches of up to 2" in result.stderr
    assert different(expected, tmp_path / "out") == []
    shutil.rmtree(tmp_path / "out")
    out_of_memory_above(0)
    assert "out of memory: a gigabyte failed" in fails(recover(few, tmp_path / "out"))


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
@pytest.mark.parametrize("overwrite", [True, False])
def test_out_of_host_memory_halves_the_batch_too(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Memory is short for the networks' buffers, which `--overwrite` needs before it deletes."""
    expected = recovered(few, tmp_path / "expected")
    if overwrite:
        recovered(few, tmp_path / "out", "--seed", 1)
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
    assert result.stderr.count("warning: out of memory: continuing in smaller batches") == 1
    assert "in 5 batches of up to 2" in result.stderr
    assert different(expected, tmp_path / "out") == []


def test_out_of_memory_anywhere_else_is_one_line(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 2.00 TiB")

    monkeypatch.setattr("diver_trt.recovered.run.read_dataset", short)
    assert "out of memory (Unable to allocate 2.00 TiB); close other programs" in fails(
        recover(few, tmp_path / "out")
    )


def test_a_run_whose_engine_failed_is_resumed(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recovered(few, tmp_path / "expected")
    run, runs = OnnxEngine.run, iter(range(10_000))

    def poisoned(self: OnnxEngine) -> None:
        if self._name == "denoiser" and next(runs) >= 10:
            raise EngineError("an illegal memory access was encountered")
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxEngine, "run", poisoned)
        assert "an illegal memory access was encountered" in fails(
            recover(few, tmp_path / "out", "--batch", 2)
        )
    assert len(journal_keys(tmp_path / "out")) == 4
    assert recover(few, tmp_path / "out").exit_code == 0
    assert different(expected, tmp_path / "out") == []
