"""OpenVINO as an engine: static shapes, and buffers bound once, on Intel's and other CPUs.

The graphs are the bundle's own ONNX files. On Intel's GPUs and NPUs the same code runs, but it was
never tried there.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import EIGHT_BIT_PRECISIONS, NetworkName, run_size
from diver_trt.errors import DiverError, EngineError, MissingExtraError
from diver_trt.graph_file import Found, require_tensors
from diver_trt.runtime.backends import BACKENDS, Finding
from diver_trt.runtime.backends.failures import imported, reported
from diver_trt.runtime.cache import cache_folder, read_cached, write_cached
from diver_trt.runtime.cores import available_cores
from diver_trt.runtime.engine import Opened, Placement, copy_checked
from diver_trt.runtime.ports import Ports
from diver_trt.runtime.stepping import CARRY, Carry, SteppedDenoiser, turns
from diver_trt.tensors import Dim

_REINSTALL = "reinstall it with `pip install --force-reinstall openvino`"

DEVICES = {"openvino": "CPU", "openvino-gpu": "GPU", "openvino-npu": "NPU"}
"""OpenVINO's own name of the device that each engine runs on."""

CACHED_ON_CPU_BYTES = 64 << 20
"""On the CPU only networks with fewer bytes of weights are kept compiled.

What is kept has the weights in it, once for every batch size: 2.7 GB each for DiT-XL/2.
"""

ACTIVATIONS_PER_SCALE = 128
"""Channels of a token that share a scale where a CPU multiplies int8 weights.

Of 32, 64 and 128 it is the fastest, and costs the images no more than 64
(benchmarks/README.md, "What eight bits cost"). The scales of a token depend on that token alone, so
an image does not depend on its batch.
"""

_CACHE_SCHEMA = 1


def available(name: str, bundle: Bundle) -> bool:  # noqa: ARG001
    """Return whether `auto` should try this engine: on the CPU, where OpenVINO is installed.

    GPUs and NPUs must be named, since nothing was ever measured there.
    """
    return DEVICES[name] == "CPU" and find_spec("openvino") is not None


def open_session(name: str, bundle: Bundle, placement: Placement) -> Opened:
    """Open a bundle for the placement's batch, at most as many as there are images."""
    return Opened(OpenVinoSession(bundle, placement.balanced_batch(), name), None)


def probe(name: str, bundle: Bundle) -> Iterator[Finding]:
    """Import OpenVINO and run a network, which is the only proof that it works."""
    title, on_cpu = BACKENDS[name].title, DEVICES[name] == "CPU"
    try:
        version = import_openvino().__version__.partition("-")[0]
        session = OpenVinoSession(bundle, 1, name, keep=False)
        with closing(session.open("encoder")) as engine:
            engine.run()
    except MissingExtraError as error:
        if on_cpu:  # one finding is enough for a package that is not installed
            yield Finding(title, "missing", "not installed", error.command)
    except DeviceNotFoundError as error:
        yield Finding(title, "missing", str(error))
    except DiverError as error:
        yield Finding(title, "broken", str(error))
    else:
        yield Finding(title, "works", f"openvino {version} ran a network", recovers=True)


class DeviceNotFoundError(EngineError):
    """OpenVINO does not have the device on this machine."""


class OpenVinoSession:
    """A bundle on OpenVINO; see `diver_trt.runtime.engine.Session` for the contract.

    Args:
        bundle: The bundle; each network's files are hashed before they are loaded.
        batch: Images per batch.
        name: The engine, a key of `DEVICES`.
        keep: Whether compiled networks are kept for the next run, in the user's cache folder.

    Raises:
        DeviceNotFoundError: If OpenVINO does not have the device.
        EngineError: If OpenVINO cannot be loaded.
        MissingExtraError: If OpenVINO is not installed.
    """

    def __init__(
        self, bundle: Bundle, batch: int, name: str = "openvino", *, keep: bool = True
    ) -> None:
        self.bundle, self.batch, self.name = bundle, batch, name
        self._compiler = _Compiler(import_openvino(), bundle, DEVICES[name], keep=keep)

    def open(self, network: NetworkName) -> OpenVinoEngine:
        """Open a network for what it takes in one run."""
        return OpenVinoEngine(self._compiler, network, run_size(network, self.batch))

    def open_denoiser(self, table: NDArray[np.float32], steps: int) -> SteppedDenoiser:
        """Open the denoiser for the steps from `steps` down to 1."""
        engine = OpenVinoEngine(self._compiler, "denoiser", self.batch, CARRY)
        return SteppedDenoiser(engine, self.bundle.condition_pair, table, steps)

    def close(self) -> None:
        """Nothing is shared."""


class OpenVinoEngine:
    """One network in OpenVINO; see `diver_trt.runtime.engine.Engine` for the contract.

    The buffers are numpy arrays that OpenVINO reads and writes in place. With a carry the engine
    alternates between two infer requests, bound so that each run's output is the next one's input.

    Args:
        compiler: Compiles the network.
        network: The network.
        batch: Size of its dynamic axis.
        carry: An output and the input that the next run reads it as, or None.
    """

    def __init__(
        self, compiler: _Compiler, network: NetworkName, batch: int, carry: Carry | None = None
    ) -> None:
        self.batch, self._name = batch, network
        declared = compiler.bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        # Before the network is compiled, so that a batch that no memory holds fails here, cleanly.
        with reported("OpenVINO", f"cannot give the {network} its buffers"):
            buffers = {spec.name: spec.allocate(batch) for spec in self._ports.all.values()}
        self._turns = turns(buffers, carry)
        compiled = compiler.compiled(network, batch)
        with reported("OpenVINO", f"cannot give the {network} its buffers"):
            self._requests = [_bound(compiler.runtime, compiled, turn) for turn in self._turns]
        self._next = 0

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into the buffer that the next run reads."""
        self._ports.require_input(name)
        copy_checked(name, values, self._turns[self._next][name])

    def run(self) -> None:
        """Run the network; with a carry, swap the two buffers it alternates between."""
        self._ports.require_open()
        with reported("OpenVINO", f"failed in the {self._name}"):
            # Without `share_outputs` every run would copy its outputs again.
            self._requests[self._next].infer(share_outputs=True)
        self._next = (self._next + 1) % len(self._requests)

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        # The turn before the next one ran last; index -1 is the other one, or the only one.
        return self._turns[self._next - 1][name]

    def close(self) -> None:
        """Free the network and the buffers."""
        self._ports.close()
        # The requests first: they write into the buffers.
        self._requests.clear()
        self._turns.clear()


def _bound(runtime: Any, compiled: Any, buffers: dict[str, NDArray[np.generic]]) -> Any:
    """Return an infer request that reads and writes these arrays, which must outlive it."""
    request = compiled.create_infer_request()
    for name, buffer in buffers.items():
        # The request keeps the address alone: an array that is freed gives wrong values, no error.
        request.set_tensor(name, runtime.Tensor(buffer, shared_memory=True))
    return request


class _Compiler:
    """Compiles the networks of a bundle for a device, or reads them as an earlier run kept them."""

    def __init__(self, runtime: Any, bundle: Bundle, device: str, *, keep: bool) -> None:
        self.runtime, self.bundle, self._device = runtime, bundle, device
        self._version = str(runtime.__version__)
        with reported("OpenVINO", "cannot start"):
            self._core, process = _core(runtime)
            devices = list(self._core.available_devices)
        # A machine with two GPUs has GPU.0 and GPU.1; GPU alone is then the first one.
        if device not in {found.partition(".")[0] for found in devices}:
            raise DeviceNotFoundError(
                f"OpenVINO {self._version.partition('-')[0]} finds no {device} here (only "
                f"{', '.join(devices)}); install its driver, or use --engine openvino"
            )
        self._forked = os.getpid() != process
        folder = cache_folder() if keep else None
        self._folder = folder / "openvino" if folder else None

    def compiled(self, network: NetworkName, size: int) -> Any:
        """Return a network, compiled for one size of its dynamic axis.

        Raises:
            BundleError: If its files have changed since the export, or belong to another network.
            EngineError: If OpenVINO cannot compile it.
            DeviceMemoryError: If there is not enough memory.
        """
        graph = self.bundle.verified(network)
        kept = self._kept_at(network, size)
        if kept is not None and (blob := read_cached(kept)) is not None:
            # A blob that no longer loads (after a driver update, say) is compiled again.
            with suppress(RuntimeError):
                return self._core.import_model(blob, self._device, self._settings())
        with reported("OpenVINO", f"cannot open the {network}"):
            model = self._core.read_model(graph)
            inputs, outputs = _found(model.inputs), _found(model.outputs)
        declared = self.bundle.networks[network]
        require_tensors(graph, inputs, outputs, declared.inputs, declared.outputs)
        with reported("OpenVINO", f"cannot compile the {network}"):
            # Static shapes: OpenVINO then chooses its kernels and plans its memory only once.
            model.reshape({spec.name: list(spec.concrete(size)) for spec in declared.inputs})
            compiled = self._core.compile_model(model, self._device, self._settings())
            if kept is not None:
                write_cached(kept, compiled.export_model().getvalue())
        return compiled

    def _settings(self) -> dict[str, Any]:
        # https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
        settings: dict[str, Any] = {"EXECUTION_MODE_HINT": "ACCURACY"}
        if self._device == "CPU" or self.bundle.precision == "fp32":
            # By default GPUs, and CPUs with AMX, would compute an fp32 graph in half precision.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if self._device == "CPU":
            settings |= {
                # One stream, so that all cores work on one batch; with more streams each core
                # would need a batch of its own. A stream is a thread that OpenVINO keeps for the
                # next network, and a fork does not copy threads: a forked process would wait for
                # one forever. With none it computes on the thread that calls, to the same bytes.
                "NUM_STREAMS": 0 if self._forked else 1,
                "INFERENCE_NUM_THREADS": available_cores(),
                # Pinned threads of two recoveries would share the first cores, and leave the
                # others idle.
                "ENABLE_CPU_PINNING": False,
            }
            if self.bundle.precision in EIGHT_BIT_PRECISIONS:
                # ACCURACY turns it off, and int8 weights would then be multiplied in float32. A
                # processor without VNNI does that in any case.
                settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = ACTIVATIONS_PER_SCALE
        return settings

    def _kept_at(self, network: NetworkName, size: int) -> Path | None:
        """Return where a compiled network is kept: its name is a hash of all that it depends on."""
        files = self.bundle.networks[network].files
        if self._folder is None or (
            self._device == "CPU" and sum(file.size_bytes for file in files) >= CACHED_ON_CPU_BYTES
        ):
            return None
        with reported("OpenVINO", f"cannot identify the {self._device}"):
            # What the device's own plugin requires to be equal, such as its name and driver.
            properties = {
                name: str(self._core.get_property(self._device, name))
                for name in self._core.get_property(self._device, "CACHING_PROPERTIES")
            }
        identity = {
            "schema": _CACHE_SCHEMA,
            "openvino": self._version,
            "device": self._device,
            "properties": properties,
            "settings": self._settings(),
            "files": [file.sha256 for file in files],
            "size": size,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{network}-{digest[:32]}.blob"


@cache
def _core(runtime: Any) -> tuple[Any, int]:
    """Return the only `Core`, which is never freed, and the process that opened it.

    A process that was forked from that one has the same.
    """
    core = runtime.Core()
    # On Linux its CPU plugin gives the thread that loads it a stack for signal handlers, and unmaps
    # that stack when the Core is freed. If another Core was opened meanwhile, or another thread
    # frees it, signals still use the stack, and the next Ctrl-C is a segmentation fault:
    # https://github.com/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/sigstack_manager.cpp
    # Nor may a forked process free it at its end: it would wait for threads that it does not have.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    return core, os.getpid()


def _found(ports: Any) -> list[Found]:
    found: list[Found] = []
    for port in ports:
        shape: list[Dim | None] = [
            dim.get_length() if dim.is_static else None for dim in port.partial_shape
        ]
        found.append((port.any_name, port.element_type.to_dtype().name, shape))
    return found


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    Raises:
        MissingExtraError: If it is not installed.
        EngineError: If it cannot be loaded.
    """
    with _without_telemetry():
        openvino = imported("openvino", "openvino", "engine openvino", _REINSTALL)
    if not hasattr(openvino, "Core"):
        raise EngineError(
            f"openvino is installed but cannot be loaded (it has no Core); {_REINSTALL}"
        )
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let `import openvino_telemetry` fail during the block.

    Importing OpenVINO imports its converter, which imports openvino_telemetry: that writes to
    ~/intel and may send events. Where it is missing, the converter takes the stub in
    openvino/tools/ovc/telemetry_stub.py instead. The only setting
    that switches it off is a file in ~/intel, for all programs of the user.
    """
    name = "openvino_telemetry"
    if name in sys.modules:  # a program that imported it has decided for itself
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what `import` takes for "not there"
    try:
        yield
    finally:
        del sys.modules[name]
