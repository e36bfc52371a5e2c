"""Whatever file a full disk stops, the error is one line and the same command resumes."""

from __future__ import annotations

import gc
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.crash import different
from diver_trt.bundle import Bundle
from diver_trt.errors import OutputError
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Written
from tests.cli.command import run
from tests.distilled import methods
from tests.distilled.test_dataset import known_images
from tests.recovered.test_layouts import QUICK, recover

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of a given number of 4 kB pages, grown on demand; skips if it may not mount."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def of(pages: int) -> Path:
        option = "remount," if folder.is_mount() else ""
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"{option}size={pages * 4096}",
            "none",
            str(folder),
        ]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a file system")
        return folder

    yield of
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_a_disk_is_full_the_error_is_one_line_and_the_run_is_resumed(
    tmp_path: Path, thousand: Bundle, disk: Callable[[int], Path], layout: str
) -> None:
    methods.datm(tmp_path, known_images(6, 16), [0, 0, 1, 1, 2, 2])
    source, output = tmp_path / "images_best.pt", disk(8) / "out"
    recover(source, tmp_path / "expected", thousand, classes="imagewoof", layout=layout, size=64)
    options = ("--classes", "imagewoof", "--layout", layout, "--size", "64")
    arguments = ("recover", source, output, "--bundle", thousand.path, *QUICK, *options)
    messages = []
    step = 12 if layout in ("index", "wnid", "huggingface") else 32  # tensors take more of a disk
    for pages in range(8, 400, step):
        result = run(*arguments)
        if result.exit_code == 0:
            break
        assert (result.exit_code, result.exception.__class__) == (1, SystemExit), result.output
        messages.append(result.stderr.splitlines()[-1])
        assert messages[-1].endswith("cannot be written (No space left on device)")
        assert not list(disk(pages).rglob("*.partial"))
        # Its traceback refers to mapped files, and deleted files take up the disk as long as they
        # are mapped. The command's process ends instead.
        del result
        gc.collect()
        disk(pages + step)
    assert different(tmp_path / "expected", disk(400) / "out") == []
    printed = " ".join(messages)
    for name in {
        "pt": ["images.pt", ".images.stacked"],
        "npz": ["dataset.npz"],
        "idc": ["data.pt"],
    }.get(layout, ["contact_sheet.png"]):
        assert f"{name}: cannot" in printed


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Ten images of 32 pixels."""
    files = [f"{number:05d}.png" for number in range(10)]
    for name, image in zip(files, known_images(10, 32), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    return Written(
        tmp_path, files, list(range(10)), [], lambda number: np.full(20_000, number, np.float32), 32
    )


@pytest.mark.parametrize(
    ("layout", "limit", "name"),
    [
        *((layout, 100_000, ".images.stacked") for layout in ("npz", "pt", "idc")),
        *(
            ("npz", 125_000, "dataset.npz"),
            ("pt", 123_100, "images.pt"),
            ("idc", 123_100, "data.pt"),
            ("pt", 200_000, "soft_labels.pt"),
        ),
        ("index", 700_000, "soft_labels.npy"),
    ],
)
def test_a_file_that_may_not_grow_is_named_and_not_left(
    written: Written, layout: str, limit: int, name: str
) -> None:
    normalisation = LAYOUTS[layout].normalisation_for(None, 32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError) as error:
            LAYOUTS[layout].write(written, normalisation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == f"{written.root / name}: cannot be written (File too large)"
    assert not list(written.root.glob(".*"))


@pytest.mark.parametrize("layout", ["npz", "pt", "idc"])
def test_tensors_of_no_images_are_empty(written: Written, layout: str) -> None:
    none = replace(written, files=[], indices=[])
    for name in LAYOUTS[layout].write(none, LAYOUTS[layout].normalisation_for(None, 32)):
        assert (written.root / name).stat().st_size > 0


def test_an_error_of_torch_becomes_one_line(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(value: object, file: object) -> None:
        raise RuntimeError("[enforce fail]\nof its own")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(
        OutputError, match=r"images\.pt: cannot be written \(\[enforce fail\]\\nof its own\)$"
    ):
        LAYOUTS["pt"].write(written, LAYOUTS["pt"].normalisation_for(None, 32))
