"""`diver-trt compare`: bundles and engines in, a verdict and a report out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import print_json, progress, say
from diver_trt.cli.options import (
    Classes,
    Json,
    ModelRevision,
    ModelVae,
    Seed,
    open_bundle,
    require_model,
)
from diver_trt.cli.recipe_options import takes_recipe
from diver_trt.cli.result_files import Report, check_files, write_page
from diver_trt.counted import counted
from diver_trt.errors import first_line, printable
from diver_trt.models import ModelOptions
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.comparison.inputs import Inputs
    from diver_trt.comparison.lineup import Absent, Lineup
    from diver_trt.comparison.result import Result
    from diver_trt.comparison.verdict import Comparison
    from diver_trt.models.base import BaseModel


Bundles = Annotated[
    list[str],
    typer.Argument(
        metavar="BUNDLE...",
        help="Bundles of one model, such as its fp32 and its fp16 one: folders, or "
        "hf://OWNER/NAME on the hub.",
        autocompletion=completion.bundles,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The model they were exported from (directory, hub name or .pt file): torch in "
        "fp32 is then the reference.",
    ),
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        help=f"torch-fp16, torch-bf16, {', '.join(BACKENDS)}; repeatable "
        "(default: all that work here).",
        autocompletion=completion.compared_engines,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Distilled images, as for recover (default: the digits that come with diver-trt)."
    ),
]
Random = Annotated[bool, typer.Option("--random", help="Images of random pixels instead.")]
Samples = Annotated[int, typer.Option(min=1, help="Number of images.")]
Batch = Annotated[
    int,
    typer.Option(min=1, help="Images per batch; rtx and trt use what they were built for."),
]


@takes_recipe
def compare(
    bundles: Bundles,
    model: Model = None,
    engine: Engines = None,
    report: Report = None,
    images: Images = None,
    classes: Classes = None,
    random: Random = False,
    samples: Samples = 10,
    batch: Batch = 8,
    seed: Seed = 0,
    revision: ModelRevision = None,
    vae: ModelVae = None,
    as_json: Json = False,
    *,
    recipe: Recipe,
) -> None:
    """Show where and how far engines diverge from the model: in networks, steps and final images.

    Exits with 1 if an engine is further away than its precision allows, or if an engine that was
    requested cannot be compared.
    """
    _check_options(random, images, classes)
    require_model(model, revision, vae)
    from diver_trt.comparison.result import Result
    from diver_trt.comparison.runs import steps_in
    from diver_trt.comparison.verdict import compare_lineup
    from diver_trt.method.noise import checked_seed

    # The seeds that `recover` takes, so that what is compared can also be recovered.
    seed = checked_seed(seed)
    _check_packages_and_report(report)
    opened = tuple(open_bundle(bundle) for bundle in bundles)
    # The first bundle stands for all: `line_up` refuses bundles of different models.
    loaded = _load_reference_model(model, opened[0], revision, vae) if model else None
    inputs = _read_inputs(opened[0], samples, images, classes, seed, random=random)
    lineup = _line_up(opened, loaded, engine or [], batch, as_json=as_json)
    _note_absent(lineup.absent)
    others = ", ".join(one.name for one in lineup.others)
    say(f"{inputs.origin}; reference {lineup.reference.name}, compared with it: {others}")
    steps = steps_in(lineup.reference, lineup.others, inputs, recipe)
    with progress("comparing", steps) as advance:
        reference, comparisons, absent = compare_lineup(lineup, inputs, recipe, advance)
    # Those that failed while running; the others are on the terminal already.
    _note_absent(absent[len(lineup.absent) :])
    result = Result(
        reference=lineup.reference.name,
        reference_images=tuple(reference.recording.images),
        comparisons=comparisons,
        absent=absent,
        inputs=inputs,
        recipe=recipe,
        seed=seed,
        bundles=opened,
        model=loaded.model_id if loaded else None,
    )
    # The verdict first: it must not be lost if the report cannot be written.
    _print_result(result, report, as_json=as_json)
    if report:
        from diver_trt.comparison.report import render

        write_page(report, render(result), silent=as_json)
    if not result.passed:
        raise typer.Exit(1)


def _check_options(random: bool, images: Path | None, classes: str | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        typer.BadParameter: If some do.
    """
    if random and images:
        raise typer.BadParameter("--random and --images contradict each other; give one of them")
    if classes and not images:
        raise typer.BadParameter("--classes describes --images; give both, or neither")


def _check_packages_and_report(report: Path | None) -> None:
    """Find out before any work whether the results can be computed and written.

    Raises:
        MissingExtraError: If a package is not installed.
        OutputError: If the report cannot or must not be written.
    """
    from diver_trt.comparison.blocks import import_onnx
    from diver_trt.comparison.metrics import import_image_metrics
    from diver_trt.html_page import import_report_packages
    from diver_trt.runtime.backends.onnx_package import import_onnxruntime

    # A comparison takes minutes; a missing package would otherwise show at its end.
    import_image_metrics()
    # Both for the values within a graph, whatever engines are compared.
    import_onnx()
    import_onnxruntime()
    if report:
        import_report_packages()
    check_files("compare", report)


def _read_inputs(
    bundle: Bundle,
    samples: int,
    folder: Path | None,
    classes: str | None,
    seed: int,
    *,
    random: bool,
) -> Inputs:
    from diver_trt.comparison.inputs import distilled_inputs, random_pixels

    if random:
        return random_pixels(bundle, samples, seed=seed)
    inputs = distilled_inputs(bundle, samples, folder=folder, classes=classes, seed=seed)
    for note in inputs.notes:
        say(f"note: {note}")
    if len(inputs) < samples:
        say(f"only {counted(len(inputs), 'image')} found; --samples asked for {samples}")
    return inputs


def _line_up(
    bundles: tuple[Bundle, ...],
    model: BaseModel | None,
    engines: list[str],
    batch: int,
    *,
    as_json: bool,
) -> Lineup:
    from diver_trt.comparison.facts import absent_facts
    from diver_trt.comparison.lineup import NothingToCompareError, line_up

    try:
        return line_up(bundles, model, engines, batch)
    except NothingToCompareError as error:
        # With --json, a script also gets an object in this case, with each engine's reason.
        if as_json:
            print_json(
                passed=False,
                headline=first_line(error),
                not_compared=absent_facts(error.absent),
            )
        raise


def _note_absent(absent: Sequence[Absent]) -> None:
    for one in absent:
        say(f"not compared: {one.name}: {one.reason}")


def _print_result(result: Result, report: Path | None, *, as_json: bool) -> None:
    from diver_trt.comparison.facts import result_facts

    if as_json:
        print_json(**result_facts(result), **({"report": str(report)} if report else {}))
        return
    for comparison in result.comparisons:
        _print_comparison(comparison)
    print(f"{'passed' if result.passed else 'failed'}: {result.headline}")


def _load_reference_model(
    source: str, bundle: Bundle, revision: str | None, vae: str | None
) -> BaseModel:
    from diver_trt.packages import importing

    options = ModelOptions(revision=revision, vae=vae)
    with importing("compare", "comparing with the model"):
        # Imported by name, since a base's module that is already loaded would not import it again.
        import torch  # noqa: F401

        from diver_trt.models.exported import load_exported
    # First as the source itself suggests, so that a difference from the bundle can be reported.
    loaded = load_exported(bundle, source, options)
    for note in loaded.notes:
        say(f"note: {printable(loaded.model_id)}: {note}")
    if loaded.timestep_frequencies != bundle.timestep_frequencies:
        say(
            f"note: {bundle.path} was exported with the timestep frequencies of "
            f"{bundle.timestep_frequencies}, which the reference follows; those of "
            f"{loaded.model_id} seem to be {loaded.timestep_frequencies}: "
            f"{loaded.frequencies_reason}"
        )
        loaded = load_exported(
            bundle, source, replace(options, timestep_frequencies=bundle.timestep_frequencies)
        )
    return loaded


def _print_comparison(comparison: Comparison) -> None:
    """Print an engine's verdict, a line for each check, and where it diverges."""
    from diver_trt.comparison.figure_text import (
        show_check,
        show_decibels,
        show_figure,
        show_where,
    )
    from diver_trt.comparison.figures import mean_psnr

    worst = comparison.figures.worst_step
    print(f"{comparison.name}: {comparison.verdict}")
    # bfloat16 is reported without limits.
    if not comparison.checks:
        psnr = mean_psnr(comparison.figures.images)
        print(
            f"  every step alone: relative L2 {show_figure(worst.forced.relative_l2)}; images: "
            f"mean PSNR {show_decibels(psnr)}"
        )
    for check in comparison.checks:
        sense = "at least" if check.limit.at_least else "at most"
        where = f"   {found}" if (found := show_where(check)) else ""
        mark = "ok  " if check.passed else "FAIL"
        print(
            f"  {mark} {check.subject}: {check.measure} {show_check(check)} ({sense} "
            f"{check.limit.value:g}){where}"
        )
    for cause in comparison.causes:
        print(f"  -> {cause}")
