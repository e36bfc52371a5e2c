"""OpenVINO as an engine: CPUs, Intel GPUs and NPUs, with static shapes and buffers bound once.

OpenVINO reads the bundle's ONNX files as they are. `--engine openvino` runs on the CPU;
`openvino:GPU`, `openvino:GPU.1`, `openvino:NPU` and so on are OpenVINO's own device names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle, NetworkName, run_size
from diver_trt.errors import (
    BundleError,
    DeviceMemoryError,
    DiverError,
    EngineError,
    MissingExtraError,
    shown,
)
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.onnx import available_cores
from diver_trt.runtime.engine import Opened, Placement, copy_checked
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, SteppedDenoiser

CPU = "CPU"


def available(name: str, bundle: Bundle) -> bool:  # noqa: ARG001
    """Return whether `auto` should try OpenVINO: if it is installed and ONNX Runtime is not.

    ONNX Runtime is the reference, so it goes first until measurements say otherwise.
    """
    return find_spec("openvino") is not None and find_spec("onnxruntime") is None


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open a bundle for the placement's batch, at most as many as there are images."""
    return Opened(OpenVinoSession(bundle, placement.balanced_batch, device_of(name)), None)


def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
    """List OpenVINO's devices and run the smallest network on each."""
    title = BACKENDS[name].title
    try:
        openvino = import_openvino()
    except MissingExtraError as error:
        yield Finding(title, "missing", "not installed", error.command)
        return
    except DiverError as error:
        yield Finding(title, "broken", str(error))
        return
    version = openvino.__version__.partition("-")[0]
    for device in openvino.Core().available_devices:
        subject = f"{title}, {device}"
        try:
            OpenVinoSession(bundle, 1, device).open("encoder").close()
        except DiverError as error:
            yield Finding(subject, "broken", str(error))
        else:
            engine = "openvino" if device == CPU else f"openvino:{device}"
            detail = f"openvino {version} opened a network; --engine {engine}"
            yield Finding(subject, "works", detail, recovers=True)


def device_of(name: str) -> str:
    """Return OpenVINO's device name of an engine's: `"openvino:NPU"` is `"NPU"`."""
    return name.partition(":")[2] or CPU


def cache_folder() -> Path:
    """Return where compiled networks are cached: `$XDG_CACHE_HOME/diver-trt/openvino`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "diver-trt" / "openvino"


def import_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingExtraError: If it is not installed.
        EngineError: If it is installed and cannot be loaded.
    """
    try:
        import openvino
    except ModuleNotFoundError as cause:
        raise MissingExtraError("openvino", "openvino", "engine openvino") from cause
    except ImportError as cause:
        raise EngineError(
            f"openvino is installed but cannot be loaded ({cause}); "
            "reinstall it with `pip install 'diver-trt[openvino]'`"
        ) from cause
    if not hasattr(openvino, "Core"):
        raise EngineError(
            "openvino is installed but incomplete; "
            "reinstall it with `pip install --force-reinstall 'diver-trt[openvino]'`"
        )
    return openvino


class OpenVinoSession:
    """A bundle on OpenVINO; see `diver_trt.runtime.engine.Session` for the contract.

    Args:
        bundle: The bundle; each network's files are hashed before they are loaded.
        batch: Images per batch.
        device: OpenVINO's name of a device, such as `"CPU"` or `"GPU.0"`.

    Raises:
        EngineError: If OpenVINO has no such device here.
    """

    def __init__(self, bundle: Bundle, batch: int, device: str = CPU) -> None:
        self._openvino = import_openvino()
        self._core = self._openvino.Core()
        # "GPU" stands for "GPU.0", and is listed so only where there is one.
        devices = self._core.available_devices
        if not any(device in (found, found.partition(".")[0]) for found in devices):
            raise EngineError(
                f"OpenVINO has no device {device!r} here (only {', '.join(devices) or 'none'}); "
                "name one of these, or install its driver"
            )
        self.bundle, self.batch, self.device = bundle, batch, device
        self.name = "openvino" if device == CPU else f"openvino:{device}"

    def open(self, network: NetworkName) -> OpenVinoEngine:
        """Compile a network for what it takes in one run.

        Raises:
            BundleError: If the network's files have changed since the export.
            EngineError: If OpenVINO cannot compile it for the device.
            DeviceMemoryError: If there is no room for it.
        """
        size = run_size(network, self.batch)
        return OpenVinoEngine(self._openvino, self._core, self.bundle, network, size, self.device)

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        """Compile the denoiser for the steps from `steps` down to 1."""
        engine = OpenVinoEngine(
            self._openvino, self._core, self.bundle, "denoiser", self.batch, self.device, CARRY
        )
        return SteppedDenoiser(engine, self.bundle.networks["denoiser"].inputs[2], table, steps)

    def close(self) -> None:
        """Free nothing: networks share nothing."""


class OpenVinoEngine:
    """One network in OpenVINO; see `diver_trt.runtime.engine.Engine` for the contract.

    Inputs and outputs are numpy arrays that OpenVINO uses in place on the CPU, and copies to and
    from other devices. With a carry, two infer requests share two buffers: what one writes, the
    other reads.
    """

    def __init__(
        self,
        openvino: Any,
        core: Any,
        bundle: Bundle,
        network: NetworkName,
        batch: int,
        device: str,
        carry: tuple[str, str] | None = None,
    ) -> None:
        self.batch = batch
        self._name, self._carry = network, carry
        declared = bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        graph = bundle.verified(network)
        with _reported(f"cannot open the {network} on {device}"):
            model = core.read_model(graph)
            _require_declared(model, self._ports, graph)
            model.reshape({name: spec.concrete(batch) for name, spec in self._ports.inputs.items()})
            compiled = core.compile_model(model, device, _settings(device, bundle.precision))
            self._buffers = {name: spec.allocate(batch) for name, spec in self._ports.all.items()}
            self._requests: list[Any] = [self._bind(openvino, compiled, self._buffers)]
            if carry is not None:
                output, source = carry
                swapped = {output: self._buffers[source], source: self._buffers[output]}
                buffers = {**self._buffers, **swapped}
                self._requests.append(self._bind(openvino, compiled, buffers))
        self._turn = 0

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._ports.require_input(name)
        copy_checked(name, values, self._buffer(name))

    def run(self) -> None:
        """Run the network; with a carry, the next run reads what this one wrote."""
        self._ports.require_open()
        with _reported(f"failed in the {self._name}"):
            self._requests[self._turn].infer()
        self._turn = (self._turn + 1) % len(self._requests)

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        # After a run with a carry, what it wrote is the buffer that the next run reads.
        carried = self._carry is not None and name == self._carry[0]
        return self._buffer(self._carry[1] if carried and self._carry else name)

    def close(self) -> None:
        """Free the compiled network and the buffers."""
        self._ports.close()
        self._requests.clear()
        self._buffers.clear()

    def _buffer(self, name: str) -> NDArray[np.generic]:
        if self._turn == 1 and self._carry is not None and name in self._carry:
            output, source = self._carry
            name = source if name == output else output
        return self._buffers[name]

    def _bind(self, openvino: Any, compiled: Any, buffers: dict[str, NDArray[Any]]) -> Any:
        request = compiled.create_infer_request()
        for name in self._ports.all:
            request.set_tensor(name, openvino.Tensor(buffers[name], shared_memory=True))
        return request


def _settings(device: str, precision: str) -> dict[str, Any]:
    """Return the properties to compile with.

    Precision is in the graph: on the CPU everything is computed in float32, since the float16 and
    bfloat16 hints were slower there (benchmarks/README.md). NPUs compute in float16 only and
    refuse the hint.
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(cache_folder())}
    if device.startswith(CPU):
        settings["INFERENCE_PRECISION_HINT"] = "f32"
        settings["INFERENCE_NUM_THREADS"] = available_cores()
    elif device.startswith("GPU"):
        settings["INFERENCE_PRECISION_HINT"] = "f16" if precision == "fp16" else "f32"
    return settings


def _require_declared(model: Any, ports: Ports, graph: Path) -> None:
    """Hold the tensors of a graph against the manifest's.

    Raises:
        BundleError: If a name differs.
    """
    pairs = (("inputs", model.inputs, ports.inputs), ("outputs", model.outputs, ports.outputs))
    for kind, found, specs in pairs:
        names = sorted(port.any_name for port in found)
        if names != sorted(specs):
            raise BundleError(
                f"{graph}: has the {kind} {shown(', '.join(names))}, expected "
                f"{', '.join(specs)}; export the model again"
            )


@contextmanager
def _reported(action: str) -> Iterator[None]:
    """Turn OpenVINO's exceptions, whose only class is RuntimeError, into one line.

    Raises:
        DeviceMemoryError: If there is not enough memory.
        EngineError: If anything else failed.
    """
    try:
        yield
    except DiverError:
        raise
    except Exception as cause:
        # The first lines name OpenVINO's source files; the last one says what happened.
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = shown(lines[-1] if lines else type(cause).__name__)
        if isinstance(cause, MemoryError) or "alloc" in str(cause).lower():
            raise DeviceMemoryError(
                f"out of memory: OpenVINO {action} ({reason}); use a smaller --batch"
            ) from cause
        raise EngineError(f"OpenVINO {action}: {reason}") from cause
