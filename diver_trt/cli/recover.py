"""`diver-trt recover`: a distilled dataset in, a recovered one out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diver_trt.cli.console import Progress, print_json, progress, say, stop_requested
from diver_trt.cli.options import (
    BundlePath,
    Classes,
    Collage,
    Format,
    Json,
    Normalisation,
    ZcaReference,
    choice,
    parse_recipe,
    positive,
)
from diver_trt.errors import DatasetError

if TYPE_CHECKING:
    from diver_trt.bundle import Bundle
    from diver_trt.distilled.dataset import Dataset
    from diver_trt.distilled.source import Checked
    from diver_trt.recovered.folder import DatasetWriter
    from diver_trt.recovered.job import Shard
    from diver_trt.runtime.recoverer import Recoverer


def recover(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Distilled images: class folders, or a method's own tensors (.pt, .npz, .safetensors).",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="New or empty folder for the recovered images.")
    ],
    bundle: BundlePath = None,
    classes: Classes = None,
    source_format: Format = None,
    normalisation: Normalisation = None,
    collage: Collage = None,
    zca_reference: ZcaReference = None,
    layout: Annotated[
        str,
        typer.Option(
            help="What to write: index or wnid folders, huggingface, or folders and tensors: pt, npz, idc."
        ),
    ] = "index",
    size: Annotated[
        str,
        typer.Option(
            help="Side of the written images in pixels, such as 128 or 224; keep is the model's."
        ),
    ] = "keep",
    engine: Annotated[
        str,
        typer.Option(
            help="onnx (CPU), onnx-cuda, rtx, trt, or auto: the fastest that really works here."
        ),
    ] = "auto",
    batch: Annotated[
        str,
        typer.Option(help="Images per batch, or auto. Changes speed and memory, never the result."),
    ] = "auto",
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Limit on engine memory, such as 2GB; for rtx and trt.", show_default=False
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Run engines that were built elsewhere: they are code. Said once, it is remembered.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise; each image draws its own.")] = 0,
    preset: Annotated[
        str,
        typer.Option(
            help="Recipe to start from: paper, ncfm (gamma 0.02), matched (t_r = t_f, half the steps)."
        ),
    ] = "paper",
    steps: Annotated[
        int | None, typer.Option(help="DDIM steps K.  [paper: 50]", show_default=False)
    ] = None,
    inherit_step: Annotated[
        int | None,
        typer.Option(
            help="Noise level t_f the distilled latent is lifted to.  [paper: 25]",
            show_default=False,
        ),
    ] = None,
    no_inheritance: Annotated[
        bool, typer.Option("--no-inheritance", help="Ablation: start from pure noise.")
    ] = False,
    start_step: Annotated[
        str | None,
        typer.Option(
            help="Step t_r sampling starts at, or matched (= the inherit step).  [paper: 50]",
            show_default=False,
        ),
    ] = None,
    cfg_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance w.  [paper: 4.0]", show_default=False),
    ] = None,
    cfg_channels: Annotated[
        int | None,
        typer.Option(
            help="Latent channels it guides: 3 as DiT, 4 as diffusers.  [3]", show_default=False
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(help="Strength of semantic guidance.  [paper: 0.1]", show_default=False),
    ] = None,
    no_guidance: Annotated[
        bool, typer.Option("--no-guidance", help="Ablation: no semantic guidance (gamma 0).")
    ] = False,
    window: Annotated[
        str | None,
        typer.Option(
            help="Steps HIGH:LOW it acts in, HIGH >= k > LOW, or full.  [paper: 40:25]",
            show_default=False,
        ),
    ] = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Its scale: learned, posterior or marginal.  [learned]", show_default=False
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Recover one part of the set, such as 3/8; join them with merge.",
            show_default=False,
        ),
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            help="What one bad image does: fail ends the run, skip leaves it out and reports it."
        ),
    ] = "fail",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Delete what an earlier run left in OUTPUT, and begin again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Recover a distilled dataset: one realistic image for each distilled one. Run again, it goes on where it was interrupted."""
    recipe = parse_recipe(
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
    from diver_trt.distilled.dataset import read_dataset
    from diver_trt.distilled.options import ReadOptions
    from diver_trt.manifest import unlisted_note
    from diver_trt.method.noise import checked_seed
    from diver_trt.recovered.folder import open_output
    from diver_trt.recovered.job import (
        Job,
        ModelOpener,
        check_output,
        contact_sheet_path,
        recover_job,
    )
    from diver_trt.recovered.layout import LAYOUTS, MAX_SIDE
    from diver_trt.runtime.backends.tensorrt.memory import parse_bytes
    from diver_trt.runtime.recoverer import Recoverer

    seed = checked_seed(seed)
    chosen_layout, side = (
        choice("--layout", layout, LAYOUTS),
        None if size == "keep" else positive("--size", size),
    )
    if side and side > MAX_SIDE:
        raise typer.BadParameter(f"--size is {side}; expected at most {MAX_SIDE}")
    per_batch = None if batch == "auto" else positive("--batch", batch)
    part, skip_bad = (
        _parse_shard(shard) if shard else None,
        choice("--on-error", on_error, ("fail", "skip")) == "skip",
    )
    budget = parse_bytes(memory_budget) if memory_budget else None
    opened = Bundle.open(bundle or default_bundle())
    dataset = read_dataset(
        source, opened, ReadOptions(classes, source_format, normalisation, collage, zca_reference)
    )
    check_output(dataset, opened, output, chosen_layout)
    checked = check_images(dataset, opened, skip_bad=skip_bad)
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
    if part and not count:
        say(f"shard {part.number}/{part.of} has no images: the input has {len(dataset.samples)}")

    def open_model(limit: int | None, chosen: str | None) -> Recoverer:
        return Recoverer(
            opened,
            recipe,
            engine=chosen or engine,
            batch=limit,
            memory_budget=budget,
            images=count,
            trust=trust,
        )

    opener = ModelOpener(open_model, count, per_batch)
    if overwrite:
        opener.prepare()  # nothing is deleted before it is sure that something can come in its place
    started = time.monotonic()
    opening = open_output(
        output, job.head(), samples=job.entries(), classes=job.classes(), overwrite=overwrite
    )
    with opening as writer, stop_requested() as stopping, progress("recovering", 0) as advance:
        _say_there(writer, output, count)
        begun = _Begun(count, writer, advance)
        for _ in recover_job(
            job, writer, opener, on_open=begun, on_step=advance, stopping=stopping
        ):
            pass
        done, skipped = writer.totals()
    seconds = time.monotonic() - started
    if done < count:
        say(f"interrupted: {done} of {count} images are done; the same command goes on from there")
        raise typer.Exit(130)
    if note := unlisted_note(output):
        say(f"warning: {note}")
    if as_json:
        sheet = str(contact_sheet_path(output))
        facts = {
            "images": count - len(skipped),
            "skipped": skipped,
            "engine": begun.engine,
            "batch": begun.batch,
        }
        print_json(output=str(output), **facts, seconds=round(seconds, 3), contact_sheet=sheet)
    else:
        for entry in skipped:
            say(f"left out: {entry['source']}: {entry['problem']}")
        print(
            f"recovered {count - len(skipped)} images into {output} in {seconds:.1f} s; look at {contact_sheet_path(output)}"
        )
    if skipped:
        raise typer.Exit(1)


def check_images(dataset: Dataset, model: Bundle, *, skip_bad: bool = False) -> list[Checked]:
    """Say what a dataset was found to be, and look at every image of it; one that cannot be read ends it, or is left for the report."""
    from diver_trt.recovered.job import mean_clipped

    files = dataset.origin.files if dataset.root.is_dir() else ()
    where = f"{dataset.root} ({', '.join(files)})" if files else str(dataset.root)
    say(f"{where}: {dataset.summary}; model {model.model_id} {model.precision}")
    for note in dataset.origin.notes:
        say(f"note: {note}")
    say("if that is wrong: --format, --classes, --normalisation, --collage")
    checked = []
    with progress("checking", len(dataset.samples)) as advance:
        for found in dataset.images.check():
            if found.problem and not skip_bad:
                raise DatasetError(found.problem)
            checked.append(found)
            advance()
    if clipped := mean_clipped(checked):
        say(
            f"{clipped:.1%} of the values lie outside the range of pixels, as unclamped optimisation leaves them, and are clipped"
        )
    return checked


def _parse_shard(text: str) -> Shard:
    from diver_trt.recovered.job import Shard

    number, _, of = text.partition("/")
    plain = text.isascii() and len(text) <= 20 and number.isdigit() and of.isdigit()
    if not (plain and 1 <= int(number) <= int(of)):
        raise typer.BadParameter(f"--shard is {text!r}; expected NUMBER/OF, such as 3/8")
    return Shard(int(number), int(of))


def _say_there(writer: DatasetWriter, output: Path, count: int) -> None:
    """Print what was found of an earlier run."""
    for note in writer.notes:
        say(f"{output}: {note}")
    if writer.lost:
        images = "1 image is" if writer.lost == 1 else f"{writer.lost} images are"
        say(f"{output}: {images} not on disk as recorded, to be recovered again")
    if writer.finished or writer.done:
        done, skipped = writer.totals()
        left_out = f", {len(skipped)} were left out" if skipped else ""
        say(f"{output}: {done - len(skipped)} of {count} images are already there{left_out}")


class _Begun:
    """Says on what a recovery runs, each time that the model is opened, and counts what remains."""

    engine: str | None = None
    batch: int | None = None

    def __init__(self, count: int, writer: DatasetWriter, advance: Progress) -> None:
        self._count, self._writer, self._advance = count, writer, advance

    def __call__(self, recoverer: Recoverer) -> None:
        """Say it."""
        from diver_trt.runtime.backends.tensorrt.memory import format_bytes

        self.engine, self.batch = recoverer.engine, recoverer.batch
        batches = -(-(self._count - len(self._writer.done)) // recoverer.batch)
        self._advance.restart(batches * recoverer.steps_per_batch)
        say(
            f"recovering on {recoverer.engine} in {batches} batches of up to {recoverer.batch}, {recoverer.steps_per_batch} steps each"
        )
        if recoverer.memory:
            say(
                f"networks {recoverer.memory.residency}, {format_bytes(recoverer.memory.peak_bytes)} of engine memory at the peak"
            )
