"""The command in a caption reads the input as it was read, whatever was stated or detected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.bundle import Bundle
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.options import ReadOptions
from diver_trt.recipe import Recipe
from diver_trt.recovered.caption import reading_options
from diver_trt.recovered.job import Job
from tests.distilled import methods
from tests.distilled.test_dataset import CLASSES, known_images

OPTIONS = {
    "--classes": "classes",
    "--format": "method",
    "--normalisation": "normalisation",
    "--collage": "collage",
}


def idc(folder: Path, images: Any, classes: Any) -> Path:
    return methods.listed("data.pt")(folder, images, classes)  # type: ignore[no-any-return]


def plain(folder: Path, images: Any, classes: Any) -> Path:
    path = folder / "plain.npz"
    np.savez(path, images=images, labels=np.asarray(classes))
    return path


@pytest.mark.parametrize(
    ("write", "side", "stated"),
    [
        (methods.mtt, 128, {}),
        (methods.mtt, 128, {"normalisation": "glad"}),
        (methods.mtt, 32, {"method": "arrays", "normalisation": "0.5:0.5"}),
        (methods.datm, 64, {"collage": 2}),
        (methods.glad, 128, {}),
        (methods.dm, 32, {}),
        (idc, 224, {}),
        (idc, 224, {"collage": 1}),
        (plain, 64, {}),
        (plain, 64, {"collage": 4, "classes": "model"}),
        (methods.SRE2L, 64, {}),
        (methods.SRE2L, 64, {"method": "folders", "collage": 2}),
        (methods.D4M, 64, {"method": "rded", "collage": 2}),
    ],
)
def test_the_options_in_a_caption_read_the_same(
    tmp_path: Path, imagenet: Bundle, write: Callable[..., Path], side: int, stated: dict[str, Any]
) -> None:
    path = write(tmp_path, known_images(20, side), CLASSES)
    first = read_dataset(path, imagenet, ReadOptions(**{"classes": "imagewoof", **stated}))
    job = Job(dataset=first, checked=list(first.images.check()), bundle=imagenet, recipe=Recipe())
    texts = reading_options(job.head(), job.classes())
    options: dict[str, Any] = {
        OPTIONS[name]: text for name, text in zip(texts[::2], texts[1::2], strict=True)
    }
    if "collage" in options:
        options["collage"] = int(options["collage"])
    again = read_dataset(path, imagenet, ReadOptions(**options))
    assert (again.samples, again.classes) == (first.samples, first.classes)
    assert replace(again.origin, notes=()) == replace(first.origin, notes=())
    np.testing.assert_array_equal(again.images.read(3), first.images.read(3))


def test_a_recovered_input_states_itself_how_it_is_read(digits: Bundle) -> None:
    head = {"source": {"format": "recovered"}, "class_map": "imagewoof"}
    assert reading_options(head, [{"wnid": None}]) == []
