"""The sidecar of an engine: a file beside it with its identity, its memory and its target."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from diver_trt.bundle import Bundle
from diver_trt.contract import NetworkName
from diver_trt.documents import Document, Limits
from diver_trt.errors import EngineError, UsageError, shown
from diver_trt.files import FileRecord
from diver_trt.structs import Invalid, Sha256, Size, dump, whole

SIDECAR_SCHEMA = 1
LIMITS = Limits(64 * 1024, 1000)
"""Of a sidecar, which takes 2 kB."""
MAX_BATCH = 999_999

Backend = Literal["rtx", "trt"]

Batch = Annotated[int, whole(1, MAX_BATCH)]


NO_GPU = "there is no NVIDIA GPU here"
"""Why an engine cannot be tried where nothing else speaks against it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Batches an engine was built for; a static engine has one size only."""

    minimum: Batch
    optimum: Batch
    maximum: Batch

    def check(self) -> None:
        """Compare the sizes with each other, when they have been read.

        Raises:
            Invalid: If they do not rise.
        """
        if not self.minimum <= self.optimum <= self.maximum:
            raise Invalid(
                f"found sizes {self.minimum}, {self.optimum}, {self.maximum}, expected sizes that "
                "rise from minimum over optimum to maximum",
                "minimum",
            )

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read `8` (static) or `1:4:8` (minimum, optimum, maximum).

        Raises:
            UsageError: If the text is neither, or the sizes do not rise.
        """
        # re.ASCII: \d also matches the digits of other scripts. Six of them are 999,999.
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}):(\d{1,6}))?", text, re.ASCII)
        # 8 => [8, 8, 8]; a text that does not match => [0], which is refused below
        sizes = [int(size or found[1]) for size in found.groups()] if found else [0]
        if sizes[0] < 1 or sizes != sorted(sizes):
            raise UsageError(
                f"batch is {shown(repr(text))}; expected one size such as 8, or MIN:OPT:MAX such "
                "as 1:4:8, from 1 to 999,999 and rising from MIN to MAX"
            )
        return cls(*sizes)

    @property
    def static(self) -> bool:
        """Whether there is one size only."""
        return self.minimum == self.maximum

    def __contains__(self, batch: int) -> bool:
        return self.minimum <= batch <= self.maximum

    def __str__(self) -> str:
        return str(self.maximum) if self.static else f"{self.minimum}:{self.optimum}:{self.maximum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Device memory of one engine in bytes; the first three are the compiler's own figures.

    Attributes:
        weights_bytes: Weights, there as long as the engine is.
        persistent_bytes: What each execution context keeps.
        activation_bytes: Scratch while it runs, at the largest batch; networks that run in turn can
            share it.
        io_bytes: Inputs and outputs at the largest batch, by their shapes.
    """

    weights_bytes: Size
    persistent_bytes: Size
    activation_bytes: Size
    io_bytes: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an engine may depend on: the TensorRT that is installed and the GPU that is present.

    Attributes:
        backend: `"rtx"` or `"trt"`.
        version: Its full version, such as `"1.7.1.116"`.
        compute_capability: `"sm86"`, or None without a GPU.
        gpu: The GPU's name, or None.
        driver: Newest CUDA version that the driver supports, such as `"12.6"`, or None.
        cuda: Version of the CUDA runtime that the bindings are for, or None.
        multiprocessors: The GPU's number of multiprocessors, or None.
        total_bytes: The GPU's memory, or None.
    """

    backend: Backend
    version: str
    compute_capability: str | None = None
    gpu: str | None = None
    driver: str | None = None
    cuda: str | None = None
    multiprocessors: Size | None = None
    total_bytes: Size | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """One engine, as its builder saw it: the fields of `NETWORK.json`.

    Attributes:
        schema: Version of the sidecar.
        network: Which network of the bundle.
        precision: The bundle's.
        onnx_sha256: Hash of the graph that it was built from.
        weights_sha256: Hash of the graph's external data, if it had any.
        engine: The engine file.
        built_on: TensorRT, and for backend `"trt"` the GPU and driver, of the machine that built
            it.
        compute_capabilities: GPUs that it runs on: `("sm75", "sm86")`.
        profile: Its batches; for the conditioner, conditions.
        memory: What it needs on the device.
        dtypes: Number of layer outputs per type, read back from the network that was compiled.
        workspace_bytes: Limit on the builder's scratch memory, if one was set.
        build_seconds: How long the build took.
        skipped_tactics: Tactics that the builder left out for lack of memory; harmless, but the
            engine may be slower.
        tool_version: diver-trt's.
    """

    schema: int = SIDECAR_SCHEMA
    network: NetworkName
    precision: str
    onnx_sha256: Sha256
    weights_sha256: Sha256 | None
    engine: FileRecord
    built_on: Machine
    compute_capabilities: tuple[str, ...]
    profile: Profile
    memory: Memory
    dtypes: Mapping[str, Size]
    workspace_bytes: Size | None
    build_seconds: float
    skipped_tactics: Size
    tool_version: str

    def check(self) -> None:
        """Compare the names, when they have been read.

        Raises:
            Invalid: If the engine is not named for its network.
        """
        if self.engine.name != (expected := f"{self.network}.engine"):
            raise Invalid(
                f"found {shown(repr(self.engine.name))}, expected {expected}", "engine", "name"
            )

    def write(self, path: Path) -> None:
        """Write the sidecar as JSON."""
        path.write_text(json.dumps(dump(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read a sidecar.

        Raises:
            EngineError: If it is missing, damaged, or of another schema.
        """
        document = Document.read(path, EngineError, LIMITS)
        document.require_schema(SIDECAR_SCHEMA, "build the engine again")
        return document.load(cls)

    def is_of(self, bundle: Bundle) -> bool:
        """Return whether the engine was built from this export of the model."""
        network = bundle.networks[self.network]
        weights = network.weights.sha256 if network.weights else None
        return (self.onnx_sha256, self.weights_sha256) == (network.graph.sha256, weights)

    def misfit(self, bundle: Bundle, machine: Machine) -> str | None:
        """Return why this engine does not fit this bundle or machine, or None if it does.

        An engine of TensorRT-RTX is valid for one release of it; one of TensorRT proper for one
        release and one kind of GPU.
        """
        here, built = machine, self.built_on
        if not self.is_of(bundle):
            return "it was built from another export of the model"
        if built.backend != here.backend:
            return f"it is for backend {built.backend}, not {here.backend}"
        if built.version != here.version:
            return (
                f"it was built by version {shown(built.version)}, and {here.version} is installed"
            )
        # After what is wrong in any case: an engine that only lacks a GPU is not called broken.
        if here.compute_capability is None:
            return NO_GPU
        if here.compute_capability not in self.compute_capabilities:
            targets = shown(", ".join(self.compute_capabilities))
            return f"it is for {targets}, and this GPU is {here.compute_capability}"
        # TensorRT proper chose its kernels by measuring them on the GPU that it built on.
        if built.backend == "trt" and built.gpu != here.gpu:
            return f"it was built on {shown(str(built.gpu))}, and this GPU is {here.gpu}"
        if built.driver and here.driver and _numbers(built.driver) > _numbers(here.driver):
            driver = shown(built.driver)
            return (
                f"it was built under a driver for CUDA {driver}, and this one is for {here.driver}"
            )
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version))


def sidecar_facts(sidecar: Sidecar) -> dict[str, Any]:
    """Return what `inspect` shows of an engine."""
    return {
        "targets": list(sidecar.compute_capabilities),
        "batches": str(sidecar.profile),
        "size_bytes": sidecar.engine.size_bytes,
        "weights_bytes": sidecar.memory.weights_bytes,
        "persistent_bytes": sidecar.memory.persistent_bytes,
        "scratch_bytes": sidecar.memory.activation_bytes,
        "io_bytes": sidecar.memory.io_bytes,
    }
