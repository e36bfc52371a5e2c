"""The registry of engines that `auto`, `doctor`, `compare`, reports and help texts iterate.

An engine is one module that implements `BackendModule`, and one entry of `BACKENDS`. The entries
come in the order in which `--engine auto` tries them. This file imports no engine, so that
`diver-trt --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.runtime.engine import Opened, Placement

AUTO = "auto"

State = Literal["works", "missing", "broken", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one probe.

    Attributes:
        subject: What was probed, such as `"ONNX Runtime, CPU"`.
        state: `"works"`; `"missing"`, not installed or not present, which is fine unless it is
            needed; `"broken"`, present but unusable; or `"note"`.
        detail: What was found.
        remedy: The command or step that repairs it, or None.
        recovers: Whether it proves that an engine can recover images on this machine.
    """

    subject: str
    state: State
    detail: str
    remedy: str | None = None
    recovers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One engine that `--engine` can name.

    Attributes:
        name: The name that `--engine` takes.
        title: What it is, for people.
        extra: The extra of diver-trt that installs it.
        packages: Distributions whose versions a report lists.
        module: Dotted name of the module that implements `BackendModule`.
        compiled: Whether it runs engines that `diver-trt build` compiled for one kind of GPU and
            a range of batch sizes, and not the bundle's own graphs.
        gpu: Whether it runs on a GPU.
    """

    name: str
    title: str
    extra: str
    packages: tuple[str, ...]
    module: str
    compiled: bool = False
    gpu: bool = False

    def load(self) -> BackendModule:
        """Import the module, which imports neither the engine's package nor torch."""
        return cast("BackendModule", import_module(self.module))


class BackendModule(Protocol):
    """What the module of a backend provides. `name` is the backend's own, for modules with two."""

    def available(self, name: str, bundle: Bundle) -> bool:
        """Return whether `auto` should try this engine on a bundle."""

    def open_session(self, name: str, bundle: Bundle, placement: Placement) -> Opened:
        """Open a bundle.

        Raises:
            EngineError: If the engine cannot or must not run here, or was not built.
            DeviceMemoryError: If nothing fits the batch, the budget or what is free on the device.
            MissingExtraError: If the engine's package is not installed.
        """

    def probe(self, name: str, bundle: Bundle) -> Iterator[Finding]:
        """Try the engine on this machine with the smallest network of a bundle."""


_ONNX = "diver_trt.runtime.backends.onnx"
_OPENVINO = "diver_trt.runtime.backends.openvino"
_TENSORRT = "diver_trt.runtime.backends.tensorrt.backend"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    # Compiled engines first: whoever built them expects them to run. ONNX Runtime on the CPU last:
    # where nothing works, its error is the one that is raised, and names the default install.
    for backend in (
        Backend(
            name="rtx",
            title="TensorRT-RTX",
            extra="rtx",
            packages=("tensorrt-rtx",),
            module=_TENSORRT,
            compiled=True,
            gpu=True,
        ),
        Backend(
            name="trt",
            title="TensorRT",
            extra="tensorrt",
            packages=("tensorrt",),
            module=_TENSORRT,
            compiled=True,
            gpu=True,
        ),
        Backend(
            name="onnx-cuda",
            title="ONNX Runtime, CUDA",
            extra="gpu",
            packages=("onnxruntime-gpu",),
            module=_ONNX,
            gpu=True,
        ),
        *(
            Backend(
                name=name,
                title=f"OpenVINO, {device}",
                extra="openvino",
                packages=("openvino",) if device == "CPU" else (),
                module=_OPENVINO,
                gpu=name == "openvino-gpu",
            )
            for name, device in (
                ("openvino", "CPU"),
                ("openvino-gpu", "Intel GPU"),
                ("openvino-npu", "Intel NPU"),
            )
        ),
        Backend(
            name="onnx",
            title="ONNX Runtime, CPU",
            extra="cpu",
            packages=("onnxruntime",),
            module=_ONNX,
        ),
    )
}


def engine_choices() -> str:
    """Return the names that `--engine` takes, for help texts and errors."""
    return ", ".join((*BACKENDS, AUTO))
