"""`diver-trt inspect`: what a file or folder of any kind is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver_trt.cli.console import phases, print_facts, print_json, say
from diver_trt.cli.options import (
    BundlePath,
    Classes,
    Collage,
    Format,
    Json,
    Normalisation,
    ZcaReference,
)
from diver_trt.errors import EngineError, OutputError, UsageError

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.distilled.dataset import Dataset
    from diver_trt.runtime.backends.tensorrt.plans import Plan


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A bundle, a folder of its engines, distilled images, or a recovered dataset.",
        ),
    ],
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: ZcaReference = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            help="For distilled images: write a picture of what would be fed to the model.",
            show_default=False,
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="For a bundle with engines: which plan fits this much engine memory, such as 2GB.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a bundle, an engine or a dataset is, and whether its files are whole."""
    from diver_trt.bundle import MANIFEST as BUNDLE_MANIFEST
    from diver_trt.bundle import Bundle, default_bundle
    from diver_trt.distilled.dataset import read_dataset
    from diver_trt.distilled.digits import find_source
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.manifest import inspect_recovered, is_recovered, unlisted_note
    from diver_trt.runtime.backends.tensorrt.plans import read_plan

    path = find_source(path)
    folder = path.parent if path.suffix == ".engine" else path
    if (folder / BUNDLE_MANIFEST).exists():
        facts = _inspect_bundle(folder, memory_budget)
    elif (folder / "denoiser.json").exists():
        facts = _plan_facts(read_plan(folder))
    elif is_recovered(folder):
        facts = inspect_recovered(folder)
        if note := unlisted_note(folder):
            say(f"warning: {note}")
    else:
        if contact_sheet:
            _require_place(contact_sheet, path)
        opened = Bundle.open(bundle or default_bundle())
        dataset = read_dataset(
            path, opened, ReadOptions(classes, source_format, normalisation, collage, zca_reference)
        )
        facts = _inspect_distilled(dataset, opened, contact_sheet)
    if as_json:
        print_json(**facts)
        _end_if_damaged(facts.get("damaged_engines", []))
        return
    if not facts.get("not_listed"):
        facts.pop("not_listed", None)
    engines = {folder.name: facts.pop("memory")} if "memory" in facts else facts.pop("engines", {})
    chosen, damaged = facts.pop("chosen", None), facts.pop("damaged_engines", [])
    if "licence" in facts:
        facts["licence"] = facts["licence"] or "not stated"
    print_facts(facts)
    for name, memory in engines.items():
        _print_memory(name, memory)
    if chosen:
        print(
            f"within {memory_budget}: {chosen['engines']}, batch {chosen['batch']}, networks "
            f"{chosen['residency']}"
        )
    _end_if_damaged(damaged)


def _end_if_damaged(damaged: list[str]) -> None:
    """Report engines that are missing or changed, and end with an error if there are any."""
    for problem in damaged:
        say(f"error: {problem}")
    if damaged:
        raise typer.Exit(1)


def _inspect_bundle(path: Path, memory_budget: str | None) -> dict[str, Any]:
    from diver_trt.bundle import NETWORKS, Bundle
    from diver_trt.runtime.backends.tensorrt.memory import choose_memory_plan, parse_bytes
    from diver_trt.runtime.backends.tensorrt.plans import Plan, read_plans

    bundle = Bundle.open(path)
    for name in NETWORKS:
        bundle.verified(name)
    facts = bundle_facts(bundle)
    found = list(read_plans(bundle))
    plans = [plan for plan in found if isinstance(plan, Plan)]
    if found:
        facts["engines"] = {plan.folder.name: _memory_facts(plan) for plan in plans}
        facts["damaged_engines"] = [str(error) for plan in plans for error in plan.check()]
        for error in (plan for plan in found if not isinstance(plan, Plan)):
            say(f"warning: {error}")
    if memory_budget:
        if not plans:
            raise EngineError(
                f"{path}: has no engines to plan for; build them with `diver-trt build {path}`"
            )
        chosen = choose_memory_plan(plans, parse_bytes(memory_budget))
        facts["chosen"] = {
            "engines": chosen.plan.folder.name,
            "batch": chosen.batch,
            "residency": chosen.residency,
            "peak_bytes": chosen.peak_bytes,
        }
    return facts


def _require_place(sheet: Path, dataset: Path) -> None:
    """Refuse to write a contact sheet over another file or among a dataset's images.

    Among the images it would be read as one of them.
    """
    from diver_trt.files import resolved

    if sheet.suffix.lower() != ".png":
        raise UsageError(
            f"--contact-sheet {sheet}: is written as PNG; expected a name that ends in .png"
        )
    if dataset.resolve() in resolved(sheet).parent.parents:
        raise OutputError(
            f"--contact-sheet {sheet}: lies in a folder within the dataset, as its images do; "
            "choose another place"
        )
    if sheet.is_file():
        with sheet.open("rb") as file:
            if file.read(len(_PNG)) != _PNG:
                raise OutputError(
                    f"--contact-sheet {sheet}: is there already, and no PNG; choose another name"
                )


_PNG = b"\x89PNG\r\n\x1a\n"


def _inspect_distilled(
    dataset: Dataset, model: Bundle, contact_sheet: Path | None
) -> dict[str, Any]:
    from diver_trt.recovered.job import distilled_sheet, mean_clipped
    from diver_trt.recovered.run import Notes, check_images

    with phases() as show:
        checked = check_images(dataset, model, Notes(say), show)
    if contact_sheet:
        from diver_trt.files import replacing, reported

        with reported(contact_sheet), replacing(contact_sheet) as temporary:
            distilled_sheet(dataset, model).save(temporary, format="PNG")
        say(f"what would be fed to the model: {contact_sheet}")
    origin = dataset.origin
    return {
        "kind": "distilled images",
        "format": origin.format.name,
        "files": list(origin.files),
        "images": len(dataset.samples),
        "classes": len(dataset.labels),
        "image_size": list(origin.image_size),
        "normalisation": origin.normalisation,
        "whitening": origin.whitening,
        "clipped": round(mean_clipped(checked), 6),
        "collage": origin.collage,
        "soft_labels": origin.soft_labels,
        "class_map": dataset.classes,
        "model": f"{model.model_id} {model.precision}",
        "labels": {str(index): label for index, label in dataset.labels.items()},
        "notes": list(origin.notes),
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from diver_trt.runtime.backends.tensorrt.sidecar import sidecar_facts

    for name in plan.sidecars:
        plan.read(name)
    built = plan.sidecars["denoiser"].built_on
    return {
        "kind": "engines",
        "backend": built.backend,
        "version": built.version,
        "networks": {name: sidecar_facts(sidecar) for name, sidecar in plan.sidecars.items()},
        "memory": _memory_facts(plan),
    }


def _memory_facts(plan: Plan) -> dict[str, Any]:
    """Return what is alive in every phase, in bytes, under both residencies."""
    from dataclasses import asdict

    from diver_trt.runtime.backends.tensorrt.memory import RESIDENCIES, plan_memory

    facts: dict[str, Any] = {}
    for residency in RESIDENCIES:
        memory = plan_memory(plan, residency)
        phases = {
            phase.network: {**asdict(phase), "total_bytes": phase.total_bytes}
            for phase in memory.phases
        }
        facts[residency] = {**phases, "peak_bytes": memory.peak_bytes}
    return facts


def _print_memory(name: str, facts: dict[str, Any]) -> None:
    """Print a plan's phases, a line each: the total, and what it is made of."""
    from diver_trt.runtime.backends.tensorrt.memory import format_sum

    for residency in ("resident", "phased"):
        peak, _ = format_sum([facts[residency]["peak_bytes"]])
        print(f"{name}, {residency}: peak {peak}")
        for network, phase in facts[residency].items():
            if network != "peak_bytes":
                total, sizes = format_sum([phase[f"{part}_bytes"] for part in _PARTS])
                parts = (
                    f"{part} {size}" for part, size in zip(_PARTS.values(), sizes, strict=True)
                )
                print(f"  {network:<12} {total:>11}  =  {'  +  '.join(parts)}")


_PARTS = {
    "weights": "weights",
    "persistent": "persistent",
    "scratch": "scratch",
    "io": "inputs and outputs",
}


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle is, as `inspect` and `export` tell it."""
    return {
        "kind": "bundle",
        "model": bundle.model_id,
        "licence": bundle.licence,
        "precision": bundle.precision,
        "image_size": bundle.image_size,
        "latent_shape": list(bundle.latent_shape),
        "classes": bundle.num_classes,
        "learned_variance": bundle.learned_variance,
        "timestep_frequencies": bundle.timestep_frequencies,
        "networks": {
            name: {
                "parameters": network.parameters,
                "size_bytes": sum(record.size_bytes for record in network.files),
                "reads": [str(spec) for spec in network.inputs],
                "writes": [str(spec) for spec in network.outputs],
            }
            for name, network in bundle.networks.items()
        },
        "exported_with": dict(bundle.exported_with),
    }
