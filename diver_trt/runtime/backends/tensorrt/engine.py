"""TensorRT as an engine: fixed addresses, and one stream for all networks.

One adapter for TensorRT-RTX and TensorRT proper. Whatever a run needs is allocated when the engines
are opened; afterwards there are copies between fixed addresses and launches, nothing else.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.errors import EngineError
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.interrupts import interrupts_held
from diver_trt.runtime.backends.tensorrt.kernel_cache import KernelCache, keeps_kernels
from diver_trt.runtime.backends.tensorrt.module import declared_shape, dtype_name, logger
from diver_trt.runtime.backends.tensorrt.plans import Plan
from diver_trt.runtime.engine import copy_checked
from diver_trt.runtime.ports import Ports
from diver_trt.tensors import TensorSpec, describe_declared


class Started:
    """TensorRT, started for the engines of a plan.

    Args:
        bundle: The bundle that the plan was built from.
        plan: The engines, which fit this machine; each is hashed, and looked up in the list of
            those that may run here, before it is deserialized.
        module: `tensorrt_rtx` or `tensorrt`.
        cuda: The stream and its memory.

    Attributes:
        log: What TensorRT reports to, see `logger`.
        runtime: TensorRT's own, which deserializes engines; None once it is stopped.

    Raises:
        EngineError: If TensorRT refuses to start.
    """

    def __init__(self, bundle: Bundle, plan: Plan, module: Any, cuda: Cuda) -> None:
        self.bundle, self.plan, self.module, self.cuda = bundle, plan, module, cuda
        self.log = logger(module)
        try:
            self.runtime: Any = module.Runtime(self.log)
        # The bindings raise TypeError where the library refuses to start.
        except Exception as cause:
            raise EngineError(f"TensorRT cannot start: {self.log.last}") from cause


class TrtEngine:
    """One network in TensorRT; see `diver_trt.runtime.engine.Engine` for the contract."""

    def __init__(
        self, started: Started, network: NetworkName, batch: int, scratch: tuple[int, int] | None
    ) -> None:
        self._started, self._name, self._cuda, self.batch = started, network, started.cuda, batch
        declared = started.bundle.networks[network]
        self._ports = Ports(network, declared.inputs, declared.outputs)
        self._releases: list[int] = []
        sidecar = started.plan.sidecars[network]
        needed = sidecar.memory.activation_bytes
        # TensorRT calls the logger meanwhile, and drops an interrupt that is raised there.
        with interrupts_held():
            self._engine: Any = self._deserialize()
            self._kernels = (
                KernelCache(self._engine, sidecar.engine.sha256)
                if keeps_kernels(started.module)
                else None
            )
            self._context: Any = self._create_context(
                scratch or (self._own(started.cuda.allocate(needed)), needed)
            )
        specs = self._ports.all
        self._device = {
            name: self._own(self._cuda.allocate(spec.size_bytes(batch)))
            for name, spec in specs.items()
        }
        self._host = {
            name: self._cuda.allocate_host(spec.concrete(batch), spec.dtype)
            for name, spec in specs.items()
        }
        self._releases.extend(array.ctypes.data for array in self._host.values())
        for name, address in self._device.items():
            self.bind(name, address)

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values into an input's buffer."""
        self._ports.require_input(name)
        self.place(name, values, self._device[name])

    def run(self) -> None:
        """Run the network on its own buffers and wait for it."""
        self.enqueue()
        self._cuda.synchronize()

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output."""
        self._ports.require_output(name)
        return self.fetch(name, self._device[name])

    def close(self) -> None:
        """Free the engine and its buffers."""
        if self._engine is None:
            return
        if self._kernels is not None:
            self._kernels.keep()
        self._ports.close()
        # What was made by the engine goes before the engine:
        # https://docs.nvidia.com/deeplearning/tensorrt/latest/architecture/how-trt-works.html
        self._context = self._kernels = None
        self._engine = None
        for address in self._releases:
            self._cuda.free(address)
        self._releases.clear()

    def bind(self, name: str, address: int) -> None:
        """Let a tensor lie at another device address from the next `enqueue` on.

        Raises:
            EngineError: If TensorRT refuses the address.
        """
        if not self._context.set_tensor_address(name, address):
            raise EngineError(
                f"TensorRT refuses address {address:#x} for {name} of the {self._name}"
            )

    def spec(self, name: str) -> TensorSpec:
        """Return an input's type and shape."""
        return self._ports.inputs[name]

    def address(self, name: str) -> int:
        """Return the device address of a tensor's own buffer."""
        return self._device[name]

    def place(self, name: str, values: NDArray[np.generic], address: int) -> None:
        """Copy values of exactly an input's type and shape to a device address.

        Raises:
            EngineError: If their type or shape differs, or the engine is closed.
        """
        self._ports.require_open()
        self._cuda.synchronize()  # an earlier copy may still read the page-locked array
        copy_checked(name, values, self._host[name])
        self._cuda.upload(address, self._host[name])

    def fetch(self, name: str, address: int) -> NDArray[np.generic]:
        """Copy a tensor of `name`'s type and shape from a device address and wait for it."""
        self._ports.require_open()
        self._cuda.download(self._host[name], address)
        self._cuda.synchronize()
        return self._host[name]

    def enqueue(self) -> None:
        """Put one run on the stream.

        Raises:
            EngineError: If TensorRT refuses it.
        """
        self._ports.require_open()
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            raise EngineError(f"TensorRT could not run the {self._name}: {self._started.log.last}")

    def capturable(self) -> bool:
        """Return whether this engine can be captured; True for versions that cannot answer."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(int(self._cuda.stream)))

    def _own(self, address: int) -> int:
        self._releases.append(address)
        return address

    def _deserialize(self) -> Any:
        started = self._started
        # Here, and not only where a plan is chosen, since a session may be opened by itself.
        if reason := started.plan.distrusted():
            raise EngineError(reason)
        data = started.plan.read(self._name)
        # TensorRT-RTX checks an engine before it loads it, and sets a bit for each fault.
        if hasattr(started.runtime, "get_engine_validity"):
            validity, bits = started.runtime.get_engine_validity(data)
            if validity == started.module.EngineValidity.INVALID:
                names = [
                    name
                    for name, bit in started.module.EngineInvalidityDiagnostics.__members__.items()
                    if int(bit) & int(bits)
                ]
                raise EngineError(
                    f"the {self._name} engine is not valid here: "
                    f"{', '.join(names) or started.log.last}; build the engines again"
                )
        engine = started.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"TensorRT cannot load the {self._name} engine: {started.log.last}")
        # A name that the engine does not have gets the mode NONE, and no error.
        modes = started.module.TensorIOMode
        for specs, mode in ((self._ports.inputs, modes.INPUT), (self._ports.outputs, modes.OUTPUT)):
            for name in specs:
                if engine.get_tensor_mode(name) != mode:
                    raise EngineError(
                        f"the {self._name} engine has no tensor {name} where the bundle has one; "
                        "build the engines again"
                    )
        for spec in self._ports.all.values():
            dtype = dtype_name(started.module, engine.get_tensor_dtype(spec.name))
            shape = declared_shape(engine.get_tensor_shape(spec.name))
            if not spec.agrees_with(dtype, shape, self.batch):
                raise EngineError(
                    f"the {self._name} engine has {describe_declared(spec.name, dtype, shape)}, "
                    f"expected {spec} at batch {self.batch}; "
                    "build the engines again"
                )
        return engine

    def _create_context(self, scratch: tuple[int, int]) -> Any:
        address, size_bytes = scratch
        if (needed := self._engine.device_memory_size_v2) > size_bytes:
            warnings.warn(
                f"the {self._name} engine needs {needed:,} bytes of scratch memory, but the "
                f"sidecars state {size_bytes:,}; allocating a block for it alone",
                RuntimeWarning,
                stacklevel=2,
            )
            address, size_bytes = self._own(self._cuda.allocate(needed)), needed
        # Else TensorRT would allocate scratch memory for each context, and none could be shared.
        strategy = self._started.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._kernels is None:
            context = self._engine.create_execution_context(strategy)
        else:
            self._kernels.config.set_execution_context_allocation_strategy(strategy)
            context = self._engine.create_execution_context(self._kernels.config)
        if context is None:
            raise EngineError(
                f"TensorRT cannot prepare the {self._name} engine: {self._started.log.last}"
            )
        context.set_device_memory(address, size_bytes)
        for name, spec in self._ports.inputs.items():
            if not context.set_input_shape(name, spec.concrete(self.batch)):
                raise EngineError(
                    f"the {self._name} engine does not take {name} at batch {self.batch}; build "
                    f"it with --batch {self.batch}"
                )
        return context
