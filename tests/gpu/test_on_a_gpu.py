"""What only a GPU can answer. Every test here skips without one; what they said, where they ran, is in docs/engines.md."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.export.engine_builder import build_plan, resolve_target
from diver_trt.runtime.cuda import Cuda, import_cuda
from diver_trt.runtime.memory import plan_memory
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.trt_engine import TrtDenoiser
from diver_trt.sidecar import Profile, read_plan
from tests.conftest import DIGITS_MODEL
from tests.gpu.device import linked, needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]

LABELS = [3, 1, 3, 9, 0, 3]


@pytest.fixture
def built(export_to: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """The digits in fp16 with engines for this GPU."""
    bundle = linked(export_to(DIGITS_MODEL, "fp16"), tmp_path)
    list(build_plan(bundle, resolve_target("rtx", [], Profile(4, 4, 4))))
    return bundle


def recover(bundle: Bundle, images: Any, engine: str) -> NDArray[np.uint8]:
    with Recoverer(bundle, engine=engine, batch=4) as recoverer:
        return np.stack([sample.image for sample in recoverer(images, LABELS)])


def test_an_engine_recovers_what_the_reference_does(built: Bundle, digits: Bundle, images: Any) -> None:
    found, expected = recover(built, images, "rtx").astype(float), recover(digits, images, "onnx").astype(float)
    assert np.abs(found - expected).mean() < 1
    psnr = 10 * np.log10(255**2 / np.square(found - expected).mean())
    assert psnr >= 40


def test_a_replayed_graph_equals_plain_enqueues(built: Bundle, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = recover(built, images, "rtx")
    monkeypatch.setattr(TrtDenoiser, "_capture", lambda self: None)
    np.testing.assert_array_equal(replayed, recover(built, images, "rtx"))


def test_the_device_takes_what_the_plan_says(built: Bundle) -> None:
    """Engine memory, measured as what disappears from the device when the networks are opened, within 15 % of the plan's."""
    (folder,) = (path for path in (built.path / "plans").iterdir() if path.is_dir())
    plan = plan_memory(read_plan(folder), "resident")
    probe = Cuda(import_cuda())
    before, _ = probe.memory()
    with Recoverer(built, engine="rtx", batch=4):
        after, _ = probe.memory()
    probe.close()
    assert before - after == pytest.approx(plan.peak_bytes, rel=0.15)


@pytest.mark.skipif("DIVER_TRT_REAL_BUNDLE" not in os.environ, reason="needs DIVER_TRT_REAL_BUNDLE, an fp16 bundle of the real size")
def test_the_real_size_takes_what_the_plan_says(tmp_path: Path) -> None:
    bundle = linked(Bundle.open(os.environ["DIVER_TRT_REAL_BUNDLE"]), tmp_path)
    target = resolve_target("rtx", [], Profile(1, 1, 1))
    list(build_plan(bundle, target))
    plan = plan_memory(read_plan(target.folder(bundle)), "resident")
    probe = Cuda(import_cuda())
    before, _ = probe.memory()
    with Recoverer(bundle, engine="rtx", batch=1):
        after, _ = probe.memory()
    probe.close()
    assert before - after == pytest.approx(plan.peak_bytes, rel=0.15)
