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
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from diver_trt.errors import DiverError, MissingExtraError, RecipeError

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
    typer.Option(help="What the class folders mean: a subset (imagenette, imagewoof, imagefruit, …), a FILE, or 'model'.", show_default=False),
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
            _say(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(2 if isinstance(error, RecipeError) else 1) from error
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


@app.command(epilog="Example: diver-trt recover examples/digits/distilled/ipc10 recovered --preset matched")
@reporting
def recover(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Distilled images: one folder of PNG, JPEG or WebP files per class.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New or empty folder for the recovered images.")],
    bundle: BundlePath = None,
    classes: Classes = None,
    engine: Annotated[str, typer.Option(help="onnx (CPU), onnx-cuda, or auto: the fastest that really works here.")] = "auto",
    batch: Annotated[str, typer.Option(help="Images per batch, or auto. Changes speed and memory, never the result.")] = "auto",
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
        preset, steps, None if no_inheritance else inherit_step, no_inheritance, start_step, cfg_scale, cfg_channels,
        0.0 if no_guidance else gamma, window, sigma,
    )  # fmt: skip
    from diver_trt.bundle import Bundle, default_bundle
    from diver_trt.datasets.folder_reader import read_class_folders
    from diver_trt.recovery import auto_batch, check_output, contact_sheet_path, recover_dataset, validate
    from diver_trt.runtime.recoverer import Recoverer

    opened = Bundle.open(bundle or default_bundle())
    dataset = read_class_folders(source, opened, classes)
    check_output(source, output)
    count = len(dataset.samples)
    _say(f"{source}: {count} images in {len(dataset.labels)} classes, classes as in {dataset.classes}; model {opened.model_id} {opened.precision}")
    with _progress("checking", count) as advance:
        hashes = [(digest, advance())[0] for digest in validate(dataset)]

    size = auto_batch(count) if batch == "auto" else _positive("--batch", batch)
    started = time.monotonic()
    with Recoverer(opened, recipe, engine=engine, batch=size) as recoverer:
        batches = -(-count // size)
        _say(f"recovering on {recoverer.engine} in {batches} batches of up to {size}, {recoverer.steps_per_batch} steps each")
        with _progress("recovering", batches * recoverer.steps_per_batch) as advance:
            for _ in recover_dataset(dataset, hashes, output, recoverer, seed=seed, on_step=advance):
                pass
        used = recoverer.engine
    seconds = time.monotonic() - started
    sheet = contact_sheet_path(output)
    if as_json:
        _print_json(output=str(output), images=count, engine=used, batch=size, seconds=round(seconds, 3), contact_sheet=str(sheet))
    else:
        print(f"recovered {count} images into {output} in {seconds:.1f} s; look at {sheet}")


@app.command(epilog="Example: diver-trt export facebook/DiT-XL-2-256 engines/dit-xl-2-256-fp16 --precision fp16")
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


@app.command(epilog="Example: diver-trt inspect engines/digits")
@reporting
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A bundle, a folder of distilled images, or a recovered dataset.")],
    bundle: BundlePath = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Say what a bundle or a dataset is, and whether its files are whole."""
    from diver_trt.bundle import MANIFEST as BUNDLE_MANIFEST
    from diver_trt.bundle import NETWORKS, Bundle, default_bundle
    from diver_trt.datasets.folder_reader import read_class_folders
    from diver_trt.datasets.recovered import MANIFEST, open_recovered

    if (path / BUNDLE_MANIFEST).exists():
        opened = Bundle.open(path)
        for name in NETWORKS:
            opened.verified(name)
        facts = _bundle_facts(opened)
    elif (path / MANIFEST).exists():
        facts = open_recovered(path)
    else:
        model = Bundle.open(bundle or default_bundle())
        dataset = read_class_folders(path, model, classes)
        from diver_trt.recovery import validate

        with _progress("checking", len(dataset.samples)) as advance:
            for _ in validate(dataset):
                advance()
        facts = {
            "kind": "distilled images",
            "images": len(dataset.samples),
            "classes": len(dataset.labels),
            "class_map": dataset.classes,
            "model": f"{model.model_id} {model.precision}",
            "labels": {str(index): label for index, label in dataset.labels.items()},
        }
    if as_json:
        _print_json(**facts)
    else:
        _print_facts(facts)


def _bundle_facts(bundle: Any) -> dict[str, Any]:
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
    preset: str,
    steps: int | None,
    inherit_step: int | None,
    no_inheritance: bool,
    start_step: str | None,
    cfg_scale: float | None,
    cfg_channels: int | None,
    gamma: float | None,
    window: str | None,
    sigma: str | None,
) -> Any:
    from diver_trt.recipe import PRESETS

    base = PRESETS[_choice("--preset", preset, tuple(PRESETS))]
    given = {
        "steps": steps,
        "inherit_step": inherit_step,
        "cfg_scale": cfg_scale,
        "cfg_channels": cfg_channels,
        "gamma": gamma,
        "sigma": sigma,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if no_inheritance:
        settings["inherit_step"] = None
    if start_step == "matched":
        settings["start_step"] = settings.get("inherit_step", base.inherit_step)
    elif start_step is not None:
        settings["start_step"] = _positive("--start-step", start_step)
    if window == "full":
        settings["window"] = (settings.get("start_step", settings.get("steps", base.steps)), 0)
    elif window is not None:
        high, _, low = window.partition(":")
        if not (high.isdigit() and low.isdigit()):
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


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress on standard error: a bar on a terminal, else a line every ten seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
    else:
        done, told = 0, time.monotonic()

        def advance() -> None:
            nonlocal done, told
            done += 1
            if time.monotonic() - told > 10:
                told = time.monotonic()
                _say(f"{what}: {done} of {total}")

        yield advance


def _say(text: str) -> None:
    print(f"diver-trt: {text}", file=sys.stderr, flush=True)


def _print_json(**values: Any) -> None:
    print(json.dumps(values, indent=1))


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key.replace('_', ' ')}")
            _print_facts(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            print(f"{indent}{key.replace('_', ' '):<{width}}  {shown}")


if __name__ == "__main__":
    main()
