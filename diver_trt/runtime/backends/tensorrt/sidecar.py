"""The sidecar of an engine: a file beside it with its identity, its memory and its target.

Engines lie in the bundle under `plans/TARGET/NETWORK.engine`, each with `NETWORK.json`. An engine
is code: it is deserialized only after its sidecar was compared with this machine, its bytes
against the sidecar's hash, and that hash against the list of engines that may run here
(`runtime/backends/tensorrt/trust.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from diver_trt.bundle import NETWORKS, Bundle, NetworkName
from diver_trt.contained_file import open_contained, resolved_inside
from diver_trt.errors import EngineError, UsageError, printable, shown
from diver_trt.fields import Document, Limits
from diver_trt.files import FileRecord, stream_sha256
from diver_trt.runtime.backends.tensorrt.trust import is_registered, register

SIDECAR_SCHEMA = 1
PLANS = "plans"
LIMITS = Limits(64 * 1024, 1000)
"""Of a sidecar, which takes 2 kB."""
MAX_PLANS = 100
"""Folders in `plans` that are looked at: one per backend, release, GPU and batch."""
MAX_BATCH = 999_999

Backend = Literal["rtx", "trt"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


@dataclass(frozen=True, slots=True)
class Profile:
    """Batches an engine was built for; a static engine has one size only."""

    minimum: int
    optimum: int
    maximum: int

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read `8` (static) or `1:4:8` (minimum, optimum, maximum).

        Raises:
            UsageError: If the text is neither, or the sizes do not rise.
        """
        if not re.fullmatch(r"\d{1,6}(:\d{1,6}:\d{1,6})?", text):
            raise UsageError(
                f"batch is {text!r}; expected one size such as 8, or MIN:OPT:MAX such as 1:4:8"
            )
        sizes = [int(part) for part in text.split(":")]
        profile = cls(*sizes) if len(sizes) == 3 else cls(sizes[0], sizes[0], sizes[0])
        if not 1 <= profile.minimum <= profile.optimum <= profile.maximum:
            raise UsageError(
                f"batch is {text!r}; expected sizes of 1 or more that rise from MIN to MAX"
            )
        return profile

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

    weights_bytes: int
    persistent_bytes: int
    activation_bytes: int
    io_bytes: int


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
    multiprocessors: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """One engine, as its builder saw it.

    Attributes:
        network: Which network of the bundle.
        precision: The bundle's.
        opset: The graph's.
        onnx_sha256: Hash of the graph that it was built from.
        weights_sha256: Hash of the graph's external data, if it had any.
        engine: The engine file.
        built_on: TensorRT, and for backend `"trt"` the GPU and driver, of the machine that built
            it.
        compute_capabilities: GPUs that it runs on: `("sm75", "sm86")`.
        profile: Its batches; for the conditioner, conditions.
        memory: What it needs on the device.
        dtypes: Number of layer outputs per type, read back from the network that was compiled.
        flags: The builder's flags; the types of a strongly typed network are not among them.
        optimization_level: The builder's.
        workspace_bytes: Limit on the builder's scratch memory, if one was set.
        timing_cache_sha256: Hash of the timing cache after the build, for backend `"trt"`.
        build_seconds: How long the build took.
        build_peak_bytes: Largest host memory of the building process until then.
        skipped_tactics: Tactics that the builder left out for lack of memory; harmless, but the
            engine may be slower.
        tool_version: diver-trt's.
    """

    network: NetworkName
    precision: str
    opset: int
    onnx_sha256: str
    weights_sha256: str | None
    engine: FileRecord
    built_on: Machine
    compute_capabilities: tuple[str, ...]
    profile: Profile
    memory: Memory
    dtypes: Mapping[str, int]
    flags: tuple[str, ...]
    optimization_level: int | None
    workspace_bytes: int | None
    timing_cache_sha256: str | None
    build_seconds: float
    build_peak_bytes: int
    skipped_tactics: int
    tool_version: str

    def write(self, path: Path) -> None:
        """Write the sidecar as JSON."""
        path.write_text(
            json.dumps({"schema": SIDECAR_SCHEMA, **asdict(self)}, indent=1) + "\n",
            encoding="utf-8",
        )

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read a sidecar.

        Raises:
            EngineError: It is missing, damaged, or of another schema.
        """
        document = Document.read(path, EngineError, LIMITS)
        if (schema := document.integer("schema", 1)) != SIDECAR_SCHEMA:
            raise EngineError(
                f"{path}: schema {schema}, but this diver-trt reads schema {SIDECAR_SCHEMA}; "
                "build the engine again"
            )
        return _parse(document)

    def misfit(self, bundle: Bundle, machine: Machine) -> str | None:
        """Return why this engine does not fit this bundle or machine, or None if it does.

        An engine of TensorRT-RTX is valid for one release of it; one of TensorRT proper for one
        release and one kind of GPU.
        """
        network = bundle.networks[self.network]
        weights = network.weights.sha256 if network.weights else None
        here, built = machine, self.built_on
        if (self.onnx_sha256, self.weights_sha256) != (network.graph.sha256, weights):
            return "it was built from another export of the model"
        if built.backend != here.backend:
            return f"it is for backend {built.backend}, not {here.backend}"
        if built.version != here.version:
            return (
                f"it was built by version {shown(built.version)}, and {here.version} is installed"
            )
        if here.compute_capability is None:
            return "there is no NVIDIA GPU here"
        if here.compute_capability not in self.compute_capabilities:
            targets = shown(", ".join(self.compute_capabilities))
            return f"it is for {targets}, and this GPU is {here.compute_capability}"
        if built.backend == "trt" and built.gpu != here.gpu:
            return f"it was built on {shown(str(built.gpu))}, and this GPU is {here.gpu}"
        if built.driver and here.driver and _numbers(built.driver) > _numbers(here.driver):
            driver = shown(built.driver)
            return (
                f"it was built under a driver for CUDA {driver}, and this one is for {here.driver}"
            )
        return None


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why an engine must not be loaded, and the command that rebuilds it where that helps."""

    reason: str
    command: str | None

    def __str__(self) -> str:
        return f"{self.reason}\nRebuild it with `{self.command}`" if self.command else self.reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A folder of engines for one target, `plans/TARGET`, one per network.

    Attributes:
        folder: Where they lie.
        sidecars: The engines by network.
    """

    folder: Path
    sidecars: Mapping[NetworkName, Sidecar]

    @property
    def batches(self) -> Profile:
        """Batches of images that the plan was built for."""
        return self.sidecars["denoiser"].profile

    @property
    def backend(self) -> Backend:
        """The backend of its engines."""
        return self.sidecars["denoiser"].built_on.backend

    def misfit(self, bundle: Bundle, machine: Machine) -> Misfit | None:
        """Return the first reason why one of its engines must not be loaded, or None."""
        for sidecar in self.sidecars.values():
            if reason := sidecar.misfit(bundle, machine):
                command = (
                    self.rebuild_command(bundle, machine) if machine.compute_capability else None
                )
                return Misfit(f"{self.folder / sidecar.engine.name}: {reason}", command)
        return None

    def rebuild_command(self, bundle: Bundle, machine: Machine) -> str:
        """Return the command that builds this plan again for a machine."""
        capability = machine.compute_capability
        target = (
            f" --sm {capability.removeprefix('sm')}" if self.backend == "rtx" and capability else ""
        )
        return (
            f"diver-trt build {bundle.path} --backend {self.backend}{target} --batch {self.batches}"
        )

    def trust(self) -> None:
        """Enter its engines into the list of those that may run here, as their sidecars name them.

        Raises:
            OutputError: The list cannot be written.
        """
        register(sidecar.engine.sha256 for sidecar in self.sidecars.values())

    def distrusted(self) -> str | None:
        """Return why its engines must not run here, in one line, or None if they may."""
        for sidecar in self.sidecars.values():
            if not is_registered(sidecar.engine.sha256):
                return (
                    f"{self.folder / sidecar.engine.name}: was not built on this machine, and an "
                    "engine is code; say --trust if you trust "
                    "whoever built it, or build it here with `diver-trt build`"
                )
        return None

    def read(self, network: NetworkName) -> bytes:
        """Return an engine's bytes after hashing them.

        They are hashed in memory: the file may change meanwhile, the returned bytes cannot.

        Raises:
            EngineError: If it is missing, not a regular file in the plan's folder, or not the file
                that was built.
        """
        with self._open(network) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != self.sidecars[network].engine.sha256:
            raise self._changed(network)
        return data

    def check(self) -> Iterator[EngineError]:
        """Hash every engine, and yield the problem of each that is not the file that was built."""
        for network, sidecar in self.sidecars.items():
            try:
                with self._open(network) as file:
                    if stream_sha256(file) != sidecar.engine.sha256:
                        yield self._changed(network)
            except EngineError as error:
                yield error

    def _open(self, network: NetworkName) -> BinaryIO:
        record = self.sidecars[network].engine
        path = self.folder / record.name
        try:
            file = open_contained(path, self.folder, EngineError)
        except OSError as cause:
            raise EngineError(
                f"{path}: missing ({cause.strerror}); build the engines again"
            ) from cause
        if os.fstat(file.fileno()).st_size != record.size_bytes:
            file.close()
            raise self._changed(network)
        return file

    def _changed(self, network: NetworkName) -> EngineError:
        return EngineError(
            f"{self.folder / self.sidecars[network].engine.name}: is not the engine that was "
            "built (its SHA-256 differs from its "
            "sidecar's); build it again"
        )


def read_plan(folder: Path) -> Plan:
    """Read the sidecars of one target.

    Raises:
        EngineError: A sidecar is missing or damaged, or describes another network.
    """
    sidecars: dict[NetworkName, Sidecar] = {}
    for name in NETWORKS:
        sidecar = Sidecar.read(folder / f"{name}.json")
        if sidecar.network != name:
            raise EngineError(
                f"{folder / name}.json: describes the {sidecar.network}; build the engines again"
            )
        sidecars[name] = sidecar
    return Plan(folder, sidecars)


class StrayFoldersError(EngineError):
    """Folders beside those of engines that hold none."""


def read_plans(bundle: Bundle) -> Iterator[Plan | EngineError]:
    """Yield every target of a bundle, or the error of reading it.

    Last comes one error for all folders that are not targets.
    """
    root = bundle.path / PLANS
    read, others = 0, []
    try:
        folders = _folders(root, bundle)
    except EngineError as error:
        yield error
        return
    for folder in folders:
        if not any(os.path.lexists(folder / f"{name}.json") for name in NETWORKS):
            others.append(printable(folder.name))
            continue
        if (read := read + 1) > MAX_PLANS:
            yield EngineError(
                f"{root}: holds engines for more than {MAX_PLANS} targets, and only those of the "
                f"first {MAX_PLANS} are used; remove some"
            )
            break
        try:
            yield _read_inside(folder, bundle)
        except EngineError as error:
            yield error
    if others:
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        found = f"{len(others)} folders hold" if len(others) > 1 else "one folder holds"
        yield StrayFoldersError(
            f"{root}: {found} no engines ({shown(listed)}); remove what does not belong there"
        )


def _folders(root: Path, bundle: Bundle) -> list[Path]:
    """Return the folders in `plans` by name, except hidden ones, in which a build is running."""
    try:
        resolved_inside(root, bundle.path, EngineError, "the bundle")
        return sorted(
            path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as cause:
        raise EngineError(f"{root}: cannot be read ({cause.strerror or cause})") from cause


def _read_inside(folder: Path, bundle: Bundle) -> Plan:
    """Read a target of a bundle, whose folder others may have named and linked."""
    if not folder.name.isprintable():
        raise EngineError(
            f"{printable(str(folder))}: has a name that cannot be printed; rename the folder"
        )
    try:
        resolved_inside(folder, bundle.path, EngineError, "the bundle")
    except OSError as cause:
        raise EngineError(f"{folder}: cannot be read ({cause.strerror or cause})") from cause
    return read_plan(folder)


def _parse(document: Document) -> Sidecar:
    network = document.text("network", NETWORKS)
    engine, built, memory = (document.document(key) for key in ("engine", "built_on", "memory"))
    name = engine.text("name")
    if name != f"{network}.engine":
        raise engine.fail("name", f"found {shown(repr(name))}, expected {network}.engine")
    return Sidecar(
        network=next(known for known in NETWORKS if known == network),
        precision=document.text("precision"),
        opset=document.integer("opset", 1),
        onnx_sha256=document.text("onnx_sha256"),
        weights_sha256=document.optional("weights_sha256", document.text),
        engine=FileRecord(name, engine.integer("size_bytes"), engine.sha256("sha256")),
        built_on=Machine(
            backend="rtx" if built.text("backend", BACKENDS) == "rtx" else "trt",
            version=built.text("version"),
            compute_capability=built.optional("compute_capability", built.text),
            gpu=built.optional("gpu", built.text),
            driver=built.optional("driver", built.text),
            cuda=built.optional("cuda", built.text),
            multiprocessors=built.optional("multiprocessors", built.integer),
            total_bytes=built.optional("total_bytes", built.integer),
        ),
        compute_capabilities=document.texts("compute_capabilities"),
        profile=_parse_profile(document.document("profile")),
        memory=Memory(
            **{
                key: memory.integer(key)
                for key in ("weights_bytes", "persistent_bytes", "activation_bytes", "io_bytes")
            }
        ),
        dtypes=_counts(document),
        flags=document.texts("flags"),
        optimization_level=document.optional("optimization_level", document.integer),
        workspace_bytes=document.optional("workspace_bytes", document.integer),
        timing_cache_sha256=document.optional("timing_cache_sha256", document.text),
        build_seconds=document.number("build_seconds"),
        build_peak_bytes=document.integer("build_peak_bytes"),
        skipped_tactics=document.integer("skipped_tactics"),
        tool_version=document.text("tool_version"),
    )


def _parse_profile(document: Document) -> Profile:
    low, optimum, high = (
        document.integer(key, 1, MAX_BATCH) for key in ("minimum", "optimum", "maximum")
    )
    if not low <= optimum <= high:
        raise document.fail(
            "minimum",
            f"found sizes {low}, {optimum}, {high}, expected sizes that rise from minimum over "
            "optimum to maximum",
        )
    return Profile(low, optimum, high)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version))


def _counts(document: Document) -> dict[str, int]:
    counts = document.document("dtypes")
    return {key: counts.integer(key) for key in document.mapping("dtypes")}


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
