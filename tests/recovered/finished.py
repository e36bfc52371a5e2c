"""Finished datasets without a model: each recovered image is the negative of its distilled one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.records import Shard
from diver_trt.recovered.gallery.writing import write_gallery
from diver_trt.recovered.job import Job
from diver_trt.recovered.layouts import LAYOUTS
from tests.recovered.job_runs import copy_job


def flat(count: int, side: int) -> Pixels:
    """Images of one colour each, all different, as a picture shows where each of them is."""
    levels = np.arange(count)
    colours = np.stack([levels * 37 % 200 + 20, levels * 91 % 200 + 20, levels * 53 % 200 + 20], 1)
    return np.broadcast_to(colours[:, None, None], (count, side, side, 3)).astype(np.uint8)


def distilled(folder: Path, images: Pixels, per_class: int) -> Path:
    """Write images into class folders and return the root."""
    for position, image in enumerate(images):
        index, number = divmod(position, per_class)
        path = folder / str(index) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@dataclass(frozen=True)
class Finished:
    """A finished dataset: its job and its folder."""

    job: Job
    root: Path

    def write_gallery(self) -> Path:
        """Write its gallery, and return the page."""
        for _ in write_gallery(self.job, self.root):
            pass
        return self.root / "index.html"


def finished(
    source: Path,
    root: Path,
    *,
    layout: str = "index",
    shard: str | None = None,
    left_out: Sequence[str] = (),
    class_names: tuple[str, ...] | None = None,
    model: str = "toy",
) -> Finished:
    """Recover a dataset without a model.

    Args:
        source: The distilled images, square; their side is the model's.
        root: The output folder.
        layout: The layout.
        shard: The part that it is.
        left_out: Keys of images that are left out.
        class_names: The model's classes, instead of the ten digits.
        model: The model's name.
    """
    bundle = Bundle.open(default_bundle())
    side = read_dataset(source, bundle).origin.image_size[0]
    names = class_names or bundle.class_names
    bundle = replace(bundle, model=replace(bundle.model, id=model))
    bundle = replace(bundle, image_size=side, class_names=names, num_classes=len(names or ()))
    dataset = read_dataset(source, bundle)
    job = Job(
        dataset=dataset,
        checked=list(dataset.images.check()),
        bundle=bundle,
        recipe=Recipe(),
        layout=LAYOUTS[layout],
        shard=Shard.parse(shard) if shard else None,
        skip_bad=True,
    )
    problems = ["is all in one colour" if s.key in left_out else None for s in job.samples]
    copy_job(job, root, problems, lambda image: 255 - image)
    return Finished(job, root)
