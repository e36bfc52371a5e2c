"""From a bundle to TensorRT engines: `plans/TARGET/NETWORK.engine`, each with its sidecar.

The network is always strongly typed: the types are the ONNX graph's, and no builder flag may change
them. TensorRT-RTX compiles for GPUs that are not here; TensorRT proper only for the one that is.
Memory figures are the compiler's own, read from its log.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver_trt._version import __version__
from diver_trt.bundle import (
    HALF_PRECISIONS,
    MANIFEST,
    NETWORKS,
    Bundle,
    Network,
    NetworkName,
    run_size,
)
from diver_trt.errors import BundleError, EngineError, MissingExtraError, OutputError, shown
from diver_trt.files import FileRecord, file_sha256
from diver_trt.runtime.backends.tensorrt.cuda import find_gpu, import_cuda
from diver_trt.runtime.backends.tensorrt.module import (
    EXTRAS,
    declared_shape,
    dtype_name,
    import_tensorrt,
    this_machine,
)
from diver_trt.runtime.backends.tensorrt.plans import PLANS
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Machine, Memory, Profile, Sidecar
from diver_trt.runtime.backends.tensorrt.trust import register
from diver_trt.tensors import describe_declared

FLOAT32_FROM = 80
"""First compute capability, times ten, with float32 matrix products in TensorRT-RTX 1.7, whose
compiler says "FP32 GEMM is not supported" below it.
"""

_MEMORY_LINES = {
    "weights_bytes": "Total Weights Memory",
    "persistent_bytes": "Total Device Persistent Memory",
    "activation_bytes": "Total Activation Memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What engines are built for.

    Attributes:
        backend: `"rtx"` or `"trt"`.
        machine: The TensorRT that compiles, and the GPU that is here, if one is.
        compute_capabilities: GPUs that the engines must run on: `("sm86",)`.
        batches: Batches of images: one size (static: least memory, CUDA graphs) or a range.
        workspace_bytes: Limit on the builder's scratch memory; None leaves it to TensorRT.
    """

    backend: Backend
    machine: Machine
    compute_capabilities: tuple[str, ...]
    batches: Profile
    workspace_bytes: int | None = None

    @property
    def timing_cache(self) -> Path:
        """Return TensorRT's timing cache for the next build here; TensorRT-RTX has none."""
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return (
            root
            / "diver-trt"
            / f"timing-{self.machine.version}-{'-'.join(self.compute_capabilities)}.cache"
        )

    @property
    def name(self) -> str:
        """Name of the target's folder: `rtx-1.7.1.116-sm86-b8`."""
        batches = str(self.batches).replace(":", "-")
        capabilities = "-".join(self.compute_capabilities)
        return f"{self.backend}-{self.machine.version}-{capabilities}-b{batches}"

    def folder(self, bundle: Bundle) -> Path:
        """Return where the target's engines lie in a bundle."""
        return bundle.path / PLANS / self.name

    def profile(self, network: NetworkName) -> Profile:
        """Return the sizes of a network's dynamic axis."""
        return Profile(
            *(
                run_size(network, batch)
                for batch in (self.batches.minimum, self.batches.optimum, self.batches.maximum)
            )
        )


def resolve_target(
    backend: Backend, sms: Sequence[int], batches: Profile, workspace_bytes: int | None = None
) -> Target:
    """Return the target for this machine's TensorRT.

    Args:
        backend: `"rtx"` or `"trt"`.
        sms: Compute capabilities, times ten, such as 86, for `"rtx"` only; none means the GPU that
            is here, or else 8.0 and up.
        batches: Batches of images.
        workspace_bytes: Limit on the builder's scratch memory.

    Raises:
        MissingExtraError: The backend is not installed.
        EngineError: The backend cannot compile for a capability, or needs a GPU and there is none.
    """
    module = import_tensorrt(backend)
    try:
        gpu = find_gpu(import_cuda())
    except MissingExtraError:
        gpu = None
    machine = this_machine(backend, module, gpu)
    if backend == "trt":
        if sms:
            raise EngineError(
                "--sm is for backend rtx: TensorRT proper compiles for the GPU that is here; "
                "leave it out, or use --backend rtx"
            )
        if machine.compute_capability is None:
            raise EngineError(
                "backend trt compiles on the GPU that will run the engine, and none is here; run "
                "it on the device, or use --backend rtx"
            )
        return Target(
            backend=backend,
            machine=machine,
            compute_capabilities=(machine.compute_capability,),
            batches=batches,
            workspace_bytes=workspace_bytes,
        )
    known = sorted(
        int(name[2:]) for name in dir(module.ComputeCapability) if re.fullmatch(r"SM\d+", name)
    )
    for sm in sms:
        if sm not in known:
            raise EngineError(
                f"--sm {sm}: TensorRT-RTX {machine.version} compiles for "
                f"{', '.join(map(str, known))} only"
            )
    present = int(machine.compute_capability[2:]) if machine.compute_capability else None
    if present is not None and present not in known and not sms:
        raise EngineError(
            f"this GPU is {machine.compute_capability}, and TensorRT-RTX {machine.version} "
            f"compiles for {', '.join(map(str, known))} only; "
            "name another GPU with --sm, or use --backend trt"
        )
    chosen = sorted(set(sms)) or (
        [present] if present in known else [sm for sm in known if sm >= 80]
    )
    capabilities = tuple(f"sm{sm}" for sm in chosen)
    return Target(
        backend=backend,
        machine=machine,
        compute_capabilities=capabilities,
        batches=batches,
        workspace_bytes=workspace_bytes,
    )


def check_target(bundle: Bundle, target: Target) -> None:
    """Refuse a target that the compiler has no kernels for, before anything is compiled.

    Raises:
        EngineError: If TensorRT-RTX should compile a bundle that computes in float32 for a GPU that
            it has no float32 matrix products for.
    """
    if target.backend != "rtx" or bundle.precision in HALF_PRECISIONS:
        return
    without = [name for name in target.compute_capabilities if int(name[2:]) < FLOAT32_FROM]
    if without:
        turing = ", ".join(without)
        raise EngineError(
            f"{bundle.path}: is an {bundle.precision} bundle, and TensorRT-RTX has no float32 matrix products "
            f"for {turing}, only for sm{FLOAT32_FROM} and "
            "later. Export the model with `diver-trt export MODEL BUNDLE --precision fp16` and "
            "build that bundle, or name a later GPU "
            f"with --sm, such as --sm 86; `--engine onnx` runs this one on any machine"
        )


def io_bytes(network: Network, size: int) -> int:
    """Return the bytes of a network's inputs and outputs with its dynamic axis set to `size`."""
    return sum(spec.size_bytes(size) for spec in (*network.inputs, *network.outputs))


def build_plan(
    bundle: Bundle,
    target: Target,
    on_progress: Callable[[NetworkName, str, int, int], None] = lambda *_: None,
) -> Iterator[Sidecar]:
    """Build the four engines of a target, yielding each one's sidecar when it is compiled.

    The target's folder appears under its name when all four are done, replacing an older one. A
    second builder of the same target is refused while the first one works. Each engine is entered
    into the list of those that may run here.

    Args:
        bundle: The bundle; each network's files are hashed before they are compiled.
        target: What to build for.
        on_progress: Told the network, the compiler's phase, its steps done and its steps in all.

    Raises:
        BundleError: A network's files have changed since the export.
        EngineError: If TensorRT cannot compile a network for the target, or compiled it in another
            precision than the bundle's.
        OutputError: The folder or that list cannot be written, or another process builds there.
    """
    check_target(bundle, target)
    folder = target.folder(bundle)
    try:
        folder.parent.mkdir(exist_ok=True)
    except OSError as cause:
        raise OutputError(f"{folder}: cannot be made ({cause.strerror})") from cause
    register()
    with _locked(folder.parent / f".{folder.name}.lock"):
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name in NETWORKS:
                sidecar = _build_engine(bundle, name, target, staging, on_progress)
                sidecar.write(staging / f"{name}.json")
                yield sidecar
            shutil.rmtree(folder, ignore_errors=True)
            staging.chmod(0o755)
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file; it is freed by the system if this process dies."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise OutputError(
                f"{path.parent}: another process is building this target; wait for it, or stop it"
            ) from cause
        yield


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of one graph.

    Attributes:
        engine: The serialized engine.
        memory: Its figures.
        dtypes: Number of layer outputs per type, read back from the parsed network.
        products: The same for matrix products and convolutions alone: what it computes in.
        seconds: How long it took.
        skipped_tactics: Tactics left out for lack of memory.
        opset: The graph's.
        flags: The builder's flags.
        optimization_level: The builder's.
    """

    engine: bytes
    memory: Memory
    dtypes: dict[str, int]
    products: dict[str, int]
    seconds: float
    skipped_tactics: int
    opset: int
    flags: tuple[str, ...]
    optimization_level: int | None


def compile_graph(
    path: Path,
    network: Network,
    profile: Profile,
    target: Target,
    on_progress: Callable[[NetworkName, str, int, int], None] = lambda *_: None,
) -> Compiled:
    """Compile one ONNX graph.

    Args:
        path: The graph.
        network: Its inputs and outputs.
        profile: Sizes of its dynamic axis.
        target: What to compile for.
        on_progress: Told the network, the compiler's phase, its steps done and its steps in all.

    Raises:
        EngineError: TensorRT's parser or compiler refuses the graph, or does not report its memory.
    """
    module = import_tensorrt(target.backend)
    started = time.monotonic()
    log = _compiler_log(module)
    parsed = _parse(module, log, path)
    _check_inferred(module, parsed[1], path, network)
    _fix_batch(parsed[1], network, profile)
    config = _configure(
        module,
        parsed,
        network,
        profile,
        target,
        _progress_monitor(module, network.name, on_progress),
    )
    engine = _compile(parsed, config, network, target, log)
    return Compiled(
        engine=engine,
        memory=Memory(
            io_bytes=io_bytes(network, profile.maximum), **_memory_figures(network.name, log.lines)
        ),
        dtypes=_dtype_histogram(module, parsed[1]),
        products=_dtype_histogram(module, parsed[1], ("MATRIX_MULTIPLY", "CONVOLUTION")),
        seconds=round(time.monotonic() - started, 3),
        skipped_tactics=sum("skipping tactic" in line.lower() for line in log.lines),
        opset=max(
            (
                int(match[1])
                for line in log.lines
                if (match := re.match(r"Opset version:\s+(\d+)", line))
            ),
            default=0,
        ),
        flags=tuple(
            sorted(
                name
                for name, flag in module.BuilderFlag.__members__.items()
                if config.get_flag(flag)
            )
        ),
        optimization_level=getattr(config, "builder_optimization_level", None),
    )


def _build_engine(
    bundle: Bundle,
    name: NetworkName,
    target: Target,
    folder: Path,
    on_progress: Callable[[NetworkName, str, int, int], None],
) -> Sidecar:
    network, profile = bundle.networks[name], target.profile(name)
    compiled = compile_graph(bundle.verified(name), network, profile, target, on_progress)
    _check_precision(bundle, name, compiled)
    path = folder / f"{name}.engine"
    try:
        path.write_bytes(compiled.engine)
    except OSError as cause:
        raise OutputError(f"{path}: cannot be written ({cause.strerror})") from cause
    engine = FileRecord.of(path)
    register([engine.sha256])
    return Sidecar(
        network=name,
        precision=bundle.precision,
        opset=compiled.opset,
        onnx_sha256=network.graph.sha256,
        weights_sha256=network.weights.sha256 if network.weights else None,
        engine=engine,
        built_on=target.machine,
        compute_capabilities=target.compute_capabilities,
        profile=profile,
        memory=compiled.memory,
        dtypes=compiled.dtypes,
        flags=compiled.flags,
        optimization_level=compiled.optimization_level,
        workspace_bytes=target.workspace_bytes,
        timing_cache_sha256=file_sha256(target.timing_cache) if target.backend == "trt" else None,
        build_seconds=compiled.seconds,
        build_peak_bytes=_peak_bytes(),
        skipped_tactics=compiled.skipped_tactics,
        tool_version=__version__,
    )


def _parse(module: Any, log: Any, path: Path) -> tuple[Any, Any, Any]:
    try:
        builder = module.Builder(log)
    except Exception as cause:  # its bindings raise TypeError where the library refuses to start
        raise EngineError(
            f"TensorRT cannot start its builder: {'; '.join(log.errors) or cause}"
        ) from cause
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = module.OnnxParser(definition, log)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{path.name}: TensorRT's parser refuses the graph: {reasons}")
    return builder, definition, parser


def _check_inferred(module: Any, definition: Any, path: Path, network: Network) -> None:
    """Compare the inferred inputs and outputs of a parsed graph with the manifest's.

    Raises:
        BundleError: If a name, a type or a shape differs.
    """
    for direction, count, tensor_at, specs in (
        ("reads", definition.num_inputs, definition.get_input, network.inputs),
        ("writes", definition.num_outputs, definition.get_output, network.outputs),
    ):
        declared = {}
        for tensor in map(tensor_at, range(count)):
            declared[tensor.name] = (dtype_name(module, tensor.dtype), declared_shape(tensor.shape))
        found = ", ".join(describe_declared(name, *kind) for name, kind in declared.items())
        wanted = {spec.name: spec for spec in specs}
        if declared.keys() != wanted.keys() or not all(
            wanted[name].agrees_with(*kind) for name, kind in declared.items()
        ):
            raise BundleError(
                f"{path}: {direction} {shown(found) or 'nothing'}, but {MANIFEST} says "
                f"{', '.join(map(str, specs))}; export the model again"
            )


def _fix_batch(definition: Any, network: Network, profile: Profile) -> None:
    """Give a static engine static inputs: it needs less memory and is captured as a graph."""
    if profile.static:
        shapes = {spec.name: spec.concrete(profile.maximum) for spec in network.inputs}
        for i in range(definition.num_inputs):
            tensor = definition.get_input(i)
            tensor.shape = shapes[tensor.name]


def _dtype_histogram(
    module: Any, definition: Any, kinds: tuple[str, ...] | None = None
) -> dict[str, int]:
    """Count the types of a network's layer outputs: with strong typing, those it computes in."""
    layers = [definition.get_layer(i) for i in range(definition.num_layers)]
    wanted = None if kinds is None else {getattr(module.LayerType, kind) for kind in kinds}
    outputs = (
        layer.get_output_type(i)
        for layer in layers
        if wanted is None or layer.type in wanted
        for i in range(layer.num_outputs)
    )
    return dict(sorted(Counter(dtype_name(module, kind) for kind in outputs).items()))


def _check_precision(bundle: Bundle, name: NetworkName, compiled: Compiled) -> None:
    """Check the compiled matrix products and bytes per weight against the bundle's precision.

    Raises:
        EngineError: An fp16 bundle became a float32 engine, or the other way round, or weights of
            eight bits were stored in more.
    """
    half, single = compiled.products.get("float16", 0), compiled.products.get("float32", 0)
    width = compiled.memory.weights_bytes / bundle.networks[name].parameters
    right = {
        "fp32": half == 0 and width > 3,
        "fp16": half > single and width < 3,
        "int8": half == 0 and width < 2,
        "int8-fp16": half > single and width < 2,
    }
    if not right[bundle.precision]:
        raise EngineError(
            f"{name}: the bundle is {bundle.precision}, but the compiled network has {half} "
            f"products in float16 and {single} in float32, "
            f"and takes {width:.1f} bytes per parameter; export the model again"
        )


def _configure(
    module: Any,
    parsed: tuple[Any, Any, Any],
    network: Network,
    profile: Profile,
    target: Target,
    monitor: Any,
) -> Any:
    polygraphy = _polygraphy(target.backend)
    profiles = [polygraphy.Profile()]
    if not profile.static:
        for spec in network.inputs:
            if any(isinstance(dim, str) for dim in spec.shape):
                profiles[0].add(
                    spec.name,
                    *(
                        spec.concrete(size)
                        for size in (profile.minimum, profile.optimum, profile.maximum)
                    ),
                )
    options: dict[str, Any] = {"profiles": profiles, "progress_monitor": monitor}
    if target.workspace_bytes is not None:
        options["memory_pool_limits"] = {module.MemoryPoolType.WORKSPACE: target.workspace_bytes}
    if target.backend == "rtx":
        options["compute_capabilities"] = [
            divmod(int(name[2:]), 10) for name in target.compute_capabilities
        ]
        create = polygraphy.CreateConfigRTX(**options)
    else:
        cache = target.timing_cache
        create = polygraphy.CreateConfig(
            **options, load_timing_cache=str(cache) if cache.exists() else None
        )
    with warnings.catch_warnings():
        # polygraphy sets a timing cache, which is a no-op in TensorRT-RTX since 1.2.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            config = create(parsed[0], parsed[1])
        except polygraphy.PolygraphyException as cause:
            raise EngineError(
                f"{network.name}: TensorRT refuses the builder's settings: "
                f"{str(cause).splitlines()[0]}"
            ) from cause
    # TF32 is on by default, and would round a float32 bundle's products to ten bits.
    config.clear_flag(module.BuilderFlag.TF32)
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Without it TensorRT-RTX allocates while it runs, and cannot be captured.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _compile(
    parsed: tuple[Any, Any, Any], config: Any, network: Network, target: Target, log: Any
) -> bytes:
    polygraphy = _polygraphy(target.backend)
    save = None
    if target.backend == "trt":
        target.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        save = str(target.timing_cache)
    try:
        return bytes(polygraphy.EngineBytesFromNetwork(parsed, config, save_timing_cache=save)())
    except polygraphy.PolygraphyException as cause:
        errors = " ".join("; ".join(log.errors).split()) or str(cause).splitlines()[0]
        raise EngineError(
            f"{network.name}: TensorRT could not build the engine: {errors}"
        ) from cause


def _polygraphy(backend: Backend) -> Any:
    """Import polygraphy's loaders.

    It chooses its TensorRT once per process, by an environment variable.
    """
    wanted = "1" if backend == "rtx" else "0"
    os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", wanted)
    try:
        import polygraphy.config
        from polygraphy.backend import trt as loaders
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as cause:
        raise MissingExtraError("polygraphy", EXTRAS[backend], "building engines") from cause
    if (backend == "rtx") != polygraphy.config.USE_TENSORRT_RTX:
        raise EngineError(
            "this process has already built for the other backend; build for this one in a "
            "process of its own"
        )
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    from types import SimpleNamespace

    names = ("Profile", "CreateConfig", "EngineBytesFromNetwork")
    tools = SimpleNamespace(
        PolygraphyException=PolygraphyException, **{name: getattr(loaders, name) for name in names}
    )
    if backend == "rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        tools.CreateConfigRTX = CreateConfigRTX
    return tools


def _compiler_log(module: Any) -> Any:
    """Return a logger that keeps every line, errors apart.

    The compiler reports memory and skipped tactics nowhere else.
    """

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= module.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


def _progress_monitor(
    module: Any, name: NetworkName, tell: Callable[[NetworkName, str, int, int], None]
) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            tell(name, phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            tell(name, phase, step + 1, self.totals.get(phase, step + 1))
            return True

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()


def _memory_figures(name: NetworkName, lines: list[str]) -> dict[str, int]:
    figures = {}
    for key, title in _MEMORY_LINES.items():
        found = [
            int(match[1]) for line in lines if (match := re.search(rf"{title}: (\d+) bytes", line))
        ]
        if not found:
            raise EngineError(
                f"{name}: the compiler did not report its '{title}'; this version of TensorRT is "
                "not known to work"
            )
        figures[key] = max(found)
    return figures


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
