"""`diver-trt evaluate`: sets of images in, what networks learn from them out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import phases, progress, say
from diver_trt.cli.options import Collage, Format, Normalisation
from diver_trt.cli.result_files import (
    JsonFile,
    Report,
    check_files,
    print_table,
    write_json,
    write_page,
)
from diver_trt.errors import printable
from diver_trt.evaluation.architectures import (
    ARCHITECTURES,
    default_architectures,
    find_architecture,
)
from diver_trt.evaluation.protocols import PROTOCOLS, EvaluationProtocol, find_protocol

if TYPE_CHECKING:
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.evaluation.result import Evaluation
    from diver_trt.evaluation.runs import Plan

TrainingSets = Annotated[
    list[str],
    typer.Argument(
        metavar="TRAIN...",
        help="Sets to train on, as PATH or NAME=PATH: anything that recover reads or writes.",
    ),
]
TestSet = Annotated[
    Path,
    typer.Option("--test", metavar="TEST", help="Real images to test on, in the same classes."),
]
ProtocolName = Annotated[
    str,
    typer.Option(
        help=f"How networks are trained: {', '.join(PROTOCOLS)}.",
        autocompletion=completion.protocols,
    ),
]
Architectures = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(ARCHITECTURES)}; repeatable (default: several, by the images' size).",
        autocompletion=completion.architectures,
    ),
]
Seeds = Annotated[
    int, typer.Option(min=1, help="Trainings of each architecture on each set, each with a seed.")
]
FirstSeed = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31,
        help="The first seed of the trainings.",
    ),
]
DistilledWith = Annotated[
    str | None,
    typer.Option(
        help="Architecture that the images were distilled with; the average leaves it out.",
        autocompletion=completion.architectures,
    ),
]
Side = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Side of all images in pixels (default: the smallest of the shorter sides of each "
        "set's first image).",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Class map of sets whose classes are numbers: imagenette, imagefruit, …, or a FILE.",
        autocompletion=completion.classes,
    ),
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror images where the protocol does; not for digits or letters.",
    ),
]
TeacherFile = Annotated[
    Path | None,
    typer.Option(
        "--teacher",
        metavar="FILE",
        help="ONNX classifier that labels the training images softly (default: hard labels).",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder for finished trainings: the same command resumes an interrupted one.",
    ),
]


def evaluate(
    train: TrainingSets,
    test: TestSet,
    protocol: ProtocolName = "quick",
    architecture: Architectures = None,
    seeds: Seeds = 5,
    seed: FirstSeed = 0,
    distilled_with: DistilledWith = None,
    image_size: Side = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    flip: Flip = True,
    teacher: TeacherFile = None,
    output: Output = None,
    json_file: JsonFile = None,
    report: Report = None,
) -> None:
    """Train networks from scratch on each set, and test them on real images.

    Prints test accuracy by architecture, mean and spread over seeds.
    """
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.evaluation.result import OWN_FIELDS
    from diver_trt.evaluation.runs import require_packages
    from diver_trt.html_page import import_report_packages

    chosen = find_protocol(protocol) if flip else find_protocol(protocol).without_flip()
    # Names are checked before images are read, which takes minutes; `plan_evaluation` does so again
    # for other callers.
    for name in architecture or ():
        find_architecture(name)
    if distilled_with is not None:
        find_architecture(distilled_with, "--distilled-with")
    paths = _named(train)
    # torch alone: which architectures are trained may depend on the size of the images.
    require_packages(())
    if report:
        import_report_packages()
    check_files("evaluate", report, json_file, OWN_FIELDS)
    plan = _plan(
        paths,
        test,
        architecture,
        chosen,
        seeds=seeds,
        seed=seed,
        distilled_with=distilled_with,
        image_size=image_size,
        options=ReadOptions(classes, source_format, normalisation, collage),
        teacher=teacher,
    )
    evaluation = _run(plan, output)
    # The table first: it must not be lost if a file cannot be written, nor the files if it cannot
    # be printed, as into a pipe that is closed.
    try:
        _print_evaluation(evaluation)
    finally:
        _write(evaluation, json_file, report)


def _named(texts: list[str]) -> dict[str, Path]:
    """Return the training sets by name: `NAME=PATH`, or a path, whose last part is the name."""
    paths: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        # A path may have = in its own name.
        if not equals or Path(text).exists():
            # The name of `.` and of `/` is empty.
            name, path = Path(text).name or text, text
        if not (name and path):
            raise typer.BadParameter(f"TRAIN is {text!r}; expected PATH or NAME=PATH")
        if not name.isprintable() or len(name) > 100:
            raise typer.BadParameter(
                f"TRAIN is {printable(text)}; expected a printable name of at most 100 characters"
            )
        if name in paths:
            raise typer.BadParameter(
                f"TRAIN has two sets named {name!r}; expected different names. Write NAME=PATH."
            )
        paths[name] = Path(path)
    return paths


def _plan(
    paths: dict[str, Path],
    test: Path,
    architectures: list[str] | None,
    protocol: EvaluationProtocol,
    *,
    seeds: int,
    seed: int,
    distilled_with: str | None,
    image_size: int | None,
    options: ReadOptions,
    teacher: Path | None,
) -> Plan:
    from diver_trt.evaluation.runs import plan_evaluation
    from diver_trt.evaluation.sets import read_sets
    from diver_trt.evaluation.teacher_doubts import teacher_doubt

    with phases() as show:
        sets = read_sets(paths, test, side=image_size, options=options, on_progress=show)
    for note in sets.notes:
        say(f"note: {printable(note)}")
    plan = plan_evaluation(
        sets.train,
        sets.test,
        architectures=architectures or default_architectures(sets.test.side),
        protocol=protocol,
        seeds=seeds,
        first_seed=seed,
        distilled_with=distilled_with,
        teacher=teacher,
        test_name=printable(test.name or str(test)),
    )
    if plan.teacher and (doubt := teacher_doubt(plan.teacher, plan.test)):
        say(f"note: {printable(doubt)}")
    return plan


def _run(plan: Plan, output: Path | None) -> Evaluation:
    """Run a plan under a progress bar over the steps of all trainings."""
    from diver_trt.evaluation.events import Finished, RunDone, RunStarts, StepDone
    from diver_trt.evaluation.runs import evaluation_events, steps_of

    total, done = steps_of(plan), 0
    # Closed at once when Ctrl-C leaves the loop, so that the folder is unlocked.
    with progress("training", total) as bar, closing(evaluation_events(plan, output)) as events:
        for event in events:
            if isinstance(event, RunStarts):
                bar.note(f"{event.architecture} on {event.training_set}, seed {event.seed}")
            elif isinstance(event, StepDone):
                bar.show(done + event.step, total)
            elif isinstance(event, RunDone):
                done += event.run.steps
                bar.show(done, total)
            elif isinstance(event, Finished):
                return event.evaluation
    raise AssertionError("an evaluation ends with Finished")


def _print_evaluation(evaluation: Evaluation) -> None:
    from rich.table import Table

    from diver_trt.evaluation.words import accuracy, average_title, heading, notes

    for line in heading(evaluation):
        print(printable(line))
    for note in notes(evaluation):
        say(f"note: {printable(note)}")
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("training set")
    # None is the average, as in `Evaluation.summary`.
    columns: list[str | None] = [*evaluation.architectures]
    if evaluation.others:
        columns.append(None)
    for column in columns:
        table.add_column(column or average_title(evaluation), justify="right")
    for one in evaluation.training_sets:
        cells = (accuracy(evaluation.summary(one.name, column)) for column in columns)
        table.add_row(one.name, *cells)
    print_table(table)


def _write(evaluation: Evaluation, json_file: Path | None, report: Path | None) -> None:
    from diver_trt.evaluation.report import render
    from diver_trt.structs import dump

    if json_file:
        write_json(json_file, dump(evaluation))
    if report:
        write_page(report, render(evaluation))
