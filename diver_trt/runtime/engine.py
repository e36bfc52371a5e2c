"""What a recovery needs of an engine, and how one is chosen by name.

    name         runs on
    onnx         ONNX Runtime, CPU: the reference
    onnx-cuda    ONNX Runtime, CUDA provider
    auto         onnx-cuda where a session can really be made on it, else onnx
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from diver_trt.bundle import Bundle, NetworkName
from diver_trt.errors import EngineError, MissingExtraError
from diver_trt.tensors import TensorSpec, describe

EngineName = Literal["onnx", "onnx-cuda"]
ENGINES: tuple[EngineName, ...] = ("onnx", "onnx-cuda")

Carry = tuple[str, str]
"""An output and the input that the next run reads it as."""


class Engine(Protocol):
    """One network of a bundle, opened for a fixed batch, its buffers allocated then.

    A protocol and not a base class: ONNX Runtime's engine implements it here, TensorRT's will, torch's only in comparisons, and they
    share no code. An engine opened with a carry alternates two buffers: each run's output is the next run's input in place.
    """

    batch: int

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        """Copy values of exactly the input's type and shape into its buffer; raises EngineError otherwise."""

    def run(self) -> None:
        """Run the network once on what its input buffers hold."""

    def read(self, name: str) -> NDArray[np.generic]:
        """Return the last run's output as an array on the host; the next run overwrites it."""

    def close(self) -> None:
        """Free everything; closing twice is allowed, using a closed engine raises EngineError."""


def open_engine(engine: EngineName, bundle: Bundle, network: NetworkName, batch: int, carry: Carry | None = None) -> Engine:
    """Open one network of a bundle.

    Args:
        engine: `"onnx"` or `"onnx-cuda"`.
        bundle: The bundle; the network's files are hashed before they are loaded.
        network: Which of its networks.
        batch: Size of the dynamic axis, fixed from now on.
        carry: Output and input that a loop feeds back, if any.

    Raises:
        BundleError: The network's files have changed since the export.
        EngineError: The engine cannot run here, or not this network.
        MissingExtraError: ONNX Runtime is not installed.
    """
    from diver_trt.runtime.onnx_engine import OnnxEngine

    return OnnxEngine(bundle, network, batch, carry, device="cuda" if engine == "onnx-cuda" else "cpu")


def resolve_engine(engine: str, bundle: Bundle) -> EngineName:
    """Return the engine to use; `"auto"` becomes `"onnx-cuda"` only if a session opens on it.

    A provider that is listed may still fail to load its libraries, so making a session is the only proof.

    Raises:
        EngineError: No engine has this name.
    """
    if engine == "auto":
        try:
            open_engine("onnx-cuda", bundle, "encoder", batch=1).close()
        except MissingExtraError:
            raise
        except EngineError:
            return "onnx"
        return "onnx-cuda"
    for name in ENGINES:
        if engine == name:
            return name
    raise EngineError(f"there is no engine {engine!r}; expected auto, {', '.join(ENGINES)}")


def check_values(spec: TensorSpec, values: NDArray[np.generic], batch: int) -> None:
    """Check an array against the input it is meant for.

    Raises:
        EngineError: Its type or shape differs.
    """
    if values.dtype != spec.dtype or values.shape != spec.concrete(batch):
        wanted = f"{spec.dtype}[{', '.join(map(str, spec.concrete(batch)))}]"
        raise EngineError(f"{spec.name}: got {describe(values)}, but the engine was opened for {wanted}; open it for that batch, or convert")
