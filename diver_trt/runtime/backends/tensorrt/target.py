"""What engines are built for: a TensorRT, the GPUs that they must run on, and batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt.bundle import Bundle
from diver_trt.contract import HALF_PRECISIONS, NetworkName, run_size
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.runtime.backends.tensorrt.cuda import find_gpu, import_cuda
from diver_trt.runtime.backends.tensorrt.module import import_tensorrt, this_machine
from diver_trt.runtime.backends.tensorrt.plans import PLANS
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Machine, Profile
from diver_trt.runtime.cache import cache_folder

FLOAT32_FROM = 80
"""First compute capability, times ten, with float32 matrix products in TensorRT-RTX 1.7; below it
the compiler reports "FP32 GEMM is not supported".
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What engines are built for.

    Attributes:
        backend: `"rtx"` or `"trt"`.
        machine: The TensorRT that compiles, and the GPU that is here, if one is.
        compute_capabilities: GPUs that the engines must run on: `("sm86",)`.
        batches: Batches of images: one size (static: least memory, CUDA graphs) or a range.
        workspace_bytes: Limit on the builder's scratch memory; None leaves it to TensorRT.
    """

    backend: Backend
    machine: Machine
    compute_capabilities: tuple[str, ...]
    batches: Profile
    workspace_bytes: int | None = None

    @property
    def timing_cache(self) -> Path | None:
        """Timing cache of the next build here; None for TensorRT-RTX, or without a home."""
        if self.backend == "rtx" or (folder := cache_folder()) is None:
            return None
        # Measurements hold for one release of TensorRT and one kind of GPU.
        return folder / f"timing-{self.machine.version}-{'-'.join(self.compute_capabilities)}.cache"

    @property
    def name(self) -> str:
        """Name of the target's folder: `rtx-1.7.1.116-sm86-b8`."""
        batches = str(self.batches).replace(":", "-")
        capabilities = "-".join(self.compute_capabilities)
        return f"{self.backend}-{self.machine.version}-{capabilities}-b{batches}"

    def folder(self, bundle: Bundle) -> Path:
        """Return where the target's engines lie in a bundle."""
        return bundle.path / PLANS / self.name

    def profile(self, network: NetworkName) -> Profile:
        """Return the sizes of a network's dynamic axis."""
        return Profile(
            *(
                run_size(network, batch)
                for batch in (self.batches.minimum, self.batches.optimum, self.batches.maximum)
            )
        )


def resolve_target(
    backend: Backend, sms: Sequence[int], batches: Profile, workspace_bytes: int | None = None
) -> Target:
    """Return the target for this machine's TensorRT.

    Args:
        backend: `"rtx"` or `"trt"`.
        sms: Compute capabilities, times ten, such as 86, for `"rtx"` only; none means the GPU that
            is here, or else 8.0 and up.
        batches: Batches of images.
        workspace_bytes: Limit on the builder's scratch memory.

    Raises:
        MissingExtraError: If the backend is not installed.
        EngineError: If the backend cannot compile for a capability, or needs a GPU and there is
            none.
    """
    module = import_tensorrt(backend)
    try:
        # TensorRT-RTX builds without a GPU, and so without CUDA's bindings.
        gpu = find_gpu(import_cuda())
    except MissingExtraError:
        gpu = None
    machine = this_machine(backend, module, gpu)
    if backend == "trt":
        if sms:
            raise EngineError(
                "--sm is for backend rtx: TensorRT proper compiles for the GPU that is here; "
                "leave it out, or use --backend rtx"
            )
        if machine.compute_capability is None:
            raise EngineError(
                "backend trt compiles on the GPU that will run the engine, and none is here; run "
                "it on the device, or use --backend rtx"
            )
        capabilities: tuple[str, ...] = (machine.compute_capability,)
    else:
        capabilities = _rtx_capabilities(module, machine, sms)
    return Target(
        backend=backend,
        machine=machine,
        compute_capabilities=capabilities,
        batches=batches,
        workspace_bytes=workspace_bytes,
    )


def _rtx_capabilities(module: Any, machine: Machine, sms: Sequence[int]) -> tuple[str, ...]:
    """Return the GPUs that TensorRT-RTX compiles for: those requested, the one here, or 8.0 and up.

    Raises:
        EngineError: If it does not compile for one of them.
    """
    # From the installed package, since releases differ.
    known = sorted(
        int(name[2:]) for name in dir(module.ComputeCapability) if re.fullmatch(r"SM\d+", name)
    )
    for sm in sms:
        if sm not in known:
            raise EngineError(
                f"--sm {sm}: TensorRT-RTX {machine.version} compiles for "
                f"{', '.join(map(str, known))} only"
            )
    present = int(machine.compute_capability[2:]) if machine.compute_capability else None
    if present is not None and present not in known and not sms:
        raise EngineError(
            f"this GPU is {machine.compute_capability}, and TensorRT-RTX {machine.version} "
            f"compiles for {', '.join(map(str, known))} only; name another GPU with --sm, or use "
            "--backend trt"
        )
    chosen = sorted(set(sms)) or (
        # Without a GPU to look at, Turing is left out: fp32 bundles do not compile for it.
        [present] if present in known else [sm for sm in known if sm >= FLOAT32_FROM]
    )
    return tuple(f"sm{sm}" for sm in chosen)


def check_target(bundle: Bundle, target: Target) -> None:
    """Refuse a target that the compiler has no kernels for, before anything is compiled.

    Raises:
        EngineError: If TensorRT-RTX should compile a bundle that computes in float32 for a GPU that
            it has no float32 matrix products for.
    """
    if target.backend != "rtx" or bundle.precision in HALF_PRECISIONS:
        return
    without = [name for name in target.compute_capabilities if int(name[2:]) < FLOAT32_FROM]
    if without:
        turing = ", ".join(without)
        raise EngineError(
            f"{bundle.path}: is an {bundle.precision} bundle, and TensorRT-RTX has no float32 "
            f"matrix products for {turing}, only for sm{FLOAT32_FROM} and later. Export the model "
            "with `diver-trt export MODEL BUNDLE --precision fp16` and build that bundle, or name "
            "a later GPU with --sm, such as --sm 86; `--engine onnx` runs this one on any machine"
        )
