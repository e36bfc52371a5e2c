"""The model itself as an engine: what the others are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diver_trt.bundle import Bundle, NetworkName, run_size
from diver_trt.errors import EngineError
from diver_trt.export.checkpoint import Model
from diver_trt.export.networks import build_networks
from diver_trt.runtime.denoiser import CARRY, SteppedDenoiser
from diver_trt.runtime.engine import copy_checked


class TorchSession:
    """A model's torch networks behind the runtime's contract (`diver_trt.runtime.engine.Session`), on the CPU.

    Args:
        model: The loaded model.
        bundle: A bundle of it, for the networks' inputs and outputs; its precision decides what the networks compute in.
        batch: Images per batch.
    """

    name = "torch"

    def __init__(self, model: Model, bundle: Bundle, batch: int) -> None:
        self.bundle, self.batch = bundle, batch
        self._networks: dict[NetworkName, Any] = dict(build_networks(model, torch.float16 if bundle.precision == "fp16" else torch.float32))

    def open(self, network: NetworkName) -> TorchEngine:
        """Open a network for what it takes in one run."""
        return TorchEngine(self._networks[network], self.bundle, network, run_size(network, self.batch))

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        """Open the denoiser for the steps from `steps` down to 1."""
        engine = TorchEngine(self._networks["denoiser"], self.bundle, "denoiser", self.batch, carry=CARRY)
        return SteppedDenoiser(engine, self.bundle.networks["denoiser"].inputs[2], table, steps)

    def close(self) -> None:
        """Drop the networks."""
        self._networks.clear()


class TorchEngine:
    """One torch module with fixed buffers; see `diver_trt.runtime.engine.Engine` for the contract."""

    def __init__(self, module: Any, bundle: Bundle, network: NetworkName, batch: int, carry: tuple[str, str] | None = None) -> None:
        self.batch = batch
        self._module, self._name, self._carry = module, network, carry
        declared = bundle.networks[network]
        self._inputs = {spec.name: spec.allocate(batch) for spec in declared.inputs}
        self._outputs = {spec.name: spec.allocate(batch) for spec in declared.outputs}

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._require_open()
        if name not in self._inputs:
            raise EngineError(f"the {self._name} has no input {name!r}; expected {', '.join(self._inputs)}")
        copy_checked(name, values, self._inputs[name])

    def run(self) -> None:
        """Run the module; with a carry, its output becomes the next run's input."""
        self._require_open()
        with torch.no_grad():
            result = self._module(*(torch.from_numpy(values) for values in self._inputs.values()))
        (output,) = self._outputs.values()
        np.copyto(output, result.numpy())
        if self._carry is not None:
            np.copyto(self._inputs[self._carry[1]], self._outputs[self._carry[0]])

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._require_open()
        if name not in self._outputs:
            raise EngineError(f"the {self._name} has no output {name!r}; expected {', '.join(self._outputs)}")
        return self._outputs[name]

    def close(self) -> None:
        """Drop the module and the buffers."""
        self._module = None
        self._inputs.clear()
        self._outputs.clear()

    def _require_open(self) -> None:
        if self._module is None:
            raise EngineError(f"the {self._name} engine is closed; open a new one")
