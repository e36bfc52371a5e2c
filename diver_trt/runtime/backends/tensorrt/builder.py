"""From a bundle to TensorRT engines: `plans/TARGET/NETWORK.engine`, each with its sidecar.

TensorRT-RTX compiles for GPUs that are not here; TensorRT proper only for the one that is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.contained_file import resolved_inside
from diver_trt.contract import NETWORKS, NetworkName
from diver_trt.errors import EngineError, OutputError
from diver_trt.files import FileRecord
from diver_trt.lock import locked
from diver_trt.runtime.backends.tensorrt.compiler import Compiled, OnProgress, compile_graph
from diver_trt.runtime.backends.tensorrt.interrupts import interrupts_held
from diver_trt.runtime.backends.tensorrt.sidecar import Sidecar
from diver_trt.runtime.backends.tensorrt.target import Target, check_target
from diver_trt.runtime.backends.tensorrt.trust import register


def build_plan(
    bundle: Bundle,
    target: Target,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[Sidecar]:
    """Build the four engines of a target, yielding each one's sidecar when it is compiled.

    The target's folder appears under its name when all four are done, replacing an older one. A
    second builder of the same target is refused while the first one works. Each engine is entered
    into the list of those that may run here.

    Args:
        bundle: The bundle; each network's files are hashed before they are compiled.
        target: What to build for.
        on_progress: Called at each of the compiler's steps.

    Raises:
        BundleError: If a network's files have changed since the export.
        EngineError: If TensorRT cannot compile a network for the target, or compiled it in another
            precision than the bundle's.
        OutputError: If the folder or that list cannot be written, or another process builds
            there.
    """
    check_target(bundle, target)
    folder = target.folder(bundle)
    try:
        folder.parent.mkdir(exist_ok=True)
        # A bundle may come from anyone: where its links point, nothing is written or deleted.
        resolved_inside(folder.parent, bundle.path, OutputError, "the bundle")
    except OSError as cause:
        raise OutputError(f"{folder}: cannot be made ({cause.strerror})") from cause
    # Without hashes: to find out before hours of compiling whether the list can be written.
    register()
    # A lock for this target alone: others in the same folder may be built meanwhile.
    busy = "another process is building this target; wait for it, or stop it"
    with locked(folder.parent, f".{folder.name}.lock", busy):
        # Beside the target, and hidden, so that `read_plans` does not take it for one.
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name in NETWORKS:
                sidecar = _build_engine(bundle, name, target, staging, on_progress)
                sidecar.write(staging / f"{name}.json")
                yield sidecar
            # An interrupt in between would leave a part of the older engines.
            with interrupts_held():
                shutil.rmtree(folder, ignore_errors=True)
                # mkdtemp makes a folder that only its owner can read.
                staging.chmod(0o755)
                staging.replace(folder)
        finally:
            with interrupts_held():
                shutil.rmtree(staging, ignore_errors=True)


def _build_engine(
    bundle: Bundle,
    name: NetworkName,
    target: Target,
    folder: Path,
    on_progress: OnProgress,
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
    # It was built here, so it may run here.
    register([engine.sha256])
    return Sidecar(
        network=name,
        precision=bundle.precision,
        onnx_sha256=network.graph.sha256,
        weights_sha256=network.weights.sha256 if network.weights else None,
        engine=engine,
        built_on=target.machine,
        compute_capabilities=target.compute_capabilities,
        profile=profile,
        memory=compiled.memory,
        dtypes=compiled.dtypes,
        workspace_bytes=target.workspace_bytes,
        build_seconds=compiled.seconds,
        skipped_tactics=compiled.skipped_tactics,
        tool_version=__version__,
    )


def _check_precision(bundle: Bundle, name: NetworkName, compiled: Compiled) -> None:
    """Check the compiled matrix products and bytes per weight against the bundle's precision.

    Raises:
        EngineError: If an fp16 bundle became a float32 engine, or the other way round; or if
            weights of eight bits were stored in more.
    """
    half, single = compiled.products.get("float16", 0), compiled.products.get("float32", 0)
    # A weight takes four bytes in float32, two in float16 and one in int8. The limits lie between,
    # since biases, norms and small weights stay wider than the others.
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
