"""The GPU of this machine, if TensorRT-RTX can use one: tests that need it skip by themselves."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import onnxruntime
import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import DiverError
from diver_trt.runtime.backends.tensorrt.builder import build_plan
from diver_trt.runtime.backends.tensorrt.cuda import Cuda, import_cuda, present_gpu
from diver_trt.runtime.backends.tensorrt.module import import_tensorrt
from diver_trt.runtime.backends.tensorrt.plans import read_plan
from diver_trt.runtime.backends.tensorrt.session import TrtSession
from diver_trt.runtime.backends.tensorrt.sidecar import Profile
from diver_trt.runtime.backends.tensorrt.target import resolve_target
from diver_trt.runtime.engine import Session


@cache
def rtx_lists_it() -> bool | None:
    """Return whether TensorRT-RTX says that it compiles for this GPU; None without one of both."""
    found = present_gpu()
    if found is None:
        return None
    try:
        capabilities = import_tensorrt("rtx").ComputeCapability
    except DiverError:
        return None
    return hasattr(capabilities, found.compute_capability.upper())


needs_gpu = pytest.mark.skipif(
    not rtx_lists_it(), reason="needs a CUDA device that TensorRT-RTX compiles for"
)


needs_cuda_provider = pytest.mark.skipif(
    present_gpu() is None or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a CUDA device, and ONNX Runtime for it",
)


def rtx_session(bundle: Bundle, tmp_path: Path, batch: int = 2) -> Session:
    """Build a bundle's engines for this GPU and open them."""
    copy = linked(bundle, tmp_path)
    target = resolve_target("rtx", [], Profile(batch, batch, batch))
    list(build_plan(copy, target))
    return TrtSession(
        copy, read_plan(target.folder(copy)), batch, import_tensorrt("rtx"), Cuda(import_cuda())
    )


def linked(bundle: Bundle, folder: Path) -> Bundle:
    """Return the same bundle in a folder where engines may be built."""
    copy = folder / "bundle"
    copy.mkdir()
    for path in bundle.path.iterdir():
        if path.is_file():
            shutil.copy(path, copy)  # weights that are a link out of the bundle are refused
    return Bundle.open(copy)
