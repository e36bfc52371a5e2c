"""What is to be recovered: a `Job` holds everything that decides the images.

Journal and manifest begin with it. They hold nothing that depends on when, in how many runs, on
which machine, or in which batches the images were recovered, so that all of these give the same
bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import wnid_of
from diver_trt.distilled.dataset import Dataset, Sample
from diver_trt.distilled.normalisation import Normalisation
from diver_trt.distilled.source import Checked
from diver_trt.manifest import TOOL
from diver_trt.recipe import Recipe
from diver_trt.records import ClassEntry, Distilled, Head, LaidOut, Model, Shard, Source, Tool
from diver_trt.recovered.journal import storable
from diver_trt.recovered.layouts.base import Layout
from diver_trt.recovered.layouts.index import INDEX
from diver_trt.recovered.output_names import ImagePaths
from diver_trt.structs import dump

RESAMPLING = "bicubic, antialiased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be recovered.

    Attributes:
        dataset: The distilled images.
        checked: The result of checking each of its images, from `dataset.images.check`.
        bundle: The model.
        recipe: The method's settings.
        seed: Seed of the noise, from `checked_seed`.
        layout: How the recovered images are laid out.
        size: Side of the written images in pixels; None keeps the model's.
        shard: The part that is to be recovered; None is all of it.
        skip_bad: Whether an image that cannot be read or recovered is left out instead of ending
            the recovery.
        base: The folder that names of images are relative to.
        files: Where each sample of the whole dataset goes, by key.

    Raises:
        OutputError: If the layout cannot name the folder of a class.
    """

    dataset: Dataset
    checked: Sequence[Checked]
    bundle: Bundle
    recipe: Recipe
    seed: int = 0
    layout: Layout = INDEX
    size: int | None = None
    shard: Shard | None = None
    skip_bad: bool = False
    base: Path = field(init=False)
    files: ImagePaths = field(init=False)

    def __post_init__(self) -> None:
        root = self.dataset.root
        # Now, because the folder may vanish while its images are read.
        object.__setattr__(self, "base", root if root.is_dir() else root.parent)
        samples = (
            (sample.key, sample.label, wnid_of(sample.label, self.bundle))
            for sample in self.dataset.samples
        )
        object.__setattr__(self, "files", ImagePaths(self.layout, samples))

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples of this job, in the dataset's order."""
        return self.shard.part(self.dataset.samples) if self.shard else self.dataset.samples

    @property
    def side(self) -> int:
        """Side of the written images in pixels."""
        return self.size or self.bundle.image_size

    @property
    def normalisation(self) -> Normalisation | None:
        """The statistics of the tensors that the layout writes, or None if it writes none."""
        return self.layout.normalisation_for(self.dataset.origin.normalisation, self.side)

    def head(self) -> dict[str, Any]:
        """Return what decides the images, as the journal and the manifest begin."""
        dataset, bundle, origin = self.dataset, self.bundle, self.dataset.origin
        normalisation = self.normalisation
        head = Head(
            tool=Tool(name=TOOL, version=__version__),
            bundle=Model(model=bundle.model_id, precision=bundle.precision, sha256=bundle.sha256),
            recipe=self.recipe.to_json(),
            seed=self.seed,
            copies=dataset.copies,
            source=Source(
                # Resolved: `.` has no name.
                name=dataset.root.resolve().name,
                format=origin.format.name,
                files=origin.files,
                normalisation=origin.normalisation,
                whitening=origin.whitening,
                collage=origin.collage,
                soft_labels=origin.soft_labels,
                clipped=mean_clipped(self.checked),
                images=len(dataset.samples),
                sha256=self._source_sha256(),
            ),
            layout=LaidOut(
                name=self.layout.name,
                size=self.side,
                resampling=RESAMPLING if self.side != bundle.image_size else None,
                normalisation=normalisation.name if normalisation else None,
            ),
            class_map=dataset.classes,
            shard=self.shard,
        )
        # As it will be stored, since a resumed run compares it with the stored one.
        return storable(dump(head))  # type: ignore[no-any-return]

    def entry(self, sample: Sample) -> dict[str, Any]:
        """Return a sample's entry as journal and manifest begin it, before it is recovered."""
        soft_label = self.dataset.soft_label
        entry = Distilled(
            key=sample.key,
            source=self.dataset.images.name(sample.position),
            source_sha256=self.checked[sample.position].sha256,
            soft_label_sha256=_sha256(soft_label(sample.position)) if soft_label else None,
            index=sample.index,
            label=sample.label,
            wnid=wnid_of(sample.label, self.bundle),
        )
        return storable(dump(entry))  # type: ignore[no-any-return]

    def entries(self) -> JobEntries:
        """Return each sample's entry by key: source, destination, and why it cannot be read."""
        return JobEntries(self)

    def classes(self) -> list[dict[str, Any]]:
        """Return the manifest's entry of each class that occurs."""
        names = self.bundle.class_names
        classes = [
            ClassEntry(
                index=index,
                label=label,
                wnid=(wnid := wnid_of(label, self.bundle)),
                imagenet_index=label if wnid else None,
                name=names[label] if names else None,
                own_name=self.dataset.own_names.get(index),
            )
            for index, label in self.dataset.labels.items()
        ]
        return storable(dump(classes))  # type: ignore[no-any-return]

    def reason(self, sample: Sample, problem: str) -> str:
        """Return why a sample is left out, without the dataset's path or the sample's own name."""
        # Machines that recover shards mount the dataset in different places, and their manifests
        # have to be equal.
        problem = problem.removeprefix(f"{self.base}/")
        # Not the root of a file system, whose removal would take every slash.
        for base in {self.base.absolute(), self.base.resolve()} - {Path(self.base.anchor)}:
            problem = problem.replace(f"{base}/", "")
        source = self.dataset.images.name(sample.position)
        name, colon, rest = problem.partition(": ")
        is_its_name = bool(name) and source.startswith(name)
        return str(storable(rest if colon and is_its_name else problem))

    def _source_sha256(self) -> str:
        """Return a hash of all names, classes, contents and soft labels of the whole dataset."""
        digest, soft_label = hashlib.sha256(), self.dataset.soft_label
        # The hash covers every shard's samples too: it shows that all shards had one input.
        for sample in self.dataset.samples:
            digest.update(
                f"{sample.key} {sample.label} {self.checked[sample.position].sha256}\n".encode()
            )
            if soft_label:
                digest.update(soft_label(sample.position).tobytes())
        return digest.hexdigest()


class JobEntries(Mapping[str, dict[str, Any]]):
    """What is known of each sample of a job, by key.

    An entry is made when it is read: an entry takes more memory than all else that a run keeps of
    its image.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._samples = {sample.key: sample for sample in job.samples}

    def __getitem__(self, key: str) -> dict[str, Any]:
        job, sample = self._job, self._samples[key]
        problem = job.checked[sample.position].problem
        left_out = {"problem": job.reason(sample, problem)} if problem else {}
        return {**job.entry(sample), "file": job.files[key], **left_out}

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def _sha256(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def mean_clipped(checked: Sequence[Checked]) -> float:
    """Return the fraction of distilled values that lay outside the range of pixels."""
    # Not sum(), which from Python 3.12 on compensates rounding errors: shards of two versions would
    # not belong together. https://docs.python.org/3/library/functions.html#sum
    return math.fsum(entry.clipped for entry in checked) / max(1, len(checked))
