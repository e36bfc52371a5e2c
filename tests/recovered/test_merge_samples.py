"""Merging checks what the shards record of their samples, each against the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diver_trt.recovered import earlier_run
from diver_trt.recovered.merge import merge_shards
from tests.edited_json import set_in
from tests.fuzzing import shards
from tests.recovered.commands import in_manifest, manifest_of
from tests.recovered.damaged_shards import Manifest, npy, refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_in("samples", 0, "index", to=0),
            "samples[0].index: found 0, expected 1 as in the key 00001/00000",
        ),
        (
            set_in("samples", 0, "label", to=3),
            "samples[0].label: found 3, expected 1 as in the manifest's class 1",
        ),
        (
            set_in("samples", 0, "wnid", to="n01440764"),
            'samples[0].wnid: found "n01440764", expected null as in the manifest\'s class 1',
        ),
        (
            set_in("skipped", 0, "label", to=0),
            "skipped[0].label: found 0, expected 1 as in the manifest's class 1",
        ),
        (
            set_in("samples", 0, "key", to="00001/00007"),
            "sample 00001/00000: missing, although each shard has as many samples as it should",
        ),
        (
            set_in("samples", 0, "file", to="00001/00009.png"),
            "has sample 00001/00000 in 00001/00009.png, expected 00001/00000.png",
        ),
        (set_in("samples", 0, "source", to="\x1b[2J"), "samples[0].source: found "),
        (set_in("samples", 0, "source", to=...), "samples[0].source: missing"),
        (
            lambda manifest: manifest["skipped"].insert(
                0, dict(manifest["samples"][0], problem="")
            ),
            "sample 00001/00000: more than once",
        ),
    ],
)
def test_the_class_the_key_and_the_file_of_a_sample_agree(
    parts: list[Path], tmp_path: Path, change: Callable[[Manifest], object], message: str
) -> None:
    in_manifest(parts[1], change)
    image = parts[1] / "00001" / "00009.png"
    image.write_bytes((parts[1] / "00001" / "00000.png").read_bytes())
    assert message in refused(parts, tmp_path / "out")


def test_samples_are_in_the_shard_that_they_belong_to(parts: list[Path], tmp_path: Path) -> None:
    """Both shards have as many samples as they should, but one of the other's."""
    manifests = [manifest_of(part) for part in parts]
    manifests[0]["samples"], manifests[1]["samples"] = (
        [],
        manifests[0]["samples"] + manifests[1]["samples"],
    )
    manifests[0]["skipped"], manifests[1]["skipped"] = manifests[1]["skipped"], []
    for part, manifest in zip(parts, manifests, strict=True):
        (part / "manifest.json").write_text(json.dumps(manifest))
    assert "part1: has sample 00001/00001, which belongs to another shard" in refused(
        parts, tmp_path / "out"
    )


def test_samples_in_another_order_are_refused(tmp_path: Path) -> None:
    (part,) = (path.parent for path in shards("index", 1, tmp_path))
    in_manifest(part, lambda manifest: manifest["samples"].reverse())
    assert "samples[1].key: found 00000/00000, expected the samples in order, each once" in refused(
        [part], tmp_path / "out"
    )


def test_a_class_without_samples_is_refused(parts: list[Path], tmp_path: Path) -> None:
    for part in parts:
        in_manifest(
            part,
            lambda manifest: manifest["classes"].append(
                {**manifest["classes"][1], "index": 2, "label": 2}
            ),
        )
    assert "sample 00002/00000: missing, although" in refused(parts, tmp_path / "out")


@pytest.mark.parametrize("recipe", [{"steps": 4}, {"gamma": "a"}, {"more": 1}, {"window": 3}])
def test_a_damaged_recipe_is_refused(parts: list[Path], tmp_path: Path, recipe: Any) -> None:
    for part in parts:
        in_manifest(part, set_in("recipe", to=recipe))
    assert "manifest.json: recipe: " in refused(parts, tmp_path / "out")


def with_soft_labels(part: Path, values: Any) -> None:
    content = npy(values)
    (part / "soft_labels.npy").write_bytes(content)
    in_manifest(part, set_in("companions", 0, "sha256", to=hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_soft_labels_are_finite(parts: list[Path], tmp_path: Path, value: float) -> None:
    values = np.zeros((1, 10), np.float32)
    values[0, 7] = value
    with_soft_labels(parts[1], values)
    assert "soft_labels.npy: holds NaN or infinity, expected finite numbers" in refused(
        parts, tmp_path / "out"
    )


def test_soft_labels_have_a_column_for_every_class(parts: list[Path], tmp_path: Path) -> None:
    for part in parts:
        with_soft_labels(part, np.zeros((1, 1), np.float32))
    assert "soft_labels.npy: has 1 columns, expected one for each class, 0 to 1" in refused(
        parts, tmp_path / "out"
    )


def test_soft_labels_are_those_of_the_samples(parts: list[Path], tmp_path: Path) -> None:
    """As far as the manifest has their hashes, which those of version 0.1.0 have not."""
    row = np.arange(10, dtype=np.float32)[None]
    with_soft_labels(parts[1], row)
    digest = hashlib.sha256(row.tobytes()).hexdigest()
    in_manifest(parts[1], set_in("samples", 0, "soft_label_sha256", to=digest))
    merge_shards(parts, tmp_path / "whole")
    with_soft_labels(parts[1], row[:, ::-1].copy())
    assert "soft_labels.npy: is not the soft label of sample 00001/00000" in refused(
        parts, tmp_path / "out"
    )


def test_shards_of_two_versions_that_make_the_same_images_are_merged(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier_run, "__version__", "0.3.0")
    for part, version in zip(parts, ("0.1.0", "0.2.0"), strict=True):
        in_manifest(part, set_in("tool", "version", to=version))
    monkeypatch.setattr(earlier_run, "SAME_IMAGES_SINCE", "0.2.0")
    assert "are of versions 0.1.0 and 0.2.0, whose images may differ" in refused(
        parts, tmp_path / "out"
    )
    monkeypatch.setattr(earlier_run, "SAME_IMAGES_SINCE", "0.1.0")
    assert merge_shards(parts, tmp_path / "out").images == 2
