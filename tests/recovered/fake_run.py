"""A recovery without a model, through the real writer: six samples, the last one unusable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diver_trt._version import __version__
from diver_trt.errors import OutputError
from diver_trt.files import file_sha256
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written

PROBLEM = "is all in one colour"


CLASSES = [
    {"index": i, "label": 9 - i, "wnid": None, "imagenet_index": None, "name": str(i)}
    for i in range(2)
]


def head(layout: str = "index", seed: int = 0) -> dict[str, Any]:
    return {
        "schema": 2,
        "tool": {"name": "diver-trt", "version": __version__},
        "bundle": {"model": "digits", "precision": "fp32", "sha256": "0" * 64},
        "recipe": {"steps": 4},
        "seed": seed,
        "source": {
            "name": "set",
            "format": "folders",
            "images": 6,
            "sha256": "1" * 64,
            "clipped": 0.0,
        },
        "layout": {"name": layout, "size": 8, "resampling": None, "normalisation": None},
        "class_map": "model",
        "shard": None,
    }


def samples(layout: str = "index") -> dict[str, dict[str, Any]]:
    known = {}
    for index in range(2):
        for number in range(3):
            key = f"{index:05d}/{number:05d}"
            file = f"{'train/' if layout == 'huggingface' else ''}{key}.png"
            source = {
                "source": f"{index}/{number}.png",
                "source_sha256": f"{3 * index + number:064x}",
            }
            known[key] = {
                "key": key,
                **source,
                "index": index,
                "label": 9 - index,
                "wnid": None,
                "file": file,
            }
    return known


def recover(
    root: Path, until: int = 6, *, layout: str = "index", seed: int = 0, overwrite: bool = False
) -> int:
    """Recover up to so many samples, finish when all are done; return how many were lost."""
    known = samples(layout)
    with open_output(
        root, head(layout, seed), samples=known, classes=CLASSES, overwrite=overwrite
    ) as writer:
        for number, (key, sample) in enumerate(known.items()):
            if writer.finished or key in writer.done:
                continue
            if len(writer.done) == until:
                return writer.lost
            file = sample.pop("file")
            if number == 5:
                writer.record({**sample, "engine": "onnx", "problem": PROBLEM})
                continue
            path = writer.add(
                file, np.random.default_rng([seed, number]).integers(0, 255, (8, 8, 3), np.uint8)
            )
            writer.record({**sample, "engine": "onnx", "file": file, "sha256": file_sha256(path)})
        if not writer.finished and until == 6:
            _finish(root, writer, layout)
        return writer.lost


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(OutputError) as error:
        recover(root, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def _finish(root: Path, writer: Any, layout: str) -> None:
    known = samples(layout)
    good, skipped = list(known)[:5], list(known)[5:]
    files, indices = [known[key]["file"] for key in good], [known[key]["index"] for key in good]
    written = Written(
        root, files, indices, CLASSES, lambda number: np.full(10, number, np.float32), 8
    )
    companions = LAYOUTS[layout].write(written, None)
    writer.finish(
        companions=companions,
        skipped=[writer.entry(key) for key in skipped],
        classes=CLASSES,
        keys=good,
        contact_sheet=Image.new("RGB", (8, 8), (200, 30, 30)),
    )
