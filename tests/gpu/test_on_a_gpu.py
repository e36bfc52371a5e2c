"""What only a GPU can answer.

Every test here skips without one; what they said, where they ran, is in docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.errors import EngineError
from diver_trt.runtime.backends import onnx as onnx_backend
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.cuda import Cuda, import_cuda
from diver_trt.runtime.backends.tensorrt.denoiser import TrtDenoiser
from diver_trt.runtime.backends.tensorrt.memory import plan_memory
from diver_trt.runtime.backends.tensorrt.plans import read_plan
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import resolve_target
from diver_trt.runtime.recoverer import Recoverer
from tests.conftest import DIGITS_MODEL, save_random_pipeline
from tests.gpu.device import linked, needs_cuda_provider, needs_gpu, rtx_lists_it

pytestmark = pytest.mark.gpu

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


def psnr(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the peak signal-to-noise ratio of all pixels, in dB."""
    return float(10 * np.log10(255**2 / np.square(found - expected).mean()))


@needs_gpu
def test_an_engine_recovers_what_the_reference_does(
    built: Bundle, digits: Bundle, images: Any
) -> None:
    found, expected = (
        recover(built, images, "rtx").astype(float),
        recover(digits, images, "onnx").astype(float),
    )
    assert np.abs(found - expected).mean() < 1
    assert psnr(found, expected) >= 40


@needs_cuda_provider
def test_fused_nodes_recover_what_the_graph_does(
    export_to: Callable[..., Bundle], images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = export_to(DIGITS_MODEL, "fp16")
    found = recover(half, images, "onnx-cuda").astype(float)
    monkeypatch.setattr(onnx_backend, "with_fused_nodes", lambda graph, precision: graph)
    expected = recover(half, images, "onnx-cuda").astype(float)
    assert psnr(found, expected) >= 40


@needs_cuda_provider
def test_one_network_at_a_time_recovers_the_same(
    export_to: Callable[..., Bundle], images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = export_to(DIGITS_MODEL, "fp16")
    expected = recover(half, images, "onnx-cuda")
    monkeypatch.setattr("diver_trt.runtime.session.Opened.resident", False)
    np.testing.assert_array_equal(recover(half, images, "onnx-cuda"), expected)


@needs_gpu
def test_a_replayed_graph_equals_plain_enqueues(
    built: Bundle, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = recover(built, images, "rtx")
    monkeypatch.setattr(TrtDenoiser, "_capture", lambda self: None)
    np.testing.assert_array_equal(replayed, recover(built, images, "rtx"))


@needs_gpu
def test_the_device_takes_what_the_plan_says(
    export_to: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Within 15 %, on a model large enough that the driver's rounding does not decide.

    The model has DiT-B's width and depth, some 270 MB in fp16. What it takes is measured as what
    disappears from the device when the networks are opened, less what an empty session takes.
    """
    model = save_random_pipeline(
        tmp_path / "base",
        num_attention_heads=12,
        attention_head_dim=64,
        num_layers=12,
        sample_size=32,
    )
    bundle = linked(export_to(model, "fp16"), tmp_path)
    target = resolve_target("rtx", [], Profile(4, 4, 4))
    list(build_plan(bundle, target))
    plan = plan_memory(read_plan(target.folder(bundle)), "resident")
    probe = Cuda(import_cuda())
    before, _ = probe.memory()
    with Recoverer(bundle, engine="rtx", batch=4):
        after, _ = probe.memory()
    probe.close()
    assert before - after == pytest.approx(plan.peak_bytes, rel=0.15)


@pytest.mark.skipif(
    rtx_lists_it() is not False, reason="needs a CUDA device that TensorRT-RTX does not list"
)
def test_a_gpu_that_rtx_does_not_list_is_refused_in_words(digits: Bundle) -> None:
    """For compute capability 9.0 or similar, the builder says so and compiles for no other GPU."""
    with pytest.raises(EngineError, match=r"and TensorRT-RTX .* compiles for"):
        resolve_target("rtx", [], Profile(1, 1, 1))
