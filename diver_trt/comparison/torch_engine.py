"""The torch model as an engine, the reference that the others are compared with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.comparison.blocks import Stages
from diver_trt.contract import NetworkName, Precision, contract, run_size
from diver_trt.errors import EngineError
from diver_trt.method.step import guided_step
from diver_trt.models.base import BaseModel
from diver_trt.models.denoiser import build_networks
from diver_trt.runtime.engine import copy_checked
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, SteppedDenoiser
from diver_trt.tensors import TensorSpec

TorchPrecision = Literal["fp32", "fp16", "bf16"]

REFERENCE_TOLERANCE = 1e-5
"""Largest relative L2 between the exporter's float32 networks and diffusers' own, which add the
same terms in another order.
"""

_DTYPES: dict[TorchPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class TorchSession:
    """A model's torch networks on the CPU, behind the runtime's `Session` protocol.

    Args:
        model: The loaded model.
        bundle: A bundle of it, for the shapes of the networks' inputs and outputs.
        batch: Images per batch.
        precision: Precision of the networks, as the exporter builds them. Conditions are float16
            for `"fp16"` and float32 otherwise, independent of the bundle's.

    Attributes:
        networks: The modules by name.
    """

    name: Any = "torch"  # not an EngineName: only a comparison opens it

    def __init__(
        self, model: BaseModel, bundle: Bundle, batch: int, precision: TorchPrecision
    ) -> None:
        self._model, self.batch = model, batch
        # bfloat16 networks take float32 inputs and outputs, because NumPy lacks bfloat16.
        borders: Precision = "fp16" if precision == "fp16" else "fp32"
        self._tensors = contract(
            bundle.image_size, bundle.latent_shape, bundle.layout, bundle.condition_width, borders
        )
        (self._pair,) = (spec for spec in self._tensors["denoiser"][0] if spec.name == "condition")
        self.networks: dict[NetworkName, Any] = dict(build_networks(model, _DTYPES[precision]))

    def open(self, network: NetworkName) -> TorchEngine:
        """Open a network at its size of one run."""
        return TorchEngine(
            self.networks[network], network, self._tensors[network], run_size(network, self.batch)
        )

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        """Open the denoiser for the steps from `steps` down to 1."""
        tensors = self._tensors["denoiser"]
        engine = TorchEngine(
            self.networks["denoiser"], "denoiser", tensors, self.batch, carry=CARRY
        )
        return SteppedDenoiser(engine, self._pair, table, steps)

    @torch.no_grad()
    def stages(self, latent: NDArray[np.float32], condition: NDArray[np.generic]) -> Stages:
        """Run the predictor once and keep its residual stream (`comparison.blocks.Stages`).

        Args:
            latent: z_k, [n, c, h, w] float32.
            condition: Class, then null, [2, n, M].
        """
        predictor = self.networks["denoiser"].predictor
        points = self._model.probe_points(predictor)
        seen: list[NDArray[np.float32]] = []
        hooks = [
            # Copied, since a later layer may write into its input.
            layer.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].float().numpy().copy())
            )
            for layer in points.values()
        ]
        try:
            twice = torch.from_numpy(np.concatenate([latent, latent]))
            prediction = predictor(twice, torch.from_numpy(condition).flatten(0, 1)).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return Stages(
            dict(zip(points, seen, strict=True)),
            prediction.reshape(2, len(latent), *prediction.shape[1:]),
        )

    def close(self) -> None:
        """Drop the networks."""
        self.networks.clear()


@torch.no_grad()
def check_reference(model: BaseModel, bundle: Bundle) -> None:
    """Compare the networks that stand for the model with its own code, on one image and step.

    Raises:
        EngineError: If they differ by more than `REFERENCE_TOLERANCE`.
    """
    # The reference of a comparison is this project's rewriting of the original modules. A mistake
    # in it would be in the engines and in the reference alike, and no comparison would show it.
    draw = torch.Generator().manual_seed(0)
    latent, anchor, noise = torch.randn((3, 1, *bundle.latent_shape), generator=draw)
    # One colour plus noise, so that group normalisation has a mean to subtract.
    image = torch.rand((1, 3, 1, 1), generator=draw) + 0.2 * torch.randn(
        (1, 3, bundle.image_size, bundle.image_size), generator=draw
    )
    # Between two steps: at time 0, where a chain ends and SiT starts, all sinusoids are the same.
    time = torch.from_numpy(bundle.process.times(2)).mean().expand(2)
    # A class, and the null class, whose label follows the last one.
    label = torch.tensor([0, model.num_classes])
    # A row of the step table in which every number matters: a different guidance scale for each
    # channel, a, b, four weights of semantic guidance, and two bounds of the variance.
    scales = [1 + 0.5 * channel for channel in range(bundle.latent_shape[0])]
    row = torch.tensor([*scales, 0.9, 0.2, 0.1, 0.05, -0.1, -0.07, -3.0, -2.0])
    ours = build_networks(model, torch.float32)
    # [2, M] => [2, 1, M]: of one image, for the class, then for the null class.
    condition = ours["conditioner"](time, label)[:, None]
    found = {
        "encoder": ours["encoder"](image),
        "denoiser": ours["denoiser"](latent, anchor, noise, condition, row),
        "decoder": ours["decoder"](latent),
    }
    both = model.original_predict(torch.cat([latent, latent]), time, label)
    predicted, variance = both[:, : len(scales)], both[:1, len(scales) :]
    following = guided_step(
        latent, anchor, noise, predicted[:1], predicted[1:], variance, row, bundle.layout, torch.exp
    )
    expected = {
        "encoder": model.original_encode(image),
        "denoiser": following,
        "decoder": model.original_decode(latent),
    }
    for name in found:
        error = float(
            torch.linalg.norm(found[name] - expected[name]) / torch.linalg.norm(expected[name])
        )
        if not error <= REFERENCE_TOLERANCE:  # true for NaN
            raise EngineError(
                f"the exporter's {name} is a relative {error:.1e} away from {model.model_id} in "
                f"diffusers {version('diffusers')}, "
                f"expected at most {REFERENCE_TOLERANCE:.0e}. This is a defect of diver-trt, or "
                "diffusers has changed; please report it."
            )


class TorchEngine:
    """One torch module with fixed buffers; see `runtime.engine.Engine` for the protocol."""

    def __init__(
        self,
        module: Any,
        network: NetworkName,
        tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        batch: int,
        carry: tuple[str, str] | None = None,
    ) -> None:
        self.batch = batch
        self._module, self._carry = module, carry
        inputs, outputs = tensors
        self._ports = Ports(network, inputs, outputs)
        self._inputs = {spec.name: spec.allocate(batch) for spec in inputs}
        self._outputs = {spec.name: spec.allocate(batch) for spec in outputs}

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._ports.require_input(name)
        copy_checked(name, values, self._inputs[name])

    def run(self) -> None:
        """Run the module; with a carry, its output becomes the next run's input."""
        self._ports.require_open()
        with torch.no_grad():
            result = self._module(*(torch.from_numpy(values) for values in self._inputs.values()))
        (output,) = self._outputs.values()
        # Into the buffer that `read` returns; `copy_` converts to its type.
        torch.from_numpy(output).copy_(result)
        if self._carry is not None:
            np.copyto(self._inputs[self._carry[1]], self._outputs[self._carry[0]])

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        return self._outputs[name]

    def close(self) -> None:
        """Drop the module and the buffers."""
        self._ports.close()
        self._module = None
        self._inputs.clear()
        self._outputs.clear()
