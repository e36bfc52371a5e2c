"""Does recovery help networks that the images were not distilled with? One table for a data set.

    python -m examples.results fashion --work results-fashion --json docs/results/fashion.json
    python -m examples.results digits --work results-digits --json docs/results/digits.json --sweep

Exports the committed model, makes every training set from the committed distilled images, trains
networks on each, and prints the tables. With `--sweep`, settings are varied on the validation set
first, the best one becomes a row of the table, and a plot is written beside the JSON. Finished
training sets and trainings are kept in the work folder: an interrupted run resumes, and the same
command gives the same figures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import torch

from diver_trt import Bundle
from diver_trt.evaluation.events import Event, RunStarts
from diver_trt.evaluation.image_set import ImageSet
from diver_trt.evaluation.runs import evaluate
from diver_trt.export.exporter import export_bundle
from diver_trt.models.dit import load_model
from examples.dataset import DATASETS, Dataset, Split, load_dataset
from examples.results_document import Measured, results_document, table, write_json
from examples.results_plot import plot_sweep
from examples.settings import DISTILLED, ROWS, Point, Row, sweep
from examples.training_sets import REAL, TrainingSet, Treatment, Workshop

IMAGES_PER_CLASS = (1, 10)
CONVNET = "convnet-small"
# A training takes up to half a minute of one core, and the table has hundreds: more networks would
# take hours.
ARCHITECTURES = (CONVNET, "mlp", "resnet-small")
SWEEP_ARCHITECTURES = ARCHITECTURES[1:]
SWEEP_SEEDS = 2
SWEEP_IMAGES = 2000
PROTOCOL = "quick"
CHOSEN = "chosen on validation"


class Laboratory:
    """Measures training sets of a data set: makes them, trains on them, and keeps both."""

    def __init__(self, dataset: Dataset, work: Path) -> None:
        self.splits, self._work = dataset.load(), work
        bundle = exported(dataset, work / "bundle")
        self._workshop = Workshop(dataset, self.splits.train, bundle, work / "sets")

    def measure(
        self, sets: Sequence[TrainingSet], test: Split, architectures: Sequence[str]
    ) -> list[Measured]:
        """Train every architecture on every set, with the set's seed; return the accuracies.

        All sets have one seed and one number of images per class.
        """
        ((seed, per_class),) = {(wanted.seed, wanted.per_class) for wanted in sets}
        made = dict(self._workshop.make(sets))
        names = {str(i): wanted for i, wanted in enumerate(made)}
        # A set's noise and the training on it share a seed, so the spread is that of both.
        evaluation = evaluate(
            {name: image_set(made[wanted]) for name, wanted in names.items()},
            image_set(test),
            architectures=architectures,
            protocol=PROTOCOL,
            seeds=1,
            first_seed=seed,
            # One process at a time may use a journal.
            journal=self._work / "runs" / f"ipc{per_class}-seed{seed}",
            on_event=partial(print_event, per_class),
        )
        return [
            Measured(
                training_set=names[run.training_set],
                images=len(made[names[run.training_set]]),
                architecture=run.architecture,
                accuracy=run.accuracy,
            )
            for run in evaluation.runs
        ]


@dataclass(frozen=True, slots=True)
class Task:
    """Training sets of one seed and one number of images per class, measured in one process."""

    dataset: str
    work: Path
    sets: tuple[TrainingSet, ...]
    architectures: tuple[str, ...]
    validate: bool

    def __call__(self) -> list[Measured]:
        # One thread: the networks are small, and a figure must not depend on how many cores share
        # the work.
        torch.set_num_threads(1)
        laboratory = Laboratory(load_dataset(self.dataset), self.work)
        splits = laboratory.splits
        test = splits.validation.at(np.arange(min(SWEEP_IMAGES, len(splits.validation))))
        return laboratory.measure(
            self.sets, test if self.validate else splits.test, self.architectures
        )


def usable_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to_one_core(free: Queue[int]) -> None:
    """Keep this process to a core of its own, so that an engine starts one thread."""
    core = free.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def measure(
    dataset: Dataset,
    work: Path,
    sets: Iterable[TrainingSet],
    architectures: Sequence[str],
    *,
    validate: bool = False,
) -> list[Measured]:
    """Measure training sets on the test or the validation images, a process for each core."""
    groups: dict[tuple[int, int], list[TrainingSet]] = {}
    for wanted in sets:
        groups.setdefault((wanted.seed, -wanted.per_class), []).append(wanted)
    tasks = [
        Task(dataset.name, work, tuple(groups[key]), tuple(architectures), validate)
        for key in sorted(groups)
    ]
    # Spawned: a process that is forked from one that has run torch may hang.
    context, cores = get_context("spawn"), usable_cores()
    free = context.Queue()
    for core in cores:
        free.put(core)
    with ProcessPoolExecutor(len(cores), context, keep_to_one_core, (free,)) as pool:
        running = [pool.submit(task) for task in tasks]
        return [one for task in running for one in task.result()]


def exported(dataset: Dataset, folder: Path) -> Bundle:
    """Return the data set's model as a bundle, exported unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in export_bundle(load_model(str(dataset.model)), folder, "fp32"):
            pass
    return Bundle.open(folder)


def image_set(split: Split) -> ImageSet:
    return ImageSet(split.images, split.labels)


def print_event(per_class: int, event: Event) -> None:
    if isinstance(event, RunStarts) and event.done % 10 == 0:
        where = f"{per_class} per class, seed {event.seed}"
        print(f"{where}: {event.done} of {event.total} trainings", flush=True)


def row_sets(
    rows: Iterable[Row], methods: Sequence[str], per_class: Sequence[int], seeds: int
) -> list[TrainingSet]:
    """Return the training sets of the table's rows."""
    return [
        TrainingSet(source=source, per_class=count, treatment=row.treatment, seed=seed)
        for row in rows
        for source in (methods if row.source == DISTILLED else [REAL])
        for count in per_class
        for seed in range(seeds)
    ]


def sweep_sets(
    points: Iterable[Point], methods: Sequence[str], per_class: Sequence[int]
) -> list[TrainingSet]:
    """Return the training sets of the sweep; a treatment on two axes is measured once."""
    return [
        TrainingSet(source=method, per_class=count, treatment=treatment, seed=seed)
        for treatment in dict.fromkeys(point.treatment for point in points)
        for method in methods
        for count in per_class
        for seed in range(SWEEP_SEEDS)
    ]


def best(measured: Iterable[Measured]) -> Treatment:
    """Return the treatment with the highest mean accuracy over everything else.

    Those that keep several images for each distilled one have more to learn from, and are left out.
    """
    found: dict[Treatment, list[float]] = {}
    for one in measured:
        if one.training_set.treatment.copies == 1:
            found.setdefault(one.training_set.treatment, []).append(one.accuracy)
    return max(found, key=lambda treatment: sum(found[treatment]) / len(found[treatment]))


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--json", type=Path, required=True, help="file for every accuracy")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--per-class", type=int, nargs="+", default=IMAGES_PER_CLASS, choices=IMAGES_PER_CLASS
    )
    parser.add_argument("--methods", nargs="+", help="distilled by these alone")
    titles = [row.title for row in ROWS]
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", default=titles, choices=titles, help="rows, by title"
    )
    parser.add_argument("--sweep", action="store_true", help="choose settings on validation first")
    parser.add_argument(
        "--quick", action="store_true", help="one image per class, two networks, two seeds"
    )
    args = parser.parse_args()
    args.architectures = ARCHITECTURES
    if args.quick:
        args.per_class, args.seeds, args.architectures = (1,), 2, (CONVNET, "mlp")
    return args


def main() -> None:
    args = parsed_arguments()
    dataset = load_dataset(args.dataset)
    methods = args.methods or list(dataset.methods)
    exported(dataset, args.work / "bundle")  # here, not in several processes at once
    rows = [row for row in ROWS if row.title in args.only]
    points: list[Point] = []
    swept: list[Measured] = []
    if args.sweep:
        points = list(sweep())
        # On the first method alone: the others show whether its choice carries over.
        swept = measure(
            dataset,
            args.work,
            sweep_sets(points, methods[:1], args.per_class),
            SWEEP_ARCHITECTURES,
            validate=True,
        )
        rows.append(Row(title=CHOSEN, source=DISTILLED, treatment=best(swept)))
    measured = measure(
        dataset,
        args.work,
        row_sets(rows, methods, args.per_class, args.seeds),
        args.architectures,
    )
    document = results_document(
        dataset=dataset.name,
        protocol=PROTOCOL,
        distilled_with=CONVNET,
        rows=rows,
        measured=measured,
        points=points,
        swept=swept,
    )
    write_json(document, args.json)
    if args.sweep:
        plot_sweep(points, swept, args.json.with_suffix(".png"))
    for method in methods:
        for count in args.per_class:
            print(f"\n{method}, {count} per class:\n")
            print(table(rows, measured, method, count, args.architectures, CONVNET))


if __name__ == "__main__":
    main()
