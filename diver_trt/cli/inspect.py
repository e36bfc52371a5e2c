"""`diver-trt inspect`: facts about a bundle, its engines, or a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diver_trt.cli.console import phases, print_facts, print_json, say
from diver_trt.cli.options import (
    BundlePath,
    Classes,
    Collage,
    Format,
    Json,
    Normalisation,
    open_bundle,
    refuse,
)
from diver_trt.errors import BundleError, EngineError

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.runtime.backends.tensorrt.plans import Plan


Kind = Literal["a bundle", "a folder of engines", "a recovered dataset", "a distilled dataset"]

PathArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A bundle (a folder, or hf://OWNER/NAME on the hub), a folder of its engines, "
        "distilled images, or a recovered dataset.",
    ),
]
ContactSheet = Annotated[
    Path | None,
    typer.Option(
        help="For distilled images: write a picture of the images as the model would get them."
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        help="For a bundle with engines: choose what fits this much engine memory, such as 2GB."
    ),
]


def inspect(
    path: PathArgument,
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    contact_sheet: ContactSheet = None,
    memory_budget: MemoryBudget = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle, an engine or a dataset is, and check that its files are intact."""
    from diver_trt.digits import find_source
    from diver_trt.distilled.companion import recovered_folder
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.hub.name import HubName
    from diver_trt.manifest import inspect_recovered, note_of_unlisted
    from diver_trt.runtime.backends.tensorrt.plans import read_plan

    path = open_bundle(str(path)).path if HubName.parse(path) else find_source(path)
    # An engine, a sidecar and a file beside recovered images each stand for their folder.
    folder = _engines_of(path) or recovered_folder(path) or path
    _refuse_parts(path)
    kind = _kind_of(folder)
    if kind != "a distilled dataset":
        of_distilled = {
            "--bundle": bundle,
            "--classes": classes,
            "--format": source_format,
            "--normalisation": normalisation,
            "--collage": collage,
            "--contact-sheet": contact_sheet,
        }
        refuse(of_distilled, f"{path} is {kind}")
    if kind != "a bundle":
        refuse({"--memory-budget": memory_budget}, f"{path} is {kind}")
    if kind == "a bundle":
        facts = _inspect_bundle(folder, memory_budget)
    elif kind == "a folder of engines":
        facts = _plan_facts(read_plan(folder))
    elif kind == "a recovered dataset":
        facts = inspect_recovered(folder)
        if note := note_of_unlisted(folder, facts["not_listed"]):
            say(f"warning: {note}")
    else:
        options = ReadOptions(classes, source_format, normalisation, collage)
        facts = _inspect_distilled(path, bundle, options, contact_sheet)
    if as_json:
        print_json(**facts)
    else:
        _print_inspected(facts, folder.name, memory_budget)
    # Last, so that the facts of the undamaged engines are printed too.
    for problem in facts.get("damaged_engines", []):
        say(f"error: {problem}")
    if facts.get("damaged_engines"):
        raise typer.Exit(1)


def _kind_of(folder: Path) -> Kind:
    """Return what a folder is, by its marker files."""
    from diver_trt.bundle import MANIFEST as BUNDLE_MANIFEST
    from diver_trt.manifest import is_recovered

    # From the most specific kind to the least: a bundle may contain engines, and every folder may
    # be read as distilled images.
    if (folder / BUNDLE_MANIFEST).exists():
        return "a bundle"
    if (folder / "denoiser.json").exists():
        return "a folder of engines"
    return "a recovered dataset" if is_recovered(folder) else "a distilled dataset"


def _engines_of(path: Path) -> Path | None:
    """Return the folder of an engine or its sidecar, or None if a path is neither."""
    from diver_trt.contract import NETWORKS

    is_sidecar = path.suffix == ".json" and path.stem in NETWORKS
    is_engine = path.suffix == ".engine" and path.exists()
    return path.parent if is_engine or (is_sidecar and path.exists()) else None


def _refuse_parts(path: Path) -> None:
    """Refuse parts of a bundle that are not facts of their own.

    Raises:
        BundleError: If a path is a bundle's own file, or its folder of engines for several GPUs.
    """
    from diver_trt.bundle import MANIFEST
    from diver_trt.runtime.backends.tensorrt.plans import PLANS

    if not (path.parent / MANIFEST).exists():
        return
    if path.is_dir() and path.name == PLANS:
        raise BundleError(
            f"{path}: holds the engines of a bundle, each kind in a folder of its own. Give "
            f"one of these, or the bundle: {path.parent}."
        )
    if path.is_file() and (path.name == MANIFEST or path.suffix in (".onnx", ".data")):
        raise BundleError(f"{path}: is a file of a bundle. Give the bundle: {path.parent}.")


def _print_inspected(facts: dict[str, Any], folder: str, memory_budget: str | None) -> None:
    """Print facts for people: empty lists are left out, and memory is a table below the rest."""
    apart = ("memory", "engines", "chosen", "damaged_engines")
    plain = {name: value for name, value in facts.items() if name not in apart}
    if not plain.get("not_listed"):
        plain.pop("not_listed", None)
    if prompts := plain.get("prompts"):
        # The null class's prompt is the last one (`diver_trt.models.prompts.stored_prompts`).
        *texts, negative = map(repr, prompts)
        more = f", … ({len(texts)} classes)" if len(texts) > _FEW_PROMPTS else ""
        plain["prompts"] = f"{', '.join(texts[:_FEW_PROMPTS])}{more}; negative: {negative}"
    if "licence" in plain:
        plain["licence"] = plain["licence"] or "not stated"
    print_facts(plain)
    # A folder of engines is one plan; a bundle has one for each kind of GPU.
    engines = {folder: facts["memory"]} if "memory" in facts else facts.get("engines", {})
    for name, memory in engines.items():
        _print_memory(name, memory)
    if chosen := facts.get("chosen"):
        print(
            f"within {memory_budget}: {chosen['engines']}, batch {chosen['batch']}, networks "
            f"{chosen['residency']}"
        )


def _inspect_bundle(path: Path, memory_budget: str | None) -> dict[str, Any]:
    # Here, for the time that every `--help` takes: a test limits what commands import.
    import shlex

    from diver_trt.bundle import Bundle
    from diver_trt.contract import NETWORKS
    from diver_trt.runtime.backends.tensorrt.memory import choose_memory_plan, parse_bytes
    from diver_trt.runtime.backends.tensorrt.plans import Plan, StrayFoldersError, read_plans

    # Parsed first, so that an invalid budget is refused even without engines.
    budget = None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget")
    bundle = Bundle.open(path)
    for name in NETWORKS:
        # Hashed, so that a damaged file is found here and not on a device.
        bundle.verified(name)
    facts = bundle_facts(bundle)
    found = list(read_plans(bundle))
    plans = [plan for plan in found if isinstance(plan, Plan)]
    if found:
        facts["engines"] = {plan.folder.name: _memory_facts(plan) for plan in plans}
        unread = [error for error in found if not isinstance(error, (Plan, StrayFoldersError))]
        changed = [error for plan in plans for error in plan.check(bundle)]
        facts["damaged_engines"] = list(map(str, (*unread, *changed)))
        for error in found:
            if isinstance(error, StrayFoldersError):
                say(f"warning: {error}")
    if budget is not None:
        # `recover` refuses engines of another export, so they are not candidates.
        plans = [plan for plan in plans if plan.is_of(bundle)]
        if not plans:
            raise EngineError(
                f"{path}: has no engines to plan for; build them with `diver-trt build "
                f"{shlex.quote(str(path))}`"
            )
        chosen = choose_memory_plan(plans, budget)
        facts["chosen"] = {
            "engines": chosen.plan.folder.name,
            "batch": chosen.batch,
            "residency": chosen.residency,
            "peak_bytes": chosen.peak_bytes,
        }
    return facts


def _inspect_distilled(
    path: Path, bundle: str | None, options: ReadOptions, contact_sheet: Path | None
) -> dict[str, Any]:
    from diver_trt.cli.sheet_file import require_place, save_sheet
    from diver_trt.distilled.dataset import read_dataset
    from diver_trt.distilled.image_doubts import image_doubts
    from diver_trt.recovered.checking import Notes, check_images
    from diver_trt.recovered.dataset_sheet import distilled_sheet
    from diver_trt.recovered.job import mean_clipped

    if contact_sheet:
        # Before the images are checked, which takes minutes for a large set.
        require_place(contact_sheet, path)
    model = open_bundle(bundle)
    dataset = read_dataset(path, model, options)
    with phases() as show:
        checked = check_images(dataset, model, Notes(say), show)
    if contact_sheet:
        save_sheet(contact_sheet, distilled_sheet(dataset, model))
        say(f"the images as the model would get them: {contact_sheet}")
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
        # Texts, since the names in a JSON object are.
        "labels": {str(index): label for index, label in dataset.labels.items()},
        "notes": [*origin.notes, *image_doubts(dataset, checked)],
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from diver_trt.runtime.backends.tensorrt.sidecar import sidecar_facts

    # Reading compares an engine's bytes with the hash in its sidecar.
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
    """Return what is allocated in every phase, in bytes, under both residencies."""
    from dataclasses import asdict

    from diver_trt.runtime.backends.tensorrt.memory import RESIDENCIES, plan_memory

    facts: dict[str, Any] = {}
    for residency in RESIDENCIES:
        memory = plan_memory(plan, residency)
        phases = {
            phase.network: {
                **asdict(phase),
                # The name that sidecars have for it; `scratch_bytes` is kept for its readers.
                "activation_bytes": phase.scratch_bytes,
                "total_bytes": phase.total_bytes,
            }
            for phase in memory.phases
        }
        facts[residency] = {**phases, "peak_bytes": memory.peak_bytes}
    return facts


def _print_memory(name: str, facts: dict[str, Any]) -> None:
    """Print a plan's phases, one line each: the total and its parts."""
    from diver_trt.runtime.backends.tensorrt.memory import RESIDENCIES, format_sum

    for residency in RESIDENCIES:
        peak, _ = format_sum([facts[residency]["peak_bytes"]])
        print(f"{name}, {residency}: peak {peak}")
        for network, phase in facts[residency].items():
            if network != "peak_bytes":
                total, sizes = format_sum([phase[f"{part}_bytes"] for part in _PARTS])
                parts = (
                    f"{part} {size}" for part, size in zip(_PARTS.values(), sizes, strict=True)
                )
                print(f"  {network:<12} {total:>11}  =  {'  +  '.join(parts)}")


_FEW_PROMPTS = 3
"""Of a bundle's prompts, those that are printed; `--json` has all of them."""

_PARTS = {
    "weights": "weights",
    "persistent": "persistent",
    "activation": "activations",
    "io": "inputs and outputs",
}


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what `inspect` and `export` print of a bundle."""
    return {
        "kind": "bundle",
        "model": bundle.model_id,
        "base": bundle.model.base,
        "licence": bundle.model.licence,
        "precision": bundle.precision,
        "image_size": bundle.image_size,
        "latent_shape": list(bundle.latent_shape),
        "classes": bundle.num_classes,
        "learned_variance": bundle.learned_variance,
        "timestep_frequencies": bundle.timestep_frequencies,
        **({"prompts": list(bundle.prompts)} if bundle.prompts else {}),
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
