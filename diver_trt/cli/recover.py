"""`diver-trt recover`: recover a distilled dataset into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli import completion
from diver_trt.cli.console import end_with_left_out, phases, print_json, say
from diver_trt.cli.options import (
    BundlePath,
    Classes,
    Collage,
    Format,
    Gallery,
    Json,
    Normalisation,
    Overwrite,
    Seed,
    positive,
)
from diver_trt.cli.process import stop_requested
from diver_trt.cli.recipe_options import takes_recipe
from diver_trt.counted import counted
from diver_trt.errors import printable
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import engine_choices

if TYPE_CHECKING:
    from diver_trt.recovered.run import Recovery


Source = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="Distilled images: class folders, or a method's own tensors (.pt, .npz, "
        ".safetensors); digits are those that come with diver-trt, unless a file or folder here "
        "has that name.",
    ),
]
Output = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="New or empty folder for the recovered images.")
]
LayoutName = Annotated[
    str,
    typer.Option(
        help="What to write: index or wnid folders, huggingface, webdataset, or folders and "
        "tensors: npz, or pt and idc, which need torch.",
        autocompletion=completion.layouts,
    ),
]
Size = Annotated[
    str,
    typer.Option(
        help="Side of the written images in pixels, such as 128 or 224; keep is the model's.",
        autocompletion=completion.words("keep"),
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help=f"{engine_choices()}: the first of these that works here.",
        autocompletion=completion.engines,
    ),
]
Batch = Annotated[
    str,
    typer.Option(
        help="Images per batch, or auto. Changes speed and memory, never the result.",
        autocompletion=completion.words("auto"),
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(help="Limit on engine memory, such as 2GB; for rtx and trt."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run engines that were built elsewhere: they are code. Given once, it is remembered.",
    ),
]
Copies = Annotated[
    int,
    typer.Option(
        min=1, help="Recover each image this many times, each time with noise of its own."
    ),
]
Part = Annotated[
    str | None,
    typer.Option(help="Recover one part of the set, such as 3/8; join them with merge."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Recover on Ray workers: local, or no value, starts Ray here; auto joins this "
        "machine's cluster; HOST:PORT joins that one.",
        metavar="[ADDRESS]",
        autocompletion=completion.words("local", "auto"),
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        help="Workers of Ray, or auto: one for each GPU. Without GPUs, give their number: they "
        "share the cores.",
        autocompletion=completion.words("auto"),
    ),
]
OnError = Annotated[
    str,
    typer.Option(
        help="What one bad image does: fail ends the run, skip leaves it out and reports it.",
        autocompletion=completion.words("fail", "skip"),
    ),
]


@takes_recipe
def recover(
    source: Source,
    output: Output,
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    layout: LayoutName = "index",
    size: Size = "keep",
    engine: Engine = "auto",
    batch: Batch = "auto",
    memory_budget: MemoryBudget = None,
    trust: Trust = False,
    seed: Seed = 0,
    copies: Copies = 1,
    shard: Part = None,
    ray: Ray = None,
    workers: Workers = "auto",
    on_error: OnError = "fail",
    gallery: Gallery = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
    *,
    recipe: Recipe,
) -> None:
    """Recover a distilled dataset: one realistic image for each distilled one.

    An interrupted run is resumed by the same command.
    """
    from diver_trt.recovered.run import recover as recover_folder
    from diver_trt.runtime.backends.tensorrt.memory import parse_bytes

    if workers != "auto" and ray is None:
        raise typer.BadParameter(f"--workers is {workers} without --ray; give both, or neither")
    budget = None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget")
    # The first Ctrl-C ends the run after the current batch: `recover` polls before every batch.
    with stop_requested() as stopping, phases() as show:
        recovery = recover_folder(
            source,
            output,
            bundle=bundle,
            recipe=recipe,
            seed=seed,
            copies=copies,
            classes=classes,
            format=source_format,
            normalisation=normalisation,
            collage=collage,
            layout=layout,
            size=None if size == "keep" else positive("--size", size),
            engine=engine,
            batch=None if batch == "auto" else positive("--batch", batch),
            memory_budget=budget,
            trust=trust,
            shard=shard,
            ray=ray,
            workers=None if workers == "auto" else positive("--workers", workers),
            on_error=on_error,
            gallery=gallery,
            overwrite=overwrite,
            on_note=say,
            on_progress=show,
            stopping=stopping,
        )
    if not recovery.finished:
        say(
            f"interrupted: {recovery.done} of {recovery.total} images are done; the same command "
            "resumes it"
        )
        raise typer.Exit(130)  # what a shell reports for a program that Ctrl-C ended: 128 + SIGINT
    if gallery and not recovery.gallery:
        say("interrupted: all images are done, but not the gallery; the same command writes it")
        raise typer.Exit(130)
    _print_recovery(recovery, as_json=as_json)
    end_with_left_out(recovery.skipped, silent=as_json)


def _print_recovery(recovery: Recovery, *, as_json: bool) -> None:
    """Print the result of a finished recovery."""
    output, sheet = str(recovery.output), str(recovery.contact_sheet)
    page = str(recovery.gallery) if recovery.gallery else None
    if as_json:
        print_json(
            output=output,
            images=recovery.images,
            skipped=recovery.skipped,
            engine=recovery.engine,
            batch=recovery.batch,
            seconds=round(recovery.seconds, 3),
            contact_sheet=sheet,
            gallery=page,
        )
        return
    print(
        f"recovered {counted(recovery.images, 'image')} into {printable(output)} in "
        f"{recovery.seconds:.1f} s; look at {printable(page or sheet)}"
    )
