"""A distilled dataset on disk becomes a recovered one on disk: what `diver-trt recover` does.

A `Job` holds what decides the images; `recover_job` recovers those that are not on disk yet. The
manifest holds nothing that depends on when, in how many runs, or in which batches that was done.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diver_trt._version import __version__
from diver_trt.bundle import Bundle
from diver_trt.distilled.class_map import wnid_of
from diver_trt.distilled.dataset import Dataset, Sample
from diver_trt.distilled.image_file import read_image
from diver_trt.distilled.source import Checked
from diver_trt.errors import (
    BundleError,
    DatasetError,
    DeviceMemoryError,
    DiverError,
    EngineError,
    UsageError,
    printable,
    shown,
)
from diver_trt.files import file_sha256
from diver_trt.manifest import CONTACT_SHEET, TOOL
from diver_trt.method.noise import checked_seed
from diver_trt.pixels import Pixels, square
from diver_trt.recipe import Recipe
from diver_trt.records import ClassEntry, Distilled, Head, LaidOut, Model, Part, Source, Tool
from diver_trt.recovered.caption import caption
from diver_trt.recovered.contact_sheet import ContactSheet
from diver_trt.recovered.folder import DatasetWriter, require_apart, require_usable
from diver_trt.recovered.journal import storable
from diver_trt.recovered.layouts.base import Layout, Written, write_soft_labels
from diver_trt.recovered.layouts.index import INDEX
from diver_trt.recovered.output_names import image_paths
from diver_trt.runtime.engine import DEFAULT_BATCH
from diver_trt.runtime.recoverer import RecoveredSample, Recoverer
from diver_trt.structs import dump

T = TypeVar("T")

RESAMPLING = "bicubic, antialiased"

_ASKED = 16
"""Other images that are tried where one cannot be read any more."""

OpenRecoverer = Callable[[int | None, str | None], Recoverer]
"""Opens the model for a batch size on an engine; None leaves the choice to the callee."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a dataset: consecutive samples, so that a shard has few classes.

    Attributes:
        number: Which part, from 1.
        of: How many parts there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/8`.

        Raises:
            UsageError: If the text is not such a fraction, at most 1.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(text))
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"shard is {shown(repr(text))}; expected NUMBER/OF, such as 3/8")
        return cls(int(found[1]), int(found[2]))

    def part(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples of this part; over all parts each sample comes once."""
        return samples[
            len(samples) * (self.number - 1) // self.of : len(samples) * self.number // self.of
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be recovered.

    Attributes:
        dataset: The distilled images.
        checked: What a look at each of its images found, from `dataset.images.check`.
        bundle: The model.
        recipe: The method's settings.
        seed: Seed of the noise.
        layout: How the recovered images are laid out.
        size: Side of the written images in pixels; None keeps the model's.
        shard: The part that is to be done; None is all.
        skip_bad: Whether an image that cannot be read or recovered is left out instead of ending
            the recovery.
        base: The folder that names of images are relative to.

    Raises:
        UsageError: If the seed is not a whole number of 64 bits, which is what manifests hold.
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

    def __post_init__(self) -> None:
        root = self.dataset.root
        object.__setattr__(self, "seed", checked_seed(self.seed))
        # now, because a folder may vanish while its images are read
        object.__setattr__(self, "base", root if root.is_dir() else root.parent)

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples of this job, in the dataset's order."""
        return self.shard.part(self.dataset.samples) if self.shard else self.dataset.samples

    @property
    def side(self) -> int:
        """Side of the written images in pixels."""
        return self.size or self.bundle.image_size

    def head(self) -> dict[str, Any]:
        """Return what decides the images, as the journal and the manifest begin."""
        dataset, bundle, origin = self.dataset, self.bundle, self.dataset.origin
        normalisation = self.layout.normalisation_for(origin.normalisation, self.side)
        head = Head(
            tool=Tool(name=TOOL, version=__version__),
            bundle=Model(model=bundle.model_id, precision=bundle.precision, sha256=bundle.sha256),
            recipe=self.recipe.to_json(),
            seed=self.seed,
            source=Source(
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
            shard=Part(number=self.shard.number, of=self.shard.of) if self.shard else None,
        )
        return storable(dump(head))  # type: ignore[no-any-return]

    def files(self) -> dict[str, str]:
        """Return where each sample of the whole dataset goes, by key."""
        count = self.bundle.num_classes
        return image_paths(
            self.layout,
            (
                (sample.key, sample.label, wnid_of(sample.label, count))
                for sample in self.dataset.samples
            ),
        )

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
            wnid=wnid_of(sample.label, self.bundle.num_classes),
        )
        return storable(dump(entry))  # type: ignore[no-any-return]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return each sample's entry by key: source, destination, and why it cannot be read."""
        files, entries = self.files(), {}
        for sample in self.samples:
            problem = self.checked[sample.position].problem
            left_out = {"problem": self.reason(sample, problem)} if problem else {}
            entries[sample.key] = {**self.entry(sample), "file": files[sample.key], **left_out}
        return entries

    def classes(self) -> list[dict[str, Any]]:
        """Return what the manifest says of each class that occurs."""
        names, count = self.bundle.class_names, self.bundle.num_classes
        classes = [
            ClassEntry(
                index=index,
                label=label,
                wnid=wnid_of(label, count),
                imagenet_index=label if wnid_of(label, count) else None,
                name=names[label] if names else None,
            )
            for index, label in self.dataset.labels.items()
        ]
        return storable(dump(classes))  # type: ignore[no-any-return]

    def reason(self, sample: Sample, problem: str) -> str:
        """Return why a sample is left out, without the dataset's path or the sample's own name."""
        problem = problem.removeprefix(f"{self.base}/")
        for base in {self.base.absolute(), self.base.resolve()} - {Path(self.base.anchor)}:
            problem = problem.replace(f"{base}/", "")
        source = self.dataset.images.name(sample.position)
        name, colon, rest = problem.partition(": ")
        is_its_name = bool(name) and source.startswith(name)
        return str(storable(rest if colon and is_its_name else problem))

    def _source_sha256(self) -> str:
        """Return a hash of all names, classes, contents and soft labels of the whole dataset."""
        digest, soft_label = hashlib.sha256(), self.dataset.soft_label
        for sample in self.dataset.samples:
            digest.update(
                f"{sample.key} {sample.label} {self.checked[sample.position].sha256}\n".encode()
            )
            if soft_label:
                digest.update(soft_label(sample.position).tobytes())
        return digest.hexdigest()


def _sha256(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def check_output(dataset: Dataset, bundle: Bundle, output: Path, layout: Layout) -> None:
    """Refuse, before any work, an unusable output folder or a layout that cannot be written.

    The folder is unusable if it holds something else or overlaps what is read.

    Raises:
        OutputError: If it does, or cannot.
    """
    require_usable(output)
    require_apart(output, dataset.root, "the input")
    require_apart(output, bundle.path, "the bundle")
    layout.require()
    layout.image_path(0, 0, wnid_of(dataset.samples[0].label, bundle.num_classes))


class ModelOpener:
    """Opens the model of a job, with half the batch each time that memory runs out.

    It stays on the engine that was opened first.

    Args:
        open_recoverer: Opens it.
        images: How many images there are.
        batch: Images per batch to begin with; None leaves the choice to the engine.
    """

    def __init__(
        self, open_recoverer: OpenRecoverer, images: int, batch: int | None = None
    ) -> None:
        self._open_recoverer, self._images, self._batch = open_recoverer, images, batch
        self._engine: str | None = None
        self._ready: Recoverer | None = None
        self._shortage = ""

    def prepare(self) -> None:
        """Open the model ahead of the first `open`.

        Raises:
            BundleError, EngineError, DeviceMemoryError: See `open`.
        """
        self._ready = self.open()

    def open(self) -> Recoverer:
        """Open the model.

        Raises:
            BundleError: Its files have changed since the export.
            EngineError: The engine cannot run here.
            DeviceMemoryError: If there is no room even for one image at a time, or for the smallest
                batch that the engine takes.
        """
        recoverer, self._ready = self._ready, None
        while recoverer is None:
            try:
                recoverer = self._open_recoverer(self._batch, self._engine)
            except DeviceMemoryError as error:
                self._batch = min(self._batch or DEFAULT_BATCH, max(1, self._images))
                self.halve(error)
            except EngineError as error:
                if not self._shortage:
                    raise
                raise DeviceMemoryError(
                    f"{self._shortage}; and in smaller batches: {error}"
                ) from error
        self._batch, self._engine = recoverer.batch, recoverer.engine
        return recoverer

    def halve(self, shortage: DeviceMemoryError) -> None:
        """Let the next `open` be for half the batch.

        Raises:
            DeviceMemoryError: It is one image already; the message is that of the first shortage.
        """
        self._batch = (self._batch or DEFAULT_BATCH) // 2
        if not self._batch:
            raise DeviceMemoryError(self._shortage or str(shortage)) from shortage
        if not self._shortage:
            # The error itself would hold on to what its frames have opened.
            self._shortage = str(shortage)
            warnings.warn(
                "out of memory: going on in smaller batches", RuntimeWarning, stacklevel=2
            )


def recover_job(
    job: Job,
    writer: DatasetWriter,
    opener: ModelOpener,
    *,
    on_open: Callable[[Recoverer], None] = lambda _: None,
    on_step: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Path]:
    """Recover images that are not on disk yet, yielding each path; then write companions.

    When memory runs out, on the device or on the host, the batch is halved and the run continues.

    Args:
        job: What is to be recovered.
        writer: The output folder, from `open_output`.
        opener: Opens the model.
        on_open: Called with the opened model, again when it is opened anew.
        on_step: Called after every denoising step of every batch.
        stopping: Asked before every batch; once true, the current batch is finished and written,
            and nothing more is begun.

    Raises:
        DatasetError: An image is bad, or has changed or vanished since it was looked at, and such
            are not skipped; or the input as a whole has vanished.
        OutputError: A file cannot be written.
        EngineError: If the engine fails, or an image is unusable and bad ones are not skipped.
    """
    run = _Run(job, writer, stopping)
    while run.remaining:
        with opener.open() as recoverer:
            on_open(recoverer)
            try:
                yield from run.recover(recoverer, on_step)
                break
            except DeviceMemoryError as error:
                opener.halve(error)
    if not (run.remaining or writer.finished):
        _finish(job, writer)


def _finish(job: Job, writer: DatasetWriter) -> None:
    """Write what stands beside the images, the manifest last of all."""
    files, skipped = job.files(), []
    good = []
    for sample in job.samples:
        entry = writer.entry(sample.key)
        skipped.append(entry) if "problem" in entry else good.append(sample)
    classes, soft_label = job.classes(), job.dataset.soft_label
    written = Written(
        root=writer.root,
        files=[files[sample.key] for sample in good],
        indices=[sample.index for sample in good],
        classes=classes,
        soft_labels=None
        if soft_label is None
        else lambda number: soft_label(good[number].position),
        size=job.side,
    )
    if job.shard:  # `merge` writes the companions of the layout
        companions = write_soft_labels(written)
    else:
        source = job.dataset.origin.normalisation
        companions = job.layout.write(written, job.layout.normalisation_for(source, job.side))
    manifest = {
        **writer.head,
        "companions": [
            {"file": name, "sha256": file_sha256(writer.root / name)} for name in companions
        ],
        "skipped": skipped,
        "classes": classes,
    }
    title = caption("top: distilled, bottom: recovered", job.head(), job.recipe)
    sheet = ContactSheet(title, job.bundle.image_size, Counter(sample.index for sample in good))
    for sample in good:
        if sheet.wants(sample.index):
            try:
                distilled = square(job.dataset.images.read(sample.position), job.bundle.image_size)
            except DatasetError:
                continue  # it has vanished since; what was made of it is there
            recovered = read_image(writer.root / files[sample.key])
            sheet.add(sample.index, class_title(job.bundle, sample), distilled, recovered)
    writer.finish(manifest, [sample.key for sample in good], sheet.draw())


class _Run:
    """One go at a job: what remains, and what becomes of each sample."""

    def __init__(self, job: Job, writer: DatasetWriter, stopping: Callable[[], bool]) -> None:
        self._job, self._writer, self._stopping = job, writer, stopping
        self._files = job.files()
        self._twin: Recoverer | None = None
        self._looked_for_twin = False
        self._engine = ""
        self.remaining = (
            []
            if writer.finished
            else [sample for sample in job.samples if sample.key not in writer.done]
        )

    def recover(self, recoverer: Recoverer, on_step: Callable[[], None]) -> Iterator[Path]:
        """Recover what remains, or as much as is asked for, and keep what remains then."""
        self._engine = recoverer.engine
        taken: deque[Sample] = deque()
        labels: deque[int] = deque()
        keys: deque[str] = deque()
        images = self._images(recoverer.batch, taken, labels, keys)
        recovered = recoverer(
            images,
            _drained(labels),
            keys=_drained(keys),
            seed=self._job.seed,
            keep_bad=True,
            on_step=on_step,
        )
        try:
            for result in recovered:
                if path := self._write(taken.popleft(), result):
                    yield path
        finally:
            self._close_twin()
            self.remaining = [
                sample for sample in self.remaining if sample.key not in self._writer.done
            ]

    def _images(
        self, batch: int, taken: deque[Sample], labels: deque[int], keys: deque[str]
    ) -> Iterator[Pixels]:
        """Yield the readable images and record the sample of each.

        The recoverer requests label and key right after the image.
        """
        count = 0
        for sample in self.remaining:
            if count % batch == 0 and self._stopping():
                return
            if problem := self._job.checked[sample.position].problem:
                self._leave_out_unread(sample, DatasetError(problem))
                continue
            try:
                image = self._read(sample)
            except DatasetError as error:
                if self._input_is_gone(sample):
                    raise
                self._leave_out_unread(sample, error)
                continue
            taken.append(sample)
            labels.append(sample.label)
            keys.append(sample.key)
            count += 1
            yield image

    def _read(self, sample: Sample) -> Pixels:
        images, checked = self._job.dataset.images, self._job.checked[sample.position]
        if images.sha256(sample.position) != checked.sha256:
            path = self._job.base / images.name(sample.position)
            raise DatasetError(
                f"{path}: has changed while it was being recovered; run again on a copy that "
                "stays as it is"
            )
        return images.read(sample.position)

    def _input_is_gone(self, unreadable: Sample) -> bool:
        """Return whether the whole input has become unreadable, not only this image.

        An unmounted drive is not the fault of one image.
        """
        images, checked = self._job.dataset.images, self._job.checked
        others = (
            sample.position
            for sample in self._job.samples
            if sample is not unreadable and not checked[sample.position].problem
        )
        for position in islice(others, _ASKED):
            with suppress(DatasetError):
                images.sha256(position)
                return False
        return True

    def _write(self, sample: Sample, result: RecoveredSample) -> Path | None:
        record = {**self._job.entry(sample), "engine": self._engine}
        if result.problem:
            again = self._with_twin(sample)
            if again is None or again.problem:
                self._leave_out(sample, record, result.problem)
                return None
            result, record["engine"] = again, "onnx fp32, for the bundle's own came to nothing"
        path = self._writer.add(self._files[sample.key], square(result.image, self._job.side))
        self._writer.record(
            {**record, "file": self._files[sample.key], "sha256": file_sha256(path)}
        )
        return path

    def _leave_out(self, sample: Sample, record: dict[str, Any], problem: str) -> None:
        """Leave out a sample whose image is unusable.

        Its entry names the engine, so that no later run retries it.
        """
        if not self._job.skip_bad:
            raise DatasetError(f"{sample.key}: {problem}")
        try:
            self._read(sample)
        except DatasetError as error:  # it might have been recovered in fp32
            self._leave_out_unread(sample, error)
        else:
            self._writer.record({**record, "problem": problem})

    def _leave_out_unread(self, sample: Sample, error: DatasetError) -> None:
        """Leave out a sample whose source cannot be read.

        Its entry names no engine, so that a later run retries it.
        """
        if not self._job.skip_bad:
            raise error
        problem = self._job.reason(sample, str(error))
        self._writer.record({**self._job.entry(sample), "problem": problem})

    def _close_twin(self) -> None:
        if self._twin:
            self._twin.close()
        self._twin, self._looked_for_twin = None, False

    def _with_twin(self, sample: Sample) -> RecoveredSample | None:
        """Retry one sample with the fp32 bundle of the same model, if there is one beside this."""
        try:
            if not self._looked_for_twin:
                self._looked_for_twin = True
                twin = find_fp32_twin(self._job.bundle)
                self._twin = (
                    Recoverer(twin, self._job.recipe, engine="onnx", batch=1) if twin else None
                )
            if self._twin is None:
                return None
            image = self._read(sample)
            return next(
                self._twin(
                    [image], [sample.label], keys=[sample.key], seed=self._job.seed, keep_bad=True
                )
            )
        except (DiverError, OSError) as error:
            if isinstance(error, DatasetError) and self._input_is_gone(sample):
                raise
            warnings.warn(
                f"what came to nothing cannot be tried again in fp32: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None


def _drained(queue: deque[T]) -> Iterator[T]:
    while queue:
        yield queue.popleft()


def find_fp32_twin(bundle: Bundle) -> Bundle | None:
    """Return the fp32 bundle of the same model in the same folder, for what overflows in fp16."""
    if bundle.precision == "fp32":
        return None
    same = ("weights_sha256", "scaling_factor", "process", "timestep_frequencies")
    for folder in sorted(bundle.path.resolve().parent.iterdir()):
        try:
            if not (folder / "bundle.json").is_file():
                continue
            other = Bundle.open(folder)
        except (BundleError, OSError):
            continue
        if other.precision == "fp32" and all(
            getattr(other, what) == getattr(bundle, what) for what in same
        ):
            return other
    return None


def distilled_sheet(dataset: Dataset, bundle: Bundle) -> Image.Image:
    """Return a picture of the images as they would be fed to the model."""
    sheet = ContactSheet(
        f"{shown(dataset.root.name)}: {printable(dataset.summary)}  ·  diver-trt inspect",
        bundle.image_size,
        Counter(sample.index for sample in dataset.samples),
    )
    for sample in dataset.samples:
        if sheet.wants(sample.index):
            sheet.add(
                sample.index,
                class_title(bundle, sample),
                square(dataset.images.read(sample.position), bundle.image_size),
            )
    return sheet.draw()


def contact_sheet_path(output: Path) -> Path:
    """Return where the contact sheet of a recovery is."""
    return output / CONTACT_SHEET


def class_title(bundle: Bundle, sample: Sample) -> str:
    """Return a class's title: its index, then its name or its number in the model."""
    name = (
        bundle.class_names[sample.label].split(",")[0]
        if bundle.class_names
        else f"class {sample.label}"
    )
    return name if name == str(sample.index) else f"{sample.index}: {name}"


def mean_clipped(checked: Sequence[Checked]) -> float:
    """Return the fraction of distilled values that lay outside the range of pixels."""
    return float(sum(entry.clipped for entry in checked) / max(1, len(checked)))
