"""The command line: each command parses, calls the library and prints. Nothing else in the package prints or exits.

Exit codes: 0 done, 1 failed with a one-line reason, 2 wrong usage, 130 interrupted. Heavy packages are imported inside the
commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from diver_trt.errors import DatasetError, DiverError, EngineError, MissingExtraError, RecipeError, printable

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.datasets.dataset import Dataset
    from diver_trt.datasets.image_source import Checked
    from diver_trt.datasets.writer import DatasetWriter
    from diver_trt.comparison.verdict import Comparison
    from diver_trt.export.checkpoint import Model
    from diver_trt.recipe import Recipe
    from diver_trt.recovery import Shard
    from diver_trt.runtime.recoverer import Recoverer
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
    shard: Annotated[str | None, typer.Option(help="Recover one part of the set, such as 3/8; join them with merge.", show_default=False)] = None,
    on_error: Annotated[str, typer.Option(help="What one bad image does: fail ends the run, skip leaves it out and reports it.")] = "fail",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left in OUTPUT, and begin again.")] = False,
    as_json: Json = False,
) -> None:
    """Recover a distilled dataset: one realistic image for each distilled one. Run again, it goes on where it was interrupted."""
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
    from diver_trt.datasets.layout import LAYOUTS, MAX_SIDE
    from diver_trt.datasets.read_options import ReadOptions
    from diver_trt.datasets.writer import open_output
    from diver_trt.recovery import Job, check_output, contact_sheet_path, recover_job
    from diver_trt.runtime.memory import parse_bytes
    from diver_trt.runtime.recoverer import Recoverer

    chosen_layout, side = _choice("--layout", layout, LAYOUTS), None if size == "keep" else _positive("--size", size)
    if side and side > MAX_SIDE:
        raise typer.BadParameter(f"--size is {side}; expected at most {MAX_SIDE}")
    per_batch = None if batch == "auto" else _positive("--batch", batch)
    part, skip_bad = _shard(shard) if shard else None, _choice("--on-error", on_error, ("fail", "skip")) == "skip"
    budget = parse_bytes(memory_budget) if memory_budget else None
    opened = Bundle.open(bundle or default_bundle())
    dataset = read_dataset(source, opened, ReadOptions(classes, source_format, normalisation, collage, zca_reference))
    check_output(dataset, opened, output, chosen_layout)
    checked = _checked(dataset, opened, skip_bad=skip_bad)
    job = Job(
        dataset=dataset,
        checked=checked,
        bundle=opened,
        recipe=recipe,
        seed=seed,
        layout=chosen_layout,
        size=side,
        shard=part,
        skip_bad=skip_bad,
    )
    count = len(job.samples)

    def open_model(limit: int | None) -> Recoverer:
        smaller = min(limit, per_batch) if limit and per_batch else limit or per_batch
        return Recoverer(opened, recipe, engine=engine, batch=smaller, memory_budget=budget, images=count, trust=trust)

    ready = [open_model(None)] if overwrite else []  # nothing is deleted before it is sure that something can come in its place

    def open_recoverer(limit: int | None) -> Recoverer:
        return ready.pop() if ready and limit is None else open_model(limit)

    started = time.monotonic()
    with open_output(output, job.head(), overwrite=overwrite) as writer, _stop_requested() as stopping, _progress("recovering", 0) as advance:
        _say_there(writer, output, count)
        begun = _Begun(count, writer, advance)
        for _ in recover_job(job, writer, open_recoverer, on_open=begun, on_step=advance, stopping=stopping):
            pass
        done, skipped = writer.totals()
    seconds = time.monotonic() - started
    if done < count:
        _say(f"interrupted: {done} of {count} images are done; the same command goes on from there")
        raise typer.Exit(130)
    if as_json:
        sheet = str(contact_sheet_path(output))
        facts = {"images": count - len(skipped), "skipped": skipped, "engine": begun.engine, "batch": begun.batch}
        _print_json(output=str(output), **facts, seconds=round(seconds, 3), contact_sheet=sheet)
    else:
        for entry in skipped:
            _say(f"left out: {entry['source']}: {entry['problem']}")
        print(f"recovered {count - len(skipped)} images into {output} in {seconds:.1f} s; look at {contact_sheet_path(output)}")
    if skipped:
        raise typer.Exit(1)


@app.command(epilog="Example: diver-trt merge part1 part2 part3 recovered")
@reporting
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="SHARD... OUTPUT", help="Every shard of a recovery, and a new folder.")],
    as_json: Json = False,
) -> None:
    """Join the shards of a recovery, after checking that they belong together and that none is missing."""
    from diver_trt.merging import merge_shards

    if len(folders) < 2:
        raise typer.BadParameter("expected every shard of a recovery, and then a new folder")
    *shards, output = folders
    count = merge_shards(shards, output)
    _print_json(output=str(output), images=count) if as_json else print(f"merged {len(shards)} shards with {count} images into {output}")


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


@app.command(epilog="Example: diver-trt compare engines/digits --model examples/digits/dit-digits")
@reporting
def compare(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles of one model, such as its fp32 and its fp16 one.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model they were exported from (directory, hub name or .pt file): torch in fp32 is then the reference.", show_default=False),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="torch-fp16, torch-bf16, onnx, onnx-cuda, rtx or trt; repeatable.  [default: whatever works here]", show_default=False),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.", show_default=False)] = None,
    images: Annotated[
        Path | None, typer.Option(help="Distilled images, as for recover.  [default: the digits that come along]", show_default=False)
    ] = None,
    classes: Classes = None,
    random: Annotated[bool, typer.Option("--random", help="Images of random pixels instead.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="How many images.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch; rtx and trt take what they were built for.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the noise; each image draws its own.")] = 0,
    preset: Annotated[str, typer.Option(help="Recipe: paper, ncfm or matched; see recover.")] = "paper",
    steps: Annotated[int | None, typer.Option(help="DDIM steps K.  [paper: 50]", show_default=False)] = None,
    inherit_step: Annotated[int | None, typer.Option(help="Noise level t_f.  [paper: 25]", show_default=False)] = None,
    start_step: Annotated[str | None, typer.Option(help="Step t_r sampling starts at.  [paper: 50]", show_default=False)] = None,
    window: Annotated[str | None, typer.Option(help="Steps HIGH:LOW semantic guidance acts in.  [paper: 40:25]", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="The model's branch, tag or commit on the hub.", show_default=False)] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE, as at the export.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show where engines leave the model, and by how much: networks alone, every step, the final images.

    Exits with 1 if an engine is further away than its precision allows, or one that was asked for cannot be compared.
    """
    if random and images:
        raise typer.BadParameter("--random and --images contradict each other; give one of them")
    recipe = _recipe(
        preset, start_step=start_step, window=window, no_inheritance=False, no_guidance=False, steps=steps, inherit_step=inherit_step
    )
    from diver_trt.bundle import Bundle
    from diver_trt.comparison.inputs import distilled_inputs, random_pixels
    from diver_trt.comparison.lineup import line_up
    from diver_trt.comparison.metrics import import_image_metrics
    from diver_trt.comparison.report import Result, import_report_packages, render, result_facts
    from diver_trt.comparison.runs import steps_in
    from diver_trt.comparison.verdict import compare_lineup

    import_image_metrics()  # a missing package is better found before the work than after it
    if report:
        import_report_packages()
        _check_report(report)
    opened = tuple(Bundle.open(path) for path in bundles)
    loaded = _load_reference_model(model, opened[0], revision, vae) if model else None
    inputs = random_pixels(opened[0], samples, seed=seed) if random else distilled_inputs(opened[0], samples, folder=images, classes=classes, seed=seed)
    lineup = line_up(opened, loaded, engine or [], batch)
    for absent in lineup.absent:
        _say(f"not compared: {absent.name}: {absent.reason}")
    _say(f"{inputs.origin}; reference {lineup.reference.name}, held against it {', '.join(one.name for one in lineup.others)}")
    with _progress("comparing", steps_in(1 + len(lineup.others), inputs, recipe, batch)) as advance:
        reference, comparisons, absent_ones = compare_lineup(lineup, inputs, recipe, advance)
    for absent in absent_ones[len(lineup.absent) :]:
        _say(f"not compared: {absent.name}: {absent.reason}")
    result = Result(
        reference=lineup.reference.name,
        reference_images=tuple(reference.recording.images),
        comparisons=comparisons,
        absent=absent_ones,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        bundles=opened,
        model=loaded.model_id if loaded else None,
    )
    if report:
        report.write_text(render(result), encoding="utf-8")
    if as_json:
        _print_json(**result_facts(result), **({"report": str(report)} if report else {}))
    else:
        for comparison in comparisons:
            _print_comparison(comparison)
        print(f"{'passed' if result.passed else 'failed'}: {result.headline}")
        if report:
            print(f"wrote {report}; open it in a browser")
    if not result.passed:
        raise typer.Exit(1)


def _load_reference_model(source: str, bundle: Bundle, revision: str | None, vae: str | None) -> Model:
    try:
        from diver_trt.export.checkpoint import load_model
    except ImportError as cause:
        raise MissingExtraError(cause.name or "torch", "compare", "comparing with the model") from cause
    frequencies = _choice("timestep frequencies", bundle.timestep_frequencies, ("dit", "diffusers"))
    return load_model(source, revision=revision, vae=vae, timestep_frequencies=frequencies)


def _check_report(path: Path) -> None:
    from diver_trt.errors import OutputError

    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of an HTML file")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it first")


def _print_comparison(comparison: Comparison) -> None:
    """Print an engine's verdict, a line for each check, and what seems to be at fault."""
    from diver_trt.comparison.report import show_check, show_decibels, show_figure
    from diver_trt.comparison.verdict import mean_psnr

    worst = comparison.worst_step
    print(f"{comparison.name}: {comparison.verdict}")
    if not comparison.checks:
        print(f"  every step alone: relative L2 {show_figure(worst.forced.relative_l2)}; images: mean PSNR {show_decibels(mean_psnr(comparison.images))}")
    for check in comparison.checks:
        sense = "at least" if check.limit.at_least else "at most"
        where = f"   {check.where}" if check.where else ""
        mark = "ok  " if check.passed else "FAIL"
        print(f"  {mark} {check.subject}: {check.measure} {show_check(check)} ({sense} {check.limit.value:g}){where}")
    for cause in comparison.causes:
        print(f"  -> {cause}")


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
        from diver_trt.datasets.whole_file import replacing, reported

        with reported(contact_sheet), replacing(contact_sheet) as temporary:
            distilled_sheet(dataset, model).save(temporary, format="PNG")
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
        "whitening": origin.whitening,
        "clipped": round(mean_clipped(checked), 6),
        "collage": origin.collage,
        "soft_labels": origin.soft_labels,
        "class_map": dataset.classes,
        "model": f"{model.model_id} {model.precision}",
        "labels": {str(index): label for index, label in dataset.labels.items()},
        "notes": list(origin.notes),
    }


def _checked(dataset: Dataset, model: Bundle, *, skip_bad: bool = False) -> list[Checked]:
    """Say what a dataset was found to be, and look at every image of it; one that cannot be read ends it, or is left for the report."""
    from diver_trt.recovery import mean_clipped

    files = dataset.origin.files if dataset.root.is_dir() else ()
    where = f"{dataset.root} ({', '.join(files)})" if files else str(dataset.root)
    _say(f"{where}: {dataset.summary}; model {model.model_id} {model.precision}")
    for note in dataset.origin.notes:
        _say(f"note: {note}")
    _say("if that is wrong: --format, --classes, --normalisation, --collage")
    checked = []
    with _progress("checking", len(dataset.samples)) as advance:
        for found in dataset.images.check():
            if found.problem and not skip_bad:
                raise DatasetError(found.problem)
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


def _shard(text: str) -> Shard:
    from diver_trt.recovery import Shard

    number, _, of = text.partition("/")
    if not (text.isascii() and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise typer.BadParameter(f"--shard is {text!r}; expected NUMBER/OF, such as 3/8")
    return Shard(int(number), int(of))


def _say_there(writer: DatasetWriter, output: Path, count: int) -> None:
    """Say what an earlier run left."""
    if writer.lost:
        _say(f"{output}: {writer.lost} images are not on disk as the journal says, and are done again")
    if writer.finished or writer.done:
        _say(f"{output}: {count if writer.finished else len(writer.done)} of {count} images are already there")


class _Begun:
    """Says on what a recovery runs, each time that the model is opened, and counts what remains."""

    engine: str | None = None
    batch: int | None = None

    def __init__(self, count: int, writer: DatasetWriter, advance: _Progress) -> None:
        self._count, self._writer, self._advance = count, writer, advance

    def __call__(self, recoverer: Recoverer) -> None:
        """Say it."""
        from diver_trt.runtime.memory import format_bytes

        self.engine, self.batch = recoverer.engine, recoverer.batch
        batches = -(-(self._count - len(self._writer.done)) // recoverer.batch)
        self._advance.restart(batches * recoverer.steps_per_batch)
        _say(f"recovering on {recoverer.engine} in {batches} batches of up to {recoverer.batch}, {recoverer.steps_per_batch} steps each")
        if recoverer.memory:
            _say(f"networks {recoverer.memory.residency}, {format_bytes(recoverer.memory.peak_bytes)} of engine memory at the peak")


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM ask for an end, which the block looks out for; the second one ends it at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        _say("finishing the batch in hand; once more to stop at once")
        for kept, handler in before.items():
            signal.signal(kept, handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choice(option: str, value: str, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise typer.BadParameter(f"{option} is {value!r}; expected one of {', '.join(choices)}")
    return value


def _positive(option: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and int(value) > 0):
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

    def restart(self, total: int) -> None:
        """Count again from nothing, up to another total."""
        self._total, self._done = total, 0
        if self._bar:
            self._bar.reset(self._task, total=total)

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
