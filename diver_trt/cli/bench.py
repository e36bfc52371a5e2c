"""`diver-trt bench`: a bundle in, its speed and its distance to the limit out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import progress, say
from diver_trt.cli.options import (
    ModelRevision,
    ModelVae,
    choice,
    open_bundle,
    positive,
    require_model,
)
from diver_trt.cli.recipe_options import takes_recipe
from diver_trt.cli.result_files import (
    JsonFile,
    Report,
    check_files,
    print_table,
    write_json,
    write_page,
)
from diver_trt.errors import printable
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import engine_choices

if TYPE_CHECKING:
    from diver_trt.bench.ceiling import Ceiling
    from diver_trt.bench.contestants import Contestant
    from diver_trt.bench.result import Result, Row
    from diver_trt.bundle import Bundle

MAX_BATCH = 4096

BundleArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="BUNDLE",
        help="Exported model: a folder, or hf://OWNER/NAME on the hub (default: the digits model).",
        autocompletion=completion.bundles,
    ),
]
Batches = Annotated[str, typer.Option(help="Images per batch: one number, or several with commas.")]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{engine_choices()}; repeatable: engines are measured in alternation "
        "(default: auto).",
        autocompletion=completion.engines,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="torch: measure diffusers' own modules too, in alternation; needs --model.",
        autocompletion=completion.words("torch"),
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="For torch: the model that the bundle was exported from (directory, hub name or "
        ".pt file).",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Measuring time in seconds, for all rows together; every row gets at least three "
        "rounds.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images of a whole recovery, at least one batch (default: 8, or one batch where that "
        "is more).",
    ),
]


@takes_recipe
def bench(
    bundle: BundleArgument = None,
    batch: Batches = "1,8,32",
    engine: Engines = None,
    against: Against = None,
    model: Model = None,
    revision: ModelRevision = None,
    vae: ModelVae = None,
    seconds: Seconds = 20.0,
    samples: Samples = None,
    json_file: JsonFile = None,
    report: Report = None,
    *,
    recipe: Recipe,
) -> None:
    """Measure how fast a bundle runs here, and how far that is from the machine's limit.

    Each network and the whole recovery, batch by batch: latency, images per second, peak memory,
    and the limit that the machine's own matrix product and copy set.
    """
    from diver_trt.bench.machine import let_threads_sleep, this_machine

    machine = this_machine()  # before anything here loads the machine
    # OpenMP reads these variables once, as torch loads it:
    # https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html
    if machine.busy:
        let_threads_sleep()
    batches = _batches(batch)
    if samples is not None and samples < batches[-1]:
        # The engine would be opened for a smaller batch than the row names.
        raise typer.BadParameter(
            f"--samples is {samples}, expected at least the largest --batch, {batches[-1]}"
        )
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"--seconds is {seconds}; expected a finite number, 0 or more")
    _check_opponent(against, model)
    require_model(model, revision, vae)
    from diver_trt.bench.facts import OWN_FIELDS
    from diver_trt.bench.result import Plan
    from diver_trt.bench.run import benchmark
    from diver_trt.html_page import import_jinja

    # A benchmark takes minutes; a missing package would otherwise show at its end.
    if report:
        import_jinja()
    check_files("bench", report, json_file, OWN_FIELDS)
    opened = open_bundle(bundle)
    contestants, ceiling = _contestants(opened, tuple(engine or ["auto"]), (model, revision, vae))
    plan = Plan(
        bundle=opened,
        recipe=recipe,
        contestants=contestants,
        batches=batches,
        seconds=seconds,
        images=samples,
    )
    with progress("measuring", 1) as bar:

        def show(text: str, done: int, total: int) -> None:
            bar.note(text)
            bar.show(done, total)

        result = benchmark(plan, machine, ceiling, show)
    # The table first: it must not be lost if a file cannot be written, nor the files if it cannot
    # be printed, as into a pipe that is closed.
    try:
        _print_result(result)
    finally:
        _write(result, json_file, report)
    if result.interrupted:
        # What was measured is kept, but a script must not take it for the whole: exit code 130.
        raise KeyboardInterrupt


def _check_opponent(against: str | None, model: str | None) -> None:
    """Refuse an opponent without a model, or the reverse.

    Raises:
        typer.BadParameter: If one is given alone, or the opponent is unknown.
    """
    if against is not None:
        choice("--against", against, ("torch",))
        if model is None:
            raise typer.BadParameter("--against torch needs --model, the model to run in torch")
    elif model is not None:
        raise typer.BadParameter("--model is for --against torch; give both, or neither")


def _batches(text: str) -> list[int]:
    batches = [positive("--batch", part.strip()) for part in text.split(",")]
    if (largest := max(batches)) > MAX_BATCH:
        raise typer.BadParameter(f"--batch has {largest}; expected at most {MAX_BATCH:,}")
    # Ascending: the report draws each line through the rows in their order.
    return sorted(set(batches))


def _contestants(
    bundle: Bundle, engines: tuple[str, ...], source: tuple[str | None, ...]
) -> tuple[list[Contestant], Ceiling | None]:
    """Return what is measured, and a GPU's ceilings where torch can measure them."""
    from diver_trt.bench.contestants import cuda_works, engine_contestants, torch_contestants
    from diver_trt.contract import HALF_PRECISIONS

    found = engine_contestants(engines, bundle)
    model, revision, vae = source
    if model is None:
        return found, None
    # torch follows the engines: on an NVIDIA GPU as soon as one of them computes there.
    on_gpu = any(contestant.processor == "cuda" for contestant in found) and cuda_works()
    # On a CPU, engines also compute float16 bundles in float32 (docs/benchmarking.md, "The limit").
    half = on_gpu and bundle.precision in HALF_PRECISIONS
    opponents = torch_contestants(
        bundle,
        (model, revision, vae),
        device="cuda" if on_gpu else "cpu",
        half=half,
        modes=(False, True) if on_gpu else (False,),
    )
    ceiling = None
    if on_gpu:
        # NumPy cannot measure a GPU; torch can, and is installed where this is reached.
        from diver_trt.bench.torch_side import gpu_ceiling

        ceiling = gpu_ceiling(half=half)
    # torch comes first: it is what the others are compared with.
    return [*opponents, *found], ceiling


def _write(result: Result, json_file: Path | None, report: Path | None) -> None:
    from diver_trt.bench.facts import result_facts
    from diver_trt.bench.report import render

    # The page contains the same JSON.
    facts = result_facts(result)
    if json_file:
        write_json(json_file, facts)
    if report:
        write_page(report, render(result, facts))


def _print_result(result: Result) -> None:
    from rich.table import Table

    from diver_trt.bench.words import heading, phases_line, step_line

    for line in heading(result):
        print(line)
    for reason in result.absent:
        say(f"not measured: {printable(reason)}")
    for note in result.notes:
        say(f"note: {printable(note)}")
    table = Table(box=None, pad_edge=False, header_style="")
    for title, side in _COLUMNS:
        table.add_column(title, justify=side)
    for row in result.rows:
        table.add_row(*_cells(row))
    print_table(table)
    for row in result.rows:
        for line in (*step_line(row), *phases_line(row)):
            print(line)


_COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("what", "left"),
    ("batch", "right"),
    ("engine", "left"),
    ("p50 ms", "right"),
    ("p90", "right"),
    ("p99", "right"),
    ("runs", "right"),
    ("images/s", "right"),
    ("of limit", "left"),
    ("speed", "left"),
    ("peak memory", "right"),
)


def _cells(row: Row) -> Iterator[str]:
    from diver_trt.bench import words

    yield row.subject
    yield str(row.batch)
    yield row.contestant
    yield from (words.milliseconds(row.timing.percentile(percent)) for percent in (50, 90, 99))
    yield str(len(row.timing.seconds))
    yield words.rate(row.images_per_second)
    yield words.short_limit(row)
    yield words.ratio(row)
    yield words.memory(row)
