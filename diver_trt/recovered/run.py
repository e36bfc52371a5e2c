"""Recovering a distilled dataset into a folder: what `diver-trt recover` and `recover` do."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diver_trt.bundle import Bundle
from diver_trt.counted import counted_with
from diver_trt.digits import default_bundle, find_source
from diver_trt.distilled.class_map import wnid_of
from diver_trt.distilled.copies import with_copies
from diver_trt.distilled.dataset import Dataset, read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.errors import UsageError, shown_value
from diver_trt.files import reported
from diver_trt.manifest import CONTACT_SHEET, unlisted_note
from diver_trt.method.noise import checked_seed
from diver_trt.method.schedule import Schedule
from diver_trt.progress import OnProgress
from diver_trt.ray.cluster import check_ray
from diver_trt.ray.opener import RayOpener
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.records import Shard
from diver_trt.recovered.checking import Note, Notes, check_images
from diver_trt.recovered.events import BatchStarts
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.free_folder import require_output
from diver_trt.recovered.gallery.files import PAGE, delete_stale, is_current
from diver_trt.recovered.gallery.writing import write_gallery
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts import find_layout
from diver_trt.recovered.layouts.base import Layout, require_side
from diver_trt.recovered.monitor import Monitor
from diver_trt.recovered.recovering import recover_job
from diver_trt.recovered.writer import DatasetWriter
from diver_trt.runtime.backends.tensorrt.memory import parse_bytes
from diver_trt.runtime.engine import Placement
from diver_trt.runtime.opener import ModelOpener, Opener
from diver_trt.runtime.session import require_engine

AnyPath = str | os.PathLike[str]
_PATHS, _NONE = (str, os.PathLike), type(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The result of `recover`.

    Attributes:
        output: The folder of recovered images.
        total: Images that belong there.
        done: Images that are recovered or left out, by this run or an earlier one; fewer than
            `total` if the run was stopped.
        skipped: The manifest's entries of the images that were left out, each with its `source`
            and `problem`.
        engine: The engine that was opened, or None if everything was done already.
        batch: Images per batch, or None if no engine was opened.
        seconds: How long it took.
        contact_sheet: A picture of distilled and recovered images, written when the run finishes.
        gallery: A page with every distilled image and its recovered one, or None if it was not
            asked for, or the run was stopped before it was written.
    """

    output: Path
    total: int
    done: int
    skipped: tuple[dict[str, Any], ...]
    engine: str | None
    batch: int | None
    seconds: float
    contact_sheet: Path
    gallery: Path | None = None

    @property
    def images(self) -> int:
        """Recovered images in the folder."""
        return self.done - len(self.skipped)

    @property
    def finished(self) -> bool:
        """Whether every image is recovered or left out, and the manifest is written."""
        return self.done == self.total


def recover(
    source: AnyPath,
    output: AnyPath,
    *,
    bundle: Bundle | AnyPath | None = None,
    recipe: Recipe | str | None = None,
    seed: int = 0,
    copies: int = 1,
    classes: AnyPath | None = None,
    format: str | None = None,  # noqa: A002
    normalisation: str | None = None,
    collage: int | None = None,
    layout: str = "index",
    size: int | None = None,
    engine: str = "auto",
    batch: int | None = None,
    memory_budget: int | str | None = None,
    trust: bool = False,
    shard: str | None = None,
    ray: str | None = None,
    workers: int | None = None,
    on_error: str = "fail",
    gallery: bool = True,
    overwrite: bool = False,
    on_note: Note | None = None,
    on_progress: OnProgress = lambda *_: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Recovery:
    """Recover a distilled dataset into a folder, or resume an earlier call with these arguments.

    Args:
        source: Distilled images: class folders, or a method's own tensors (.pt, .npz,
            .safetensors); `"digits"` is the dataset that is installed with the package,
            unless a file or folder of that name is in the current folder.
        output: New or empty folder, or that of the same recovery.
        bundle: The exported model: opened, its folder, or its name on the Hugging Face hub,
            `"hf://OWNER/NAME"`; None is the digits model.
        recipe: The method's settings, or the name of a preset; None is the paper's.
        seed: Seed of the noise, from -2^63 to 2^63 - 1.
        copies: How often each image is recovered, each time with noise of its own.
        classes: Which classes these are: a subset of ImageNet, a file, or `"model"`. None, here and
            for the next three, leaves it to the files.
        format: The method that wrote the files, a name of `diver_trt.distilled.methods.METHODS`.
        normalisation: What tensors were normalised with: a name, or `"MEAN:STD"`.
        collage: Images along a side of each stored one.
        layout: What to write, a name of `diver_trt.recovered.layouts.LAYOUTS`: `"index"`, `"wnid"`,
            `"huggingface"`, `"webdataset"`, `"pt"`, `"npz"` or `"idc"`.
        size: Side of the written images in pixels; None keeps the model's.
        engine: `"auto"`, or a name of `diver_trt.runtime.backends.BACKENDS`: `"onnx"`,
            `"onnx-cuda"`, `"openvino"`, `"openvino-gpu"`, `"openvino-npu"`, `"rtx"` or `"trt"`.
        batch: Images per batch; None leaves it to the engine.
        memory_budget: Limit on engine memory for `"rtx"` and `"trt"`, in bytes or as a text such as
            `"2GB"`.
        trust: Whether engines that were built elsewhere may run.
        shard: The part of the set to recover, such as `"3/8"`.
        ray: Recovers on the workers of Ray: `"local"` starts it for this call, `"auto"` is the
            cluster of this machine, else its `"HOST:PORT"`. A process that is connected to Ray
            already uses that. None recovers in this process.
        workers: Number of Ray's workers; None is one for each GPU. Required without GPUs: they
            share the cores.
        on_error: `"fail"` ends the run at a bad image, `"skip"` leaves it out.
        gallery: Whether to write `index.html`, a page with every distilled image and its recovered
            one.
        overwrite: Whether to delete what an earlier run left, and begin again.
        on_note: Receives notes, one line of text each. Without it, doubts about the dataset become
            Python warnings, and everything else is dropped.
        on_progress: Receives a phase, how much of it is done, and of how much: `"MB downloaded"`
            for a bundle that comes from the hub, then `"checking"`, in images, `"recovering"`, in
            denoising steps of batches, and `"gallery"`, in images.
        stopping: Called before every batch, and while the gallery is written; once it returns
            true, the call returns. The batches before that are on disk.

    Raises:
        UsageError: If an argument does not exist, is of another type or out of range, or
            contradicts another.
        DatasetError: If the images cannot be read as asked.
        BundleError: If the bundle is missing or damaged.
        OutputError: If the output folder holds something else, is in use, or cannot be written.
        EngineError: If no engine can run, or an image comes out unusable and `on_error` is
            `"fail"`.
        MissingExtraError: If a package that an argument asks for is not installed.
    """
    # Anything may come from Python: other types would raise TypeErrors deep within.
    for name, path in (("source", source), ("output", output)):
        _require_type(name, path, _PATHS, "a path")
    _require_type("bundle", bundle, (Bundle, *_PATHS, _NONE), "a Bundle, a path or None")
    _require_type("classes", classes, (*_PATHS, _NONE), "a text, a path or None")
    for name, text in (("format", format), ("normalisation", normalisation)):
        _require_type(name, text, (str, _NONE), "a text or None")
    # A text such as "false", as a configuration file may have it, would count as true.
    for name, flag in (("trust", trust), ("gallery", gallery), ("overwrite", overwrite)):
        _require_type(name, flag, (bool,), "True or False")
    _require_type("on_note", on_note, (Callable, _NONE), "a function or None")
    for name, called in (("on_progress", on_progress), ("stopping", stopping)):
        _require_type(name, called, (Callable,), "a function")
    monitor = Monitor(Notes(on_note), on_progress)
    # Arguments before files: a misspelt one must not wait for a bundle's download.
    laid_out = find_layout(layout)
    _require_choice("on_error", on_error, ("fail", "skip"))
    require_side(size)
    require_engine(engine)
    check_ray(ray, workers)
    class_map = None if classes is None else os.fspath(classes)
    reading = ReadOptions(class_map, format, normalisation, collage)
    part, number = None if shard is None else Shard.parse(shard), checked_seed(seed)
    budget = (
        parse_bytes(memory_budget, "memory_budget")
        if isinstance(memory_budget, str)
        else memory_budget
    )
    placement = Placement(engine=engine, batch=batch, memory_budget=budget, trust=trust)
    settings, target = _recipe(recipe), Path(output)
    model = _opened(bundle, monitor)
    # Raises for a recipe that the model's layout and process do not allow.
    monitor.start = _start(Schedule(model.process, settings, model.layout))
    _warn_of_noise(settings, monitor.notes)
    dataset = with_copies(read_dataset(find_source(Path(source)), model, reading), copies)
    read = (("the input", dataset.root), ("the bundle", model.path))
    require_output(target, laid_out, read, gallery=gallery)
    # Raises for folders by wnid if the model's classes are not ImageNet's.
    laid_out.image_path(0, 0, wnid_of(dataset.samples[0].label, model))
    _warn_of_dropped_labels(dataset, laid_out, monitor.notes)
    skip_bad = on_error == "skip"
    job = Job(
        dataset=dataset,
        checked=check_images(dataset, model, monitor.notes, on_progress, skip_bad=skip_bad),
        bundle=model,
        recipe=settings,
        seed=number,
        layout=laid_out,
        size=size,
        shard=part,
        skip_bad=skip_bad,
    )
    # No batch is larger than there are images.
    placement = replace(placement, images=len(job.samples))
    opener: Opener = ModelOpener(model, settings, placement)
    if ray is not None:
        opener = RayOpener(model, settings, placement, ray, workers, stopping, monitor.notes.info)
    return _recover(job, target, opener, monitor, stopping, gallery=gallery, overwrite=overwrite)


def _opened(bundle: Bundle | AnyPath | None, monitor: Monitor) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return Bundle.open(
        default_bundle() if bundle is None else bundle,
        on_note=monitor.notes.info,
        on_progress=monitor.on_progress,
    )


def _warn_of_noise(recipe: Recipe, notes: Notes) -> None:
    """Warn of a recipe that lifts latents to more noise than its first step takes."""
    if recipe.inherit_step is not None and recipe.inherit_step > recipe.start_step:
        notes.warn(
            f"warning: distilled latents are lifted to the level of step {recipe.inherit_step}, "
            f"but sampling starts at step {recipe.start_step}, which takes less noise: the rest "
            "may stay in the images"
        )


def _warn_of_dropped_labels(dataset: Dataset, layout: Layout, notes: Notes) -> None:
    """Warn of soft labels that the layout does not hold."""
    if dataset.soft_label and layout.soft_labels is None:
        notes.warn(
            f"note: layout {layout.name} does not hold soft labels, so those of the input are "
            "dropped"
        )


def _recover(
    job: Job,
    output: Path,
    opener: Opener,
    monitor: Monitor,
    stopping: Callable[[], bool],
    *,
    gallery: bool,
    overwrite: bool,
) -> Recovery:
    count, notes = len(job.samples), monitor.notes
    if (part := job.shard) and not count:
        images = len(job.dataset.samples)
        notes.info(f"shard {part.number}/{part.of} has no images: the input has {images}")
    if overwrite and count:
        # Nothing is deleted before it is certain that something can come in its place.
        opener.prepare()
    opening = open_output(
        output, job.head(), samples=job.entries(), classes=job.classes(), overwrite=overwrite
    )
    # The opener is closed too, since the folder may be refused while a model is ready.
    with closing(opener), opening as writer:
        _note_earlier(writer, output, count, notes)
        # Closed at once and not by the garbage collector: closing frees the device.
        with closing(recover_job(job, writer, opener)) as events:
            for event in events:
                monitor.on_event(event)
                # Only here: from the first poll on, the CLI turns the first Ctrl-C into a stop
                # request, and before there is a batch to finish it should interrupt.
                if isinstance(event, BatchStarts) and stopping():
                    break
        done, skipped = writer.totals()
        page = _gallery(job, output, monitor, stopping, asked=gallery) if writer.finished else None
    if done == count:
        # From the job: a manifest read again takes memory for every image.
        left_out = {entry["key"] for entry in skipped}
        listed = {job.files[sample.key] for sample in job.samples if sample.key not in left_out}
        if note := unlisted_note(output, listed):
            notes.warn(f"warning: {note}")
    return Recovery(
        output=output,
        total=count,
        done=done,
        skipped=tuple(skipped),
        engine=monitor.engine,
        batch=monitor.batch,
        seconds=monitor.seconds,
        contact_sheet=output / CONTACT_SHEET,
        gallery=page,
    )


def _gallery(
    job: Job, output: Path, monitor: Monitor, stopping: Callable[[], bool], *, asked: bool
) -> Path | None:
    """Bring the gallery of a finished dataset up to date, and return its page if it is asked for.

    Raises:
        OutputError: If a file cannot be written or deleted.
    """
    if not asked:
        with reported(output):
            # A gallery that still shows this dataset stays, although this run writes none.
            delete_stale(output, len(job.dataset.samples))
        return None
    if not is_current(output):
        count = len(job.samples)
        monitor.on_progress("gallery", 0, count)
        for done in write_gallery(job, output, monitor.contents):
            monitor.on_progress("gallery", done, count)
            if done < count and stopping():
                return None
    return output / PAGE


def _note_earlier(writer: DatasetWriter, output: Path, count: int, notes: Notes) -> None:
    """Report what was found of an earlier run."""
    for note in writer.notes:
        notes.info(f"{output}: {note}")
    if writer.lost:
        images = counted_with(writer.lost, "image", "is")
        notes.info(f"{output}: {images} not on disk as recorded, to be recovered again")
    if writer.finished or writer.done:
        done, skipped = writer.totals()
        left_out = f", {len(skipped)} were left out" if skipped else ""
        notes.info(f"{output}: {done - len(skipped)} of {count} images are already there{left_out}")


def _start(schedule: Schedule) -> str:
    ratio = schedule.inherited_ratio
    if ratio is None:
        return "from pure noise"
    return (
        f"from the level of step {schedule.recipe.inherit_step} (signal-to-noise ratio {ratio:.2f})"
    )


def _recipe(recipe: Recipe | str | None) -> Recipe:
    if recipe is None or isinstance(recipe, Recipe):
        return recipe or Recipe()
    _require_choice("recipe", recipe, tuple(PRESETS))
    return PRESETS[recipe]


def _require_type(name: str, value: object, types: tuple[Any, ...], expected: str) -> None:
    if not isinstance(value, types):
        raise UsageError(
            f"{name} is {shown_value(value)} ({type(value).__name__}); expected {expected}"
        )


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {shown_value(value)}; expected one of {', '.join(choices)}")
