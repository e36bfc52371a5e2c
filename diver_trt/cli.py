"""The command line: each command parses, calls the library and prints. Nothing else in the package prints or exits.

Exit codes: 0 done, 1 failed with a one-line reason, 2 wrong usage, 130 interrupted. Heavy packages are imported inside the
commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from diver_trt.errors import DiverError, EngineError, MissingExtraError, RecipeError, printable

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.datasets.dataset import Dataset
    from diver_trt.datasets.image_source import Checked
    from diver_trt.recipe import Recipe
    from diver_trt.sidecar import Plan

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    help="Recover distilled datasets with DIVER: abstract distilled images become realistic ones that any network learns from.",
    epilog="Try it: diver-trt recover examples/digits/distilled/ipc10 recovered",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
Classes = Annotated[
    str | None,
    typer.Option(help="Which classes these are: a subset (imagenette, imagewoof, imagefruit, …), a FILE, or 'model'.", show_default=False),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="Who wrote it: mtt, glad, dc, idc, dream, ncfm, frepo, kip; sre2l, rded, d4m, minimax, folders.", show_default=False
    ),
]
Normalisation = Annotated[
    str | None,
    typer.Option(help="What tensors were normalised with: imagenet, cifar10, glad, none, …, or MEAN:STD.", show_default=False),
]
Collage = Annotated[int | None, typer.Option(help="Images along a side of each stored one; 1 keeps them whole.", show_default=False)]
ZcaReference = Annotated[
    Path | None, typer.Option(help="Training images, to fit a ZCA transform again that the file does not have.", show_default=False)
]
BundlePath = Annotated[Path | None, typer.Option("--bundle", help="Exported model.  [default: the digits model]", show_default=False)]


def main() -> None:
    """Run the command line."""
    app()


def reporting(command: Callable[P, T]) -> Callable[P, T]:
    """Turn this package's errors, warnings and Ctrl-C into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            return command(*args, **kwargs)
        except DiverError as error:
            reason, *remedies = str(error).splitlines()
            _say(f"error: {reason}")
            for remedy in remedies:
                _say(remedy)
            raise typer.Exit(2 if isinstance(error, RecipeError) else 1) from error
        except OSError as error:
            _say(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            _say("interrupted")
            raise typer.Exit(130) from interrupt

    return wrapped


def version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        from diver_trt import __version__

        print(f"diver-trt {__version__}")
        raise typer.Exit


@app.callback()
def root(_: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")] = False) -> None:
    """Options of the command line as a whole."""


@app.command(epilog="Example: diver-trt recover examples/digits/distilled/ipc10 recovered")
@reporting
def recover(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Distilled images: class folders, or a method's own tensors (.pt, .npz, .safetensors).")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New or empty folder for the recovered images.")],
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: ZcaReference = None,
    layout: Annotated[str, typer.Option(help="What to write: index or wnid folders, huggingface, or folders and tensors: pt, npz, idc.")] = "index",
    size: Annotated[str, typer.Option(help="Side of the written images in pixels, such as 128 or 224; keep is the model's.")] = "keep",
    engine: Annotated[str, typer.Option(help="onnx (CPU), onnx-cuda, rtx, trt, or auto: the fastest that really works here.")] = "auto",
    batch: Annotated[str, typer.Option(help="Images per batch, or auto. Changes speed and memory, never the result.")] = "auto",
    memory_budget: Annotated[
        str | None, typer.Option(help="Limit on engine memory, such as 2GB; for rtx and trt.", show_default=False)
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run engines that were built elsewhere: they are code. Said once, it is remembered.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise; each image draws its own.")] = 0,
    preset: Annotated[str, typer.Option(help="Recipe to start from: paper, ncfm (gamma 0.02), matched (t_r = t_f, half the steps).")] = "paper",
    steps: Annotated[int | None, typer.Option(help="DDIM steps K.  [paper: 50]", show_default=False)] = None,
    inherit_step: Annotated[int | None, typer.Option(help="Noise level t_f the distilled latent is lifted to.  [paper: 25]", show_default=False)] = None,
    no_inheritance: Annotated[bool, typer.Option("--no-inheritance", help="Ablation: start from pure noise.")] = False,
    start_step: Annotated[
        str | None, typer.Option(help="Step t_r sampling starts at, or matched (= the inherit step).  [paper: 50]", show_default=False)
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance w.  [paper: 4.0]", show_default=False)] = None,
    cfg_channels: Annotated[int | None, typer.Option(help="Latent channels it guides: 3 as DiT, 4 as diffusers.  [3]", show_default=False)] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength of semantic guidance.  [paper: 0.1]", show_default=False)] = None,
    no_guidance: Annotated[bool, typer.Option("--no-guidance", help="Ablation: no semantic guidance (gamma 0).")] = False,
    window: Annotated[
        str | None, typer.Option(help="Steps HIGH:LOW it acts in, HIGH >= k > LOW, or full.  [paper: 40:25]", show_default=False)
    ] = None,
    sigma: Annotated[str | None, typer.Option(help="Its scale: learned, posterior or marginal.  [learned]", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Recover a distilled dataset: one realistic image for each distilled one."""
    recipe = _recipe(
        preset,
        start_step=start_step,
        window=window,
        no_inheritance=no_inheritance,
        no_guidance=no_guidance,
        steps=steps,
        inherit_step=inherit_step,
        cfg_scale=cfg_scale,
        cfg_channels=cfg_channels,
        gamma=gamma,
        sigma=sigma,
    )
    from diver_trt.bundle import Bundle, default_bundle
    from diver_trt.datasets.dataset import read_dataset
    from diver_trt.datasets.layout import LAYOUTS
    from diver_trt.datasets.read_options import ReadOptions
    from diver_trt.recovery import check_output, contact_sheet_path, recover_dataset
    from diver_trt.runtime.memory import format_bytes, parse_bytes
    from diver_trt.runtime.recoverer import Recoverer

    chosen_layout, side = _choice("--layout", layout, LAYOUTS), None if size == "keep" else _positive("--size", size)
    images_per_batch = None if batch == "auto" else _positive("--batch", batch)
    opened = Bundle.open(bundle or default_bundle())
    dataset = read_dataset(source, opened, ReadOptions(classes, source_format, normalisation, collage, zca_reference))
    check_output(dataset, opened, output, chosen_layout)
    count = len(dataset.samples)
    checked = _checked(dataset, opened)
    budget = parse_bytes(memory_budget) if memory_budget else None
    started = time.monotonic()
    with Recoverer(opened, recipe, engine=engine, batch=images_per_batch, memory_budget=budget, images=count, trust=trust) as recoverer:
        per_batch = recoverer.batch
        batches = -(-count // per_batch)
        _say(f"recovering on {recoverer.engine} in {batches} batches of up to {per_batch}, {recoverer.steps_per_batch} steps each")
        if recoverer.memory:
            _say(f"networks {recoverer.memory.residency}, {format_bytes(recoverer.memory.peak_bytes)} of engine memory at the peak")
        with _progress("recovering", batches * recoverer.steps_per_batch) as advance:
            for _ in recover_dataset(dataset, checked, output, recoverer, seed=seed, layout=chosen_layout, size=side, on_step=advance):
                pass
        used = recoverer.engine
    seconds = time.monotonic() - started
    sheet = contact_sheet_path(output)
    if as_json:
        _print_json(output=str(output), images=count, engine=used, batch=per_batch, seconds=round(seconds, 3), contact_sheet=str(sheet))
    else:
        print(f"recovered {count} images into {output} in {seconds:.1f} s; look at {sheet}")


@app.command(epilog="Example: diver-trt export facebook/DiT-XL-2-256 engines/dit-xl-2-256")
@reporting
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A DiTPipeline (directory or hub name), or a .pt file in DiT's own layout.")],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="New folder for the bundle.")],
    precision: Annotated[str, typer.Option(help="fp32 (the reference) or fp16 (what ships to GPUs).")] = "fp32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default=False)] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE, directory or hub name; a .pt file has none of its own.", show_default=False)] = None,
    timestep_frequencies: Annotated[
        str | None,
        typer.Option(help="Sinusoids the weights were trained with: dit or diffusers.  [default: by where they come from]", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a diffusion transformer and its VAE to a bundle of four checked ONNX graphs."""
    chosen = _choice("--precision", precision, ("fp32", "fp16"))
    frequencies = _choice("--timestep-frequencies", timestep_frequencies, ("dit", "diffusers")) if timestep_frequencies else None
    try:
        from diver_trt.export.checkpoint import load_model
        from diver_trt.export.exporter import export_bundle
    except ImportError as cause:
        raise MissingExtraError(cause.name or "torch", "export", "exporting") from cause

    loaded = load_model(model, revision=revision, vae=vae, timestep_frequencies=frequencies)
    _say(f"{loaded.model_id}: timestep frequencies of {loaded.timestep_frequencies} ({loaded.frequencies_reason}); --timestep-frequencies overrides")
    exported = []
    with _progress("exporting", 4) as advance:
        for network in export_bundle(loaded, bundle, chosen):
            exported.append(network)
            advance()
    from diver_trt.bundle import Bundle

    written = Bundle.open(bundle)
    if as_json:
        errors = {item.network.name: item.error for item in exported}
        _print_json(bundle=str(bundle), sha256=written.sha256, relative_l2=errors, **_bundle_facts(written))
    else:
        for item in exported:
            print(f"  {item.network.name:<12} {item.network.parameters:>13,} parameters   relative L2 to torch {item.error:.1e}")
        print(f"wrote {bundle}; next: diver-trt recover DISTILLED RECOVERED --bundle {bundle}")


@app.command(epilog="Example: diver-trt build engines/digits --sm 86 --batch 8")
@reporting
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to compile.")],
    backend: Annotated[str, typer.Option(help="rtx (TensorRT-RTX, for GeForce; needs no GPU) or trt (TensorRT; on the device).")] = "rtx",
    sm: Annotated[
        list[int] | None,
        typer.Option(help="Compute capability to compile for, such as 86; repeatable.  [default: the GPU here, else 80 and up]", show_default=False),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per batch, or MIN:OPT:MAX; one size takes least memory.")] = "8",
    workspace: Annotated[str | None, typer.Option(help="Limit on the builder's scratch memory, such as 1GB.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, and build nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a bundle to TensorRT engines, with a sidecar each that says where they run and what memory they want."""
    chosen = _choice("--backend", backend, ("rtx", "trt"))
    from diver_trt.bundle import NETWORKS, Bundle
    from diver_trt.export.engine_builder import build_plan, io_bytes, resolve_target
    from diver_trt.runtime.memory import format_bytes, parse_bytes
    from diver_trt.sidecar import Profile, sidecar_facts

    opened = Bundle.open(bundle)
    target = resolve_target(chosen, sm or [], Profile.parse(batch), parse_bytes(workspace) if workspace else None)
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
        facts = {"would_write": str(folder), "targets": list(target.compute_capabilities), "networks": expected}
        _print_json(**facts) if as_json else _print_facts(facts)
        _say("activations come on top: only the compiler knows them, and writes them into the sidecars")
        return
    built = []
    with _progress("compiling", len(NETWORKS)) as advance:
        for sidecar in build_plan(opened, target, lambda name, phase, done, total: advance.note(f"{name}: {phase} {done}/{total}")):
            built.append(sidecar)
            advance()
    if as_json:
        _print_json(folder=str(folder), networks={sidecar.network: sidecar_facts(sidecar) for sidecar in built})
        return
    for sidecar in built:
        memory = sidecar.memory
        skipped = f"   {sidecar.skipped_tactics} tactics skipped for want of memory: harmless" if sidecar.skipped_tactics else ""
        print(
            f"  {sidecar.network:<12} weights {format_bytes(memory.weights_bytes):>9}   activations {format_bytes(memory.activation_bytes):>9}"
            f"   in and out {format_bytes(memory.io_bytes):>8}   {sidecar.build_seconds:.1f} s{skipped}"
        )
    print(f"wrote {folder}; next: diver-trt inspect {bundle} --memory-budget 2GB")


@app.command(epilog="Example: diver-trt convert images_best.pt images_best.npz")
@reporting
def convert(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A method's tensors: a .pt file or its folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new .npz or .safetensors file.")],
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    as_json: Json = False,
) -> None:
    """Convert distilled tensors for a device without torch: same values, read there without any guess."""
    from diver_trt.datasets.converter import convert_tensors
    from diver_trt.datasets.read_options import ReadOptions
    from diver_trt.datasets.tensor_files import find_one_tensor_file
    from diver_trt.datasets.tensor_reader import read_tensors

    tensors = read_tensors(find_one_tensor_file(source), ReadOptions(method=source_format, normalisation=normalisation, collage=collage))
    factor = collage or tensors.collage or tensors.format.default_collage(tensors.side)
    convert_tensors(tensors, factor, output)
    facts = {"format": tensors.format.name, "normalisation": tensors.normalisation.name, "collage": factor, "images": len(tensors.images)}
    if as_json:
        _print_json(output=str(output), source=str(tensors.path), **facts)
        return
    for note in tensors.notes:
        _say(f"note: {note}")
    print(f"wrote {output}: {len(tensors.images)} images of {tensors.format.methods}, normalisation {tensors.normalisation.name}, collage {factor}")


@app.command(epilog="Example: diver-trt doctor")
@reporting
def doctor(bundle: BundlePath = None, as_json: Json = False) -> None:
    """Try everything that a recovery may need, and name the command that mends what is broken."""
    from dataclasses import asdict

    from diver_trt.bundle import Bundle, default_bundle
    from diver_trt.doctor import examine, usable

    findings = []
    for finding in examine(Bundle.open(bundle or default_bundle())):
        findings.append(finding)
        if not as_json:
            print(f"{finding.state:<8} {finding.subject}: {finding.detail}")
            if finding.remedy and finding.state != "works":
                print(f"         -> {finding.remedy}")
    if as_json:
        _print_json(usable=usable(findings), findings=[asdict(finding) for finding in findings])
    if not usable(findings):
        raise typer.Exit(1)


@app.command(epilog="Example: diver-trt inspect engines/digits --memory-budget 2GB")
@reporting
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A bundle, a folder of its engines, distilled images, or a recovered dataset.")],
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: ZcaReference = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="For distilled images: write a picture of what would be fed to the model.", show_default=False)
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(help="For a bundle with engines: which plan fits this much engine memory, such as 2GB.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a bundle, an engine or a dataset is, and whether its files are whole."""
    from diver_trt.bundle import MANIFEST as BUNDLE_MANIFEST
    from diver_trt.bundle import Bundle, default_bundle
    from diver_trt.datasets.dataset import read_dataset
    from diver_trt.datasets.read_options import ReadOptions
    from diver_trt.datasets.recovered import inspect_recovered, is_recovered
    from diver_trt.sidecar import read_plan

    folder = path.parent if path.suffix == ".engine" else path
    if (folder / BUNDLE_MANIFEST).exists():
        facts = _inspect_bundle(folder, memory_budget)
    elif (folder / "denoiser.json").exists():
        facts = _plan_facts(read_plan(folder))
    elif is_recovered(folder):
        facts = inspect_recovered(folder)
    else:
        opened = Bundle.open(bundle or default_bundle())
        dataset = read_dataset(path, opened, ReadOptions(classes, source_format, normalisation, collage, zca_reference))
        facts = _inspect_distilled(dataset, opened, contact_sheet)
    if as_json:
        _print_json(**facts)
        return
    engines = {folder.name: facts.pop("memory")} if "memory" in facts else facts.pop("engines", {})
    chosen = facts.pop("chosen", None)
    _print_facts(facts)
    for name, memory in engines.items():
        _print_memory(name, memory)
    if chosen:
        print(f"within {memory_budget}: {chosen['engines']}, batch {chosen['batch']}, networks {chosen['residency']}")


def _inspect_bundle(path: Path, memory_budget: str | None) -> dict[str, Any]:
    from diver_trt.bundle import NETWORKS, Bundle
    from diver_trt.runtime.memory import choose_memory_plan, parse_bytes
    from diver_trt.sidecar import Plan, read_plans

    bundle = Bundle.open(path)
    for name in NETWORKS:
        bundle.verified(name)
    facts = _bundle_facts(bundle)
    found = list(read_plans(bundle))
    plans = [plan for plan in found if isinstance(plan, Plan)]
    if found:
        facts["engines"] = {plan.folder.name: _memory_facts(plan) for plan in plans}
        for error in (plan for plan in found if not isinstance(plan, Plan)):
            _say(f"warning: {error}")
    if memory_budget:
        if not plans:
            raise EngineError(f"{path}: has no engines to plan for; build them with `diver-trt build {path}`")
        chosen = choose_memory_plan(plans, parse_bytes(memory_budget))
        facts["chosen"] = {"engines": chosen.plan.folder.name, "batch": chosen.batch, "residency": chosen.residency, "peak_bytes": chosen.peak_bytes}
    return facts


def _inspect_distilled(dataset: Dataset, model: Bundle, contact_sheet: Path | None) -> dict[str, Any]:
    from diver_trt.recovery import distilled_sheet, mean_clipped

    checked = _checked(dataset, model)
    if contact_sheet:
        distilled_sheet(dataset, model).save(contact_sheet)
        _say(f"what would be fed to the model: {contact_sheet}")
    origin = dataset.origin
    return {
        "kind": "distilled images",
        "format": origin.format.name,
        "files": list(origin.files),
        "images": len(dataset.samples),
        "classes": len(dataset.labels),
        "image_size": list(origin.image_size),
        "normalisation": origin.normalisation,
        "whitened": origin.whitened,
        "clipped": round(mean_clipped(checked), 6),
        "collage": origin.collage,
        "soft_labels": origin.soft_labels,
        "class_map": dataset.classes,
        "model": f"{model.model_id} {model.precision}",
        "labels": {str(index): label for index, label in dataset.labels.items()},
        "notes": list(origin.notes),
    }


def _checked(dataset: Dataset, model: Bundle) -> list[Checked]:
    """Say what a dataset was found to be, and look at every image of it."""
    from diver_trt.recovery import mean_clipped

    _say(f"{dataset.root}: {dataset.summary}; model {model.model_id} {model.precision}")
    for note in dataset.origin.notes:
        _say(f"note: {note}")
    _say("if that is wrong: --format, --classes, --normalisation, --collage")
    checked = []
    with _progress("checking", len(dataset.samples)) as advance:
        for found in dataset.images.check():
            checked.append(found)
            advance()
    if clipped := mean_clipped(checked):
        _say(f"{clipped:.1%} of the values lie outside the range of pixels, as unclamped optimisation leaves them, and are clipped")
    return checked


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from diver_trt.sidecar import sidecar_facts

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

    from diver_trt.runtime.memory import RESIDENCIES, plan_memory

    facts: dict[str, Any] = {}
    for residency in RESIDENCIES:
        memory = plan_memory(plan, residency)
        phases = {phase.network: {**asdict(phase), "total_bytes": phase.total_bytes} for phase in memory.phases}
        facts[residency] = {**phases, "peak_bytes": memory.peak_bytes}
    return facts


def _print_memory(name: str, facts: dict[str, Any]) -> None:
    """Print a plan's phases, a line each: the total, and what it is made of."""
    from diver_trt.runtime.memory import format_bytes

    for residency in ("resident", "phased"):
        print(f"{name}, {residency}: peak {format_bytes(facts[residency]['peak_bytes'])}")
        for network, phase in facts[residency].items():
            if network != "peak_bytes":
                parts = (f"{part} {format_bytes(phase[f'{part}_bytes'])}" for part in ("weights", "persistent", "scratch", "io"))
                print(f"  {network:<12} {format_bytes(phase['total_bytes']):>9}  =  {'  +  '.join(parts)}")


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
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


def _recipe(
    preset: str, *, start_step: str | None, window: str | None, no_inheritance: bool, no_guidance: bool, **given: Any
) -> Recipe:
    """Return the preset with the settings that were given on the command line."""
    from diver_trt.recipe import PRESETS

    base = PRESETS[_choice("--preset", preset, tuple(PRESETS))]
    settings = {name: value for name, value in given.items() if value is not None}
    for off, option, name, value in ((no_inheritance, "inheritance", "inherit_step", None), (no_guidance, "guidance", "gamma", 0.0)):
        if off and name in settings:
            raise RecipeError(f"--no-{option} and --{name.replace('_', '-')} {settings[name]} contradict each other; give one of them")
        if off:
            settings[name] = value
    if start_step == "matched":
        settings["start_step"] = settings.get("inherit_step", base.inherit_step)
    elif start_step is not None:
        settings["start_step"] = _positive("--start-step", start_step)
    if window == "full":
        settings["window"] = (settings.get("start_step", settings.get("steps", base.steps)), 0)
    elif window is not None:
        high, _, low = window.partition(":")
        if not (window.isascii() and high.isdigit() and low.isdigit()):
            raise RecipeError(f"--window is {window!r}; expected HIGH:LOW, such as 40:25, or full")
        settings["window"] = (int(high), int(low))
    return base.with_settings(**settings)


def _choice(option: str, value: str, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise typer.BadParameter(f"{option} is {value!r}; expected one of {', '.join(choices)}")
    return value


def _positive(option: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise typer.BadParameter(f"{option} is {value!r}; expected a whole number, 1 or more")
    return int(value)


class _Progress:
    """Counts up to a total on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, total: int, bar: Any = None) -> None:
        self._what, self._total, self._bar = what, total, bar
        self._task = bar.add_task(what, total=total) if bar else None
        self._done, self._told = 0, time.monotonic()

    def __call__(self) -> None:
        """Count one more."""
        self._done += 1
        if self._bar:
            self._bar.advance(self._task)
        elif time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            _say(f"{self._what}: {self._done} of {self._total}")

    def note(self, text: str) -> None:
        """Show what is going on beside the bar."""
        if self._bar:
            self._bar.update(self._task, description=f"{self._what} {text}")


@contextmanager
def _progress(what: str, total: int) -> Iterator[_Progress]:
    if not sys.stderr.isatty():
        yield _Progress(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Progress(what, total, bar)


def _say(text: str) -> None:
    print(f"diver-trt: {text}", file=sys.stderr, flush=True)


def _print_json(**values: Any) -> None:
    print(json.dumps(values, indent=1))


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{printable(key.replace('_', ' '))}")
            _print_facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            print(f"{indent}{printable(key.replace('_', ' ')):<{width}}  {printable(str(shown))}")


if __name__ == "__main__":
    main()
