"""`diver-trt compare`: bundles and engines in, a verdict and a report out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import print_json, progress, say
from diver_trt.cli.options import Classes, Json
from diver_trt.cli.recipe_options import takes_recipe
from diver_trt.errors import BundleError, MissingExtraError, OutputError, printable, shown
from diver_trt.models import BASES
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.comparison.verdict import Comparison
    from diver_trt.models.base import BaseModel


@takes_recipe
def compare(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles of one model, such as its fp32 and its fp16 one.",
            autocompletion=completion.bundles,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model they were exported from (directory, hub name or .pt file): torch in "
            "fp32 is then the reference.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help=f"torch-fp16, torch-bf16, {', '.join(BACKENDS)}; repeatable "
            "(default: all that work here).",
            show_default=False,
            autocompletion=completion.compared_engines,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Distilled images, as for recover (default: the digits that come along).",
            show_default=False,
        ),
    ] = None,
    classes: Classes = None,
    random: Annotated[
        bool, typer.Option("--random", help="Images of random pixels instead.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="How many images.")] = 10,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Images per batch; rtx and trt take what they were built for."),
    ] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the noise; each image draws its own.")] = 0,
    revision: Annotated[
        str | None,
        typer.Option(help="The model's branch, tag or commit on the hub.", show_default=False),
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="Another VAE, as at the export.", show_default=False)
    ] = None,
    as_json: Json = False,
    *,
    recipe: Recipe,
) -> None:
    """Show where and how far engines leave the model: in networks, steps and final images.

    Exits with 1 if an engine is further away than its precision allows, or one that was asked for
    cannot be compared.
    """
    if random and images:
        raise typer.BadParameter("--random and --images contradict each other; give one of them")
    if classes and not images:
        raise typer.BadParameter("--classes says which classes --images are; give both, or neither")
    from diver_trt.bundle import Bundle
    from diver_trt.comparison.blocks import import_onnx
    from diver_trt.comparison.inputs import distilled_inputs, random_pixels
    from diver_trt.comparison.lineup import NothingToCompareError, line_up
    from diver_trt.comparison.metrics import import_image_metrics
    from diver_trt.comparison.report import (
        Result,
        absent_facts,
        import_report_packages,
        render,
        result_facts,
    )
    from diver_trt.comparison.runs import steps_in
    from diver_trt.comparison.verdict import compare_lineup
    from diver_trt.files import reported, writing

    import_image_metrics()  # a missing package is better found before the work than after it
    import_onnx()
    if report:
        import_report_packages()
        _check_report(report)
    opened = tuple(Bundle.open(path) for path in bundles)
    loaded = _load_reference_model(model, opened[0], revision, vae) if model else None
    inputs = (
        random_pixels(opened[0], samples, seed=seed)
        if random
        else distilled_inputs(opened[0], samples, folder=images, classes=classes, seed=seed)
    )
    if len(inputs) < samples:
        say(f"{len(inputs)} images are all there are; --samples asked for {samples}")
    try:
        lineup = line_up(opened, loaded, engine or [], batch)
    except NothingToCompareError as error:
        if as_json:
            print_json(
                passed=False,
                headline=str(error).splitlines()[0],
                not_compared=absent_facts(error.absent),
            )
        raise
    for absent in lineup.absent:
        say(f"not compared: {absent.name}: {absent.reason}")
    say(
        f"{inputs.origin}; reference {lineup.reference.name}, held against it "
        f"{', '.join(one.name for one in lineup.others)}"
    )
    with progress("comparing", steps_in(1 + len(lineup.others), inputs, recipe, batch)) as advance:
        reference, comparisons, absent_ones = compare_lineup(lineup, inputs, recipe, advance)
    for absent in absent_ones[len(lineup.absent) :]:
        say(f"not compared: {absent.name}: {absent.reason}")
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
    if as_json:
        print_json(**result_facts(result), **({"report": str(report)} if report else {}))
    else:
        for comparison in comparisons:
            _print_comparison(comparison)
        print(f"{'passed' if result.passed else 'failed'}: {result.headline}")
    if report:
        with reported(report), writing(report) as file:
            file.write(render(result).encode())
        if not as_json:
            print(f"wrote {report}; open it in a browser")
    if not result.passed:
        raise typer.Exit(1)


def _load_reference_model(
    source: str, bundle: Bundle, revision: str | None, vae: str | None
) -> BaseModel:
    if bundle.base not in BASES:
        raise BundleError(
            f"{bundle.path}: was exported from the base model {shown(repr(bundle.base))}, expected one "
            f"of {', '.join(BASES)}; update diver-trt"
        )
    try:
        import torch  # noqa: F401  # a base that is loaded already would not miss it

        load_model = BASES[bundle.base].load().load_model
    except ImportError as cause:
        raise MissingExtraError(
            cause.name or "torch", "compare", "comparing with the model"
        ) from cause
    # What the file does not state was stated or noted when the bundle was exported from it.
    loaded = load_model(source, revision=revision, vae=vae, base=bundle.base)
    for note in loaded.notes:
        say(f"note: {printable(loaded.model_id)}: {note}")
    if loaded.timestep_frequencies != bundle.timestep_frequencies:
        say(
            f"note: {bundle.path} was exported with the timestep frequencies of "
            f"{bundle.timestep_frequencies}, "
            f"which the reference follows; those of {loaded.model_id} seem to be "
            f"{loaded.timestep_frequencies}: {loaded.frequencies_reason}"
        )
        loaded = load_model(
            source,
            revision=revision,
            vae=vae,
            timestep_frequencies=bundle.timestep_frequencies,
            base=bundle.base,
        )
    return loaded


def _check_report(path: Path) -> None:
    """Refuse, before any work, a report path that cannot be written or holds another file.

    Raises:
        OutputError: If it is in no folder, or is there already and not a report of ours.
    """
    from diver_trt.comparison.report import is_report

    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of an HTML file")
    if os.path.lexists(path) and not is_report(path):
        raise OutputError(
            f"{path}: is there already and is not a report of diver-trt compare; choose another "
            "name, or remove it"
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: must not be written; choose another folder")


def _print_comparison(comparison: Comparison) -> None:
    """Print an engine's verdict, a line for each check, and what seems to be at fault."""
    from diver_trt.comparison.figures import mean_psnr
    from diver_trt.comparison.report import show_check, show_decibels, show_figure

    worst = comparison.worst_step
    print(f"{comparison.name}: {comparison.verdict}")
    if not comparison.checks:
        psnr = mean_psnr(comparison.images)
        print(
            f"  every step alone: relative L2 {show_figure(worst.forced.relative_l2)}; images: "
            f"mean PSNR {show_decibels(psnr)}"
        )
    for check in comparison.checks:
        sense = "at least" if check.limit.at_least else "at most"
        where = f"   {check.where}" if check.where else ""
        mark = "ok  " if check.passed else "FAIL"
        print(
            f"  {mark} {check.subject}: {check.measure} {show_check(check)} ({sense} "
            f"{check.limit.value:g}){where}"
        )
    for cause in comparison.causes:
        print(f"  -> {cause}")
