"""`diver-trt build`: a bundle in, TensorRT engines and their sidecars out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import print_facts, print_json, progress, say
from diver_trt.cli.options import Json, choice, open_bundle
from diver_trt.errors import printable

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.runtime.backends.tensorrt.sidecar import Sidecar
    from diver_trt.runtime.backends.tensorrt.target import Target

BundleArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE",
        help="The bundle to compile: a folder, or hf://OWNER/NAME on the hub.",
        autocompletion=completion.bundles,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="rtx (TensorRT-RTX, for GeForce; needs no GPU) or trt (TensorRT; on the device).",
        autocompletion=completion.words("rtx", "trt"),
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        help="Compute capability to compile for, such as 8.6 or 86; repeatable (default: the "
        "GPU here, else 8.0 and up).",
    ),
]
Batch = Annotated[
    str, typer.Option(help="Images per batch, or MIN:OPT:MAX; a single size takes least memory.")
]
Workspace = Annotated[
    str | None,
    typer.Option(help="Limit on the builder's scratch memory, such as 1GB."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be built, and build nothing.")
]


def build(
    bundle: BundleArgument,
    backend: Backend = "rtx",
    sm: Capabilities = None,
    batch: Batch = "8",
    workspace: Workspace = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle to TensorRT engines, each with a sidecar of its target and memory."""
    chosen = choice("--backend", backend, ("rtx", "trt"))
    sms = [_parse_capability(text) for text in sm or []]
    # Here, for the time that every `--help` takes: a test limits what commands import.
    import shlex

    from diver_trt.contract import NETWORKS
    from diver_trt.runtime.backends.tensorrt.builder import build_plan
    from diver_trt.runtime.backends.tensorrt.memory import parse_bytes
    from diver_trt.runtime.backends.tensorrt.sidecar import Profile, sidecar_facts
    from diver_trt.runtime.backends.tensorrt.target import check_target, resolve_target

    opened = open_bundle(bundle)
    target = resolve_target(
        chosen,
        sms,
        Profile.parse(batch),
        parse_bytes(workspace, "--workspace") if workspace else None,
    )
    check_target(opened, target)
    if dry_run:
        facts = _expected(opened, target)
        print_json(**facts) if as_json else print_facts(facts)
        say("activation memory comes on top: only the compiler can determine it")
        return
    built = []
    with progress("compiling", len(NETWORKS)) as advance:
        for sidecar in build_plan(
            opened,
            target,
            lambda name, phase, done, total: advance.note(f"{name}: {phase} {done}/{total}"),
        ):
            built.append(sidecar)
            advance()
    folder = target.folder(opened)
    if as_json:
        networks = {sidecar.network: sidecar_facts(sidecar) for sidecar in built}
        print_json(folder=str(folder), networks=networks)
        return
    for sidecar in built:
        print(_line(sidecar))
    print(
        f"wrote {printable(str(folder))}; next: diver-trt inspect "
        f"{printable(shlex.quote(bundle))} --memory-budget 2GB"
    )


def _expected(bundle: Bundle, target: Target) -> dict[str, Any]:
    """Return what is known of the engines before they are compiled."""
    from diver_trt.contract import NETWORKS
    from diver_trt.runtime.backends.tensorrt.compiler import io_bytes

    width = {"fp32": 4, "fp16": 2, "int8": 1, "int8-fp16": 1}[bundle.precision]
    return {
        "would_write": str(target.folder(bundle)),
        "targets": list(target.compute_capabilities),
        "networks": {
            name: {
                "batches": str(target.profile(name)),
                # An estimate: some weights stay float32 in every bundle (docs/precision.md).
                "weights_bytes": width * bundle.networks[name].parameters,
                "io_bytes": io_bytes(bundle.networks[name], target.profile(name).maximum),
            }
            for name in NETWORKS
        },
    }


def _line(sidecar: Sidecar) -> str:
    """Return an engine's memory and build time on one line."""
    from diver_trt.runtime.backends.tensorrt.memory import format_sum

    memory = sidecar.memory
    _, (weights, persistent, activations, io) = format_sum(
        (
            memory.weights_bytes,
            memory.persistent_bytes,
            memory.activation_bytes,
            memory.io_bytes,
        )
    )
    # Builders print skipped tactics as errors ("out of memory"), which alarms without cause.
    skipped = (
        f"   {sidecar.skipped_tactics} tactics skipped for lack of memory: harmless"
        if sidecar.skipped_tactics
        else ""
    )
    return (
        f"  {sidecar.network:<12} weights {weights:>11}   persistent {persistent:>8}   "
        f"activations {activations:>11}   inputs and outputs {io:>9}   "
        f"{sidecar.build_seconds:.1f} s{skipped}"
    )


def _parse_capability(text: str) -> int:
    """Return a compute capability times ten: 86 for `86`, `8.6`, `sm86` or `sm_86`."""
    # re.ASCII: \d also matches the digits of other scripts, which int() accepts too.
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower(), re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"--sm is {text!r}; expected a compute capability such as 8.6 or 86"
        )
    return int(match[1] + match[2])
