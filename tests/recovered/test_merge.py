"""Shards come from other machines: a fault in one is an error of one line, before any write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diver_trt.errors import DatasetError
from diver_trt.recovered.merge import merge_shards
from diver_trt.recovered.written_files import read_soft_labels
from tests.edited_json import set_in
from tests.recovered.commands import in_manifest
from tests.recovered.damaged_shards import Manifest, header, nested, npy, npz, refused


def test_whole_shards_are_merged(parts: list[Path], tmp_path: Path) -> None:
    merged = merge_shards(parts, tmp_path / "out")
    assert (merged.images, [entry["key"] for entry in merged.skipped]) == (2, ["00001/00001"])
    with np.load(tmp_path / "out" / "dataset.npz") as stored:
        assert {name: stored[name].shape for name in ("images", "soft_labels")} == {
            "images": (2, 3, 8, 8),
            "soft_labels": (2, 10),
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("shard", to=...), "is a whole recovered dataset, not a shard"),
        (
            set_in("shard", "number", to=3),
            "shard.number: found 3, expected a whole number from 1 to 2",
        ),
        (set_in("shard", "number", to=...), "shard.number: missing"),
        (
            set_in("layout", "normalisation", to=...),
            "layout.normalisation: found null, which is not of layout npz",
        ),
        (
            set_in("layout", "normalisation", to=None),
            "layout.normalisation: found null, which is not of layout npz",
        ),
        (set_in("layout", "normalisation", to="nan:1"), "nan:1: expected"),
        (
            set_in("layout", "name", to="index"),
            'layout.normalisation: found "none", which is not of layout index',
        ),
        (
            set_in("layout", "name", to="zip"),
            'layout.name: found "zip", expected one of index, wnid',
        ),
        (
            set_in("layout", "size", to=10**9),
            "layout.size: found 1000000000, expected a whole number from 1 to 4,096",
        ),
        (
            set_in("layout", "size", to=16),
            "is not a PNG image of 16 x 16 pixels, as the manifest has it",
        ),
        (
            set_in("classes", 0, "name", to=...),
            (
                r"classes[0].name: missing, "
                r"expected a text on one line, of at most 8,192 characters or null"
            ),
        ),
        (
            set_in("classes", 0, "name", to=3),
            r"classes[0].name: found 3, expected a text on one line",
        ),
        (
            set_in("classes", 0, "wnid", to=...),
            (
                r"classes[0].wnid: missing, "
                r"expected a text on one line, of at most 8,192 characters or null"
            ),
        ),
        (
            lambda manifest: manifest["classes"].append({"index": 2**40, "label": 0}),
            r"classes[2].index: found 1099511627776, expected a whole number from 0 to 99,999",
        ),
        (
            set_in("samples", 0, "file", to="journal.jsonl"),
            r'samples[0].file: found "journal.jsonl", expected an image of layout npz',
        ),
        (
            set_in("samples", 0, "file", to="."),
            r'samples[0].file: found ".", expected an image of layout npz',
        ),
        (
            set_in("samples", 0, "key", to="first"),
            r'samples[0].key: found "first", expected a class and a number',
        ),
        (set_in("samples", 0, "key", to="00000/" + "9" * 5000), 'samples[0].key: found "00000/999'),
        (
            set_in("skipped", to=[{"key": "a", "source": "a", "problem": "a", "index": 0}]),
            'skipped[0].key: found "a", expected',
        ),
        (
            set_in("samples", 0, "index", to=7),
            "samples[0].index: found 7, expected one of the manifest's classes",
        ),
        (set_in("source", "images", to=10**9), "has 1 samples, expected 500000000"),
        (
            set_in("recipe", to={"deep": nested(9)}),
            "recipe: unknown settings deep; expected some of",
        ),
        (
            set_in("recipe", to={"a\x1b[2J": 1}),
            r'recipe: found the key "a\u001b[2J", expected a text on one line',
        ),
        (set_in("recipe", to={"a" * 5000: 1}), "recipe: unknown settings aaa"),
    ],
)
def test_every_field_of_a_manifest_is_checked(
    parts: list[Path], tmp_path: Path, change: Callable[[Manifest], object], message: str
) -> None:
    """The same in both, so that they are still of one recovery."""
    for part in parts:
        in_manifest(part, change)
    assert message in refused(parts, tmp_path / "out")


def test_shards_without_end_are_named_in_short(parts: list[Path], tmp_path: Path) -> None:
    for part in parts:
        in_manifest(part, set_in("shard", "of", to=2**62))
    message = refused(parts, tmp_path / "out")
    of = 2**62
    assert (
        message == f"shard 3/{of}, 4/{of}, 5/{of}, 6/{of}, 7/{of} and {of - 7} more: missing; "
        f"expected all {of}"
    )


def test_two_samples_may_not_share_an_image(parts: list[Path], tmp_path: Path) -> None:
    (parts[1] / "00000").mkdir(exist_ok=True)
    (parts[1] / "00000" / "00000.png").write_bytes((parts[1] / "00001" / "00000.png").read_bytes())
    in_manifest(parts[1], set_in("samples", 0, "file", to="00000/00000.png"))
    assert "00000/00000.png: is the image of two samples" in refused(parts, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.float32(3)), "holds float32[] in 4 bytes, expected float32[1, classes]"),
        (
            npy(np.zeros((1, 7), np.float32)),
            "some shards have soft labels and some have none, or for other classes",
        ),
        (
            npy(np.zeros((2, 10), np.float32)),
            "holds float32[2, 10] in 80 bytes, expected float32[1, classes] and no more",
        ),
        (npy(np.zeros((1, 10), np.float64)), "holds float64[1, 10] in 80 bytes"),
        (npy(np.zeros((1, 10), np.float32))[:-1], "holds float32[1, 10] in 39 bytes"),
        (npy(np.zeros((1, 10), np.float32)) + b"0", "holds float32[1, 10] in 41 bytes"),
        (npy(np.zeros((1, 0), np.float32)), "holds float32[1, 0] in 0 bytes"),
        (npy(np.array(["a", "b"])), "holds <U1[2] in 8 bytes"),
        (npy(np.zeros((1, 10, 2), np.float32)), "holds float32[1, 10, 2] in 80 bytes"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 10)}")
            + b"0" * 40,
            "float32[1000000000000, 10] in 40",
        ),
        (
            header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 10)}") + b"0" * 80,
            "holds object[1, 10] in 80 bytes",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 10)}") + b"0" * 40,
            "holds float32[1, 10] in 40 bytes",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 10"),
            "does not hold an array of soft labels",
        ),
        (npz(), "does not hold an array of soft labels"),
        (b"", "does not hold an array of soft labels"),
        (b"junk", "does not hold an array of soft labels"),
    ],
)
def test_soft_labels_are_those_that_the_manifest_lists(
    parts: list[Path], tmp_path: Path, content: bytes, message: str
) -> None:
    """Whoever changes the file can write its hash too."""
    (parts[1] / "soft_labels.npy").write_bytes(content)
    assert "soft_labels.npy: is not the file that was written" in refused(parts, tmp_path / "out")
    in_manifest(parts[1], set_in("companions", 0, "sha256", to=hashlib.sha256(content).hexdigest()))
    assert message in refused(parts, tmp_path / "out")


def test_a_shard_without_soft_labels_is_named(parts: list[Path], tmp_path: Path) -> None:
    in_manifest(parts[1], set_in("companions", to=[]))
    assert "some shards have soft labels and some have none" in refused(parts, tmp_path / "out")


def test_soft_labels_of_no_file_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"soft_labels\.npy: cannot be read \(No such file or directory\)"
    ):
        read_soft_labels(tmp_path / "soft_labels.npy", 1)


def test_fields_that_no_recovery_writes_are_not_carried_over(
    parts: list[Path], tmp_path: Path
) -> None:
    merge_shards(parts, tmp_path / "whole")
    for part in parts:
        in_manifest(part, set_in("a\x1b[2J", to=nested(20)))
        in_manifest(part, set_in("source", "a" * 5000, to=1))
        in_manifest(part, set_in("classes", 0, "more", to="\n"))
    merge_shards(parts, tmp_path / "out")
    written = [(tmp_path / name / "manifest.json").read_bytes() for name in ("whole", "out")]
    assert written[0] == written[1]
