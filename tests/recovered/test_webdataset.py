"""Layout `webdataset`: tar files as readers of the format take them, the same bytes anywhere."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written
from diver_trt.recovered.layouts.webdataset import TARS
from tests.conftest import files_of
from tests.distilled.test_dataset import known_images
from tests.recovered import fake_run

CLASSES = [
    {"index": 0, "label": 945, "wnid": "n07720875", "name": "bell pepper, sweet pepper"},
    {"index": 1, "label": 3, "wnid": "n01491361", "name": "tiger shark"},
    {"index": 7, "label": 207, "wnid": "n02099601", "name": "golden retriever"},
]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """210 images of three classes, 150, 50 and 10, with soft labels."""
    indices = [0] * 150 + [1] * 50 + [7] * 10
    seen = Counter[int]()
    files = []
    images = known_images(210, 8)
    for index, image in zip(indices, images, strict=True):
        files.append(f"{index:05d}/{seen[index]:05d}.png")
        seen[index] += 1
        (tmp_path / files[-1]).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / files[-1])
    return Written(
        tmp_path, files, indices, CLASSES, lambda number: np.full(8, number, np.float32), 8
    )


def write(written: Written) -> list[str]:
    return LAYOUTS["webdataset"].write(written, None)


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Return the samples of a tar as `webdataset` groups them: names up to the first dot."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            if key not in found:
                found[key] = {}
            else:
                assert next(reversed(found)) == key, "members of a sample are not adjacent"
            found[key][extension] = content.read()
    return found


def test_a_sample_is_its_image_class_facts_and_soft_label(written: Written) -> None:
    names = write(written)
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar", "soft_labels.npy"]
    found = {
        key: value for name in names[:3] for key, value in samples(written.root / name).items()
    }
    assert list(found)[:5] == [
        "00000_00000",
        "00001_00000",
        "00007_00000",
        "00000_00001",
        "00001_00001",
    ]
    assert len(found) == 210
    for position, (file, index) in enumerate(zip(written.files, written.indices, strict=True)):
        sample = found[file.removesuffix(".png").replace("/", "_")]
        assert list(sample) == ["png", "cls", "json", "soft_label.npy"]
        assert sample["png"] == (written.root / file).read_bytes()
        assert int(sample["cls"]) == index
        assert np.load(io.BytesIO(sample["soft_label.npy"])).tolist() == [position] * 8
    assert json.loads(found["00007_00003"]["json"]) == {
        "key": "00007/00003",
        "label": 7,
        "model_class": 207,
        "wnid": "n02099601",
        "name": "golden retriever",
    }


def test_tars_are_of_one_size_and_of_all_classes(written: Written) -> None:
    names = write(written)[:3]
    assert [len(samples(written.root / name)) for name in names] == [70, 70, 70]
    first = Counter(int(sample["cls"]) for sample in samples(written.root / names[0]).values())
    assert first == {0: 30, 1: 30, 7: 10}


def test_tars_hold_nothing_of_the_machine(written: Written) -> None:
    before = {name: (written.root / name).read_bytes() for name in write(written)}
    for file in written.files:
        (written.root / file).touch()
    assert {name: (written.root / name).read_bytes() for name in write(written)} == before
    with tarfile.open(written.root / "train-000000.tar") as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


def test_tars_of_more_images_are_replaced_by_those_of_fewer(written: Written) -> None:
    write(written)
    (written.root / "train-000009.tar").write_bytes(b"mine")
    fewer = replace(written, files=written.files[:100], indices=written.indices[:100])
    assert write(fewer)[:-1] == ["train-000000.tar"]
    assert sorted(path.name for path in written.root.glob("*.tar")) == [
        "train-000000.tar",
        "train-000009.tar",
    ]
    assert write(replace(written, files=[], indices=[], soft_labels=None)) == []


def test_a_missing_or_changed_tar_is_written_again(tmp_path: Path) -> None:
    fake_run.recover(tmp_path / "out", layout="webdataset")
    tar = tmp_path / "out" / "train-000000.tar"
    whole = files_of(tmp_path / "out")
    for spoil in (tar.unlink, lambda: tar.write_bytes(b"junk")):
        spoil()
        fake_run.recover(tmp_path / "out", layout="webdataset")
        assert files_of(tmp_path / "out") == whole


def test_a_run_is_deleted_with_its_tars_and_no_others(tmp_path: Path) -> None:
    fake_run.recover(tmp_path / "out", layout="webdataset")
    for name in ("train-000001.tar", "train-0000000.tar", "train-000000.tar.bak"):
        (tmp_path / "out" / name).write_bytes(b"mine")
    fake_run.recover(tmp_path / "out", until=0, layout="webdataset", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("train*")) == [
        "train-000000.tar.bak",
        "train-0000000.tar",
        "train-000001.tar",
    ]


def test_names_are_not_listed_for_as_many_images_as_a_manifest_claims() -> None:
    assert TARS.has("train-000000.tar", 2**63)
    assert TARS.has("train-1000000.tar", 2**63)
    assert not TARS.has("train-000003.tar", 300)
    assert not TARS.has("train-0000000.tar", 300)


def test_hugging_faces_datasets_reads_the_tars(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(written)
    files = str(written.root / "train-*.tar")
    rows = list(
        datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    )
    assert len(rows) == 210
    by_key = {row["__key__"]: row for row in rows}
    row = by_key["00001_00007"]
    assert (row["cls"], row["json"]["model_class"], row["soft_label.npy"]) == (1, 3, [157.0] * 8)
    with Image.open(written.root / "00001" / "00007.png") as image:
        np.testing.assert_array_equal(np.asarray(row["png"]), np.asarray(image))
