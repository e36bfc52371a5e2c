"""A bundle's engines on one GPU, in TensorRT-RTX or TensorRT proper."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName, run_size
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.denoiser import TrtDenoiser
from diver_trt.runtime.backends.tensorrt.engine import Started, TrtEngine
from diver_trt.runtime.backends.tensorrt.plans import Plan


class TrtSession:
    """A plan's engines on one GPU; see `diver_trt.runtime.engine.Session` for the contract.

    Args:
        bundle: The bundle that the plan was built from.
        plan: The engines, which fit this machine.
        batch: Images per batch, within the plan's.
        module: `tensorrt_rtx` or `tensorrt`.
        cuda: The stream and its memory; closed with the session.
        shared_scratch: Whether all networks use one block of scratch memory, as they do while they
            are resident together; else each brings its own and takes it away.

    Raises:
        EngineError: If TensorRT cannot start.
        DeviceMemoryError: If the device has no room for the scratch memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        batch: int,
        module: Any,
        cuda: Cuda,
        shared_scratch: bool = True,
    ) -> None:
        self.name: str = plan.backend
        self.batch = batch
        self.started = Started(bundle, plan, module, cuda)
        # One block is enough, since only one network runs at a time.
        largest = max(sidecar.memory.activation_bytes for sidecar in plan.sidecars.values())
        self._scratch = (cuda.allocate(largest), largest) if shared_scratch else None

    def open(self, network: NetworkName) -> TrtEngine:
        """Deserialize a network and allocate its buffers for what it takes in one run."""
        return TrtEngine(self.started, network, run_size(network, self.batch), self._scratch)

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> TrtDenoiser:
        """Open the denoiser and capture the steps from `steps` down to 1."""
        return TrtDenoiser(self.open("denoiser"), self.started.cuda, table, steps)

    def close(self) -> None:
        """Free the scratch memory and the stream."""
        self.started.runtime = None
        self.started.cuda.close()
