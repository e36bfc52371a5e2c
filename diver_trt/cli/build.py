"""`diver-trt build`: a bundle in, TensorRT engines and their sidecars out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import print_facts, print_json, progress, say
from diver_trt.cli.options import Json, choice


def build(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", help="The bundle to compile.", autocompletion=completion.bundles
        ),
    ],
    backend: Annotated[
        str,
        typer.Option(
            help="rtx (TensorRT-RTX, for GeForce; needs no GPU) or trt (TensorRT; on the device).",
            autocompletion=completion.values(lambda: ["rtx", "trt"]),
        ),
    ] = "rtx",
    sm: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute capability to compile for, such as 8.6 or 86; repeatable (default: the "
            "GPU here, else 8.0 and up).",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="Images per batch, or MIN:OPT:MAX; one size takes least memory.")
    ] = "8",
    workspace: Annotated[
        str | None,
        typer.Option(
            help="Limit on the builder's scratch memory, such as 1GB.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be built, and build nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle to TensorRT engines, each with a sidecar of its target and memory."""
    chosen = choice("--backend", backend, ("rtx", "trt"))
    sms = [_parse_capability(text) for text in sm or []]
    from diver_trt.bundle import NETWORKS, Bundle
    from diver_trt.runtime.backends.tensorrt.builder import build_plan
    from diver_trt.runtime.backends.tensorrt.compiler import io_bytes
    from diver_trt.runtime.backends.tensorrt.memory import format_sum, parse_bytes
    from diver_trt.runtime.backends.tensorrt.sidecar import Profile, sidecar_facts
    from diver_trt.runtime.backends.tensorrt.target import check_target, resolve_target

    opened = Bundle.open(bundle)
    target = resolve_target(
        chosen, sms, Profile.parse(batch), parse_bytes(workspace) if workspace else None
    )
    check_target(opened, target)
    folder = target.folder(opened)
    if dry_run:
        width = 2 if opened.precision == "fp16" else 4
        expected: dict[str, Any] = {
            name: {
                "batches": str(target.profile(name)),
                "weights_bytes": width * opened.networks[name].parameters,
                "io_bytes": io_bytes(opened.networks[name], target.profile(name).maximum),
            }
            for name in NETWORKS
        }
        facts = {
            "would_write": str(folder),
            "targets": list(target.compute_capabilities),
            "networks": expected,
        }
        print_json(**facts) if as_json else print_facts(facts)
        say(
            "scratch memory comes on top: only the compiler knows it, and reports it in the "
            "sidecars"
        )
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
    if as_json:
        print_json(
            folder=str(folder),
            networks={sidecar.network: sidecar_facts(sidecar) for sidecar in built},
        )
        return
    for sidecar in built:
        memory = sidecar.memory
        skipped = (
            f"   {sidecar.skipped_tactics} tactics skipped for lack of memory: harmless"
            if sidecar.skipped_tactics
            else ""
        )
        parts = (
            memory.weights_bytes,
            memory.persistent_bytes,
            memory.activation_bytes,
            memory.io_bytes,
        )
        _, (weights, persistent, scratch, io) = format_sum(parts)
        print(
            f"  {sidecar.network:<12} weights {weights:>11}   persistent {persistent:>8}   "
            f"scratch {scratch:>11}"
            f"   inputs and outputs {io:>9}   {sidecar.build_seconds:.1f} s{skipped}"
        )
    print(f"wrote {folder}; next: diver-trt inspect {bundle} --memory-budget 2GB")


def _parse_capability(text: str) -> int:
    """Return a compute capability times ten: 86 for `86`, `8.6`, `sm86` or `sm_86`."""
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower(), re.ASCII)
    if match is None:
        raise typer.BadParameter(
            f"--sm is {text!r}; expected a compute capability such as 8.6 or 86"
        )
    return int(match[1] + match[2])
