"""Compiling one ONNX graph with TensorRT, and what the compiler reports of it.

The network is always strongly typed: the types are the ONNX graph's, and no builder flag may change
them. Memory figures are the compiler's own, read from its log.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diver_trt.bundle import Network
from diver_trt.contract import NetworkName
from diver_trt.errors import EngineError, first_line
from diver_trt.graph_file import require_tensors, require_utf8
from diver_trt.packages import importing
from diver_trt.runtime.backends import BACKENDS
from diver_trt.runtime.backends.tensorrt.interrupts import interrupts_held
from diver_trt.runtime.backends.tensorrt.module import (
    declared_shape,
    dtype_name,
    import_tensorrt,
    logger,
)
from diver_trt.runtime.backends.tensorrt.sidecar import Backend, Memory, Profile
from diver_trt.runtime.backends.tensorrt.target import Target

OnProgress = Callable[[NetworkName, str, int, int], None]
"""Receives the network, the compiler's phase, its steps done and all its steps."""

_MEMORY_LINES = {
    "weights_bytes": "Total Weights Memory",
    "persistent_bytes": "Total Device Persistent Memory",
    "activation_bytes": "Total Activation Memory",
}


def io_bytes(network: Network, size: int) -> int:
    """Return the bytes of a network's inputs and outputs with its dynamic axis set to `size`."""
    return sum(spec.size_bytes(size) for spec in (*network.inputs, *network.outputs))


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
    """

    engine: bytes
    memory: Memory
    dtypes: dict[str, int]
    products: dict[str, int]
    seconds: float
    skipped_tactics: int


def compile_graph(
    path: Path,
    network: Network,
    profile: Profile,
    target: Target,
    on_progress: OnProgress = lambda *_: None,
) -> Compiled:
    """Compile one ONNX graph.

    Args:
        path: The graph.
        network: Its inputs and outputs.
        profile: Sizes of its dynamic axis.
        target: What to compile for.
        on_progress: Called at each of the compiler's steps.

    Raises:
        EngineError: If TensorRT's parser or compiler refuses the graph, or does not report
            its memory.
        KeyboardInterrupt: If a signal came meanwhile, at the compiler's next step.
    """
    require_utf8(path, "TensorRT")
    module = import_tensorrt(target.backend)
    started = time.monotonic()
    log = logger(module)
    # The compiler calls Python, for its log and its progress.
    with interrupts_held() as interrupted:
        parsed = _parse(module, log, path)
        _check_tensors(module, parsed[1], path, network)
        _fix_batch(parsed[1], network, profile)
        monitor = _progress_monitor(module, network.name, on_progress, interrupted)
        config = _configure(module, parsed, network, profile, target, monitor)
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
    )


def _parse(module: Any, log: Any, path: Path) -> tuple[Any, Any, Any]:
    try:
        builder = module.Builder(log)
    except Exception as cause:  # its bindings raise TypeError where the library refuses to start
        raise EngineError(
            f"TensorRT cannot start its builder: {'; '.join(log.errors) or cause}"
        ) from cause
    # Without it the builder may choose other types than the graph has (docs/precision.md).
    flags = 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = module.OnnxParser(definition, log)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{path.name}: TensorRT's parser refuses the graph: {reasons}")
    # The parser too, since the network refers to weights that the parser owns.
    return builder, definition, parser


def _check_tensors(module: Any, definition: Any, path: Path, network: Network) -> None:
    """Compare the inferred inputs and outputs of a parsed graph with the manifest's.

    Raises:
        BundleError: If a name, a type or a shape differs.
    """
    reads, writes = (
        [
            (tensor.name, dtype_name(module, tensor.dtype), declared_shape(tensor.shape))
            for tensor in map(tensor_at, range(count))
        ]
        for count, tensor_at in (
            (definition.num_inputs, definition.get_input),
            (definition.num_outputs, definition.get_output),
        )
    )
    require_tensors(path, reads, writes, network.inputs, network.outputs)


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
    # A static network needs no entries: polygraphy takes the sizes of its inputs.
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
            **options, load_timing_cache=str(cache) if cache and cache.exists() else None
        )
    with warnings.catch_warnings():
        # polygraphy sets a timing cache, which is a no-op in TensorRT-RTX since 1.2.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            config = create(parsed[0], parsed[1])
        except polygraphy.PolygraphyException as cause:
            raise EngineError(
                f"{network.name}: TensorRT refuses the builder's settings: {first_line(cause)}"
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
    cache = target.timing_cache
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
    save = str(cache) if cache else None
    try:
        return bytes(polygraphy.EngineBytesFromNetwork(parsed, config, save_timing_cache=save)())
    except polygraphy.PolygraphyException as cause:
        # The reason is in TensorRT's log; polygraphy only reports that there is no engine.
        errors = " ".join("; ".join(log.errors).split()) or first_line(cause)
        raise EngineError(
            f"{network.name}: TensorRT could not build the engine: {errors}"
        ) from cause


def _polygraphy(backend: Backend) -> Any:
    """Import polygraphy's loaders.

    It chooses its TensorRT once per process, by an environment variable.
    """
    wanted = "1" if backend == "rtx" else "0"
    os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", wanted)
    with importing(BACKENDS[backend].extra, "building engines"):
        import polygraphy.config
        from polygraphy.backend import trt as loaders
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    if (backend == "rtx") != polygraphy.config.USE_TENSORRT_RTX:
        raise EngineError(
            "this process has already built for the other backend; build for this one in a "
            "process of its own"
        )
    # It prints what it raises too, and on standard output a request to install `colored`.
    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1
    names = ("Profile", "CreateConfig", "EngineBytesFromNetwork")
    tools = SimpleNamespace(
        PolygraphyException=PolygraphyException, **{name: getattr(loaders, name) for name in names}
    )
    if backend == "rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        tools.CreateConfigRTX = CreateConfigRTX
    return tools


def _progress_monitor(
    module: Any,
    name: NetworkName,
    report: OnProgress,
    interrupted: Callable[[], bool],
) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.totals[phase] = steps
            report(name, phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            report(name, phase, step + 1, self.totals.get(phase, step + 1))
            return not interrupted()  # False cancels the compilation

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
