"""The memory for decoding: one limit over all threads, and an estimate for each kind of file."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diver_trt.distilled.image_file import DECODING_BYTES, read_image
from diver_trt.distilled.memory_budget import MemoryBudget
from diver_trt.errors import DatasetError

MIB = 1024**2
SLACK_BYTES = 64 * MIB
"""Buffers of fixed size, and memory that the allocator keeps."""

GROWN = """
import os, sys
from pathlib import Path
from typing import Any
os.cpu_count = lambda: 8
from diver_trt.distilled.image_file import quiet, read_image
from diver_trt.distilled.source import ImageFiles
def peak():
    status = open("/proc/self/status")
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
what, *paths = sys.argv[1:]
paths = [Path(path) for path in paths]
read_image(paths.pop())  # a small one, so that Pillow is loaded
before = peak()
if what == "check":
    problems = [found.problem for found in ImageFiles(paths[0].parent, paths).check()]
    assert problems == [None] * len(paths), problems
else:
    read_image(paths[0])
print(peak() - before)
"""


def grown(what: str, folder: Path, *paths: Path) -> int:
    """Return the peak growth in bytes of a process that checks or reads images."""
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    command = [sys.executable, "-c", GROWN, what, *map(str, paths), str(folder / "small.png")]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_a_thread_that_would_exceed_the_budget_waits_until_there_is_room() -> None:
    budget, entered, leave = MemoryBudget(10), threading.Event(), threading.Event()

    def take(size: int) -> None:
        with budget.taking(size):
            entered.set()
            leave.wait(30)

    with budget.taking(4):
        whole = threading.Thread(target=take, args=(7,))
        whole.start()
        assert not entered.wait(0.2)
        with budget.taking(6):  # a part that fits does not wait
            assert not entered.is_set()
    assert entered.wait(30)
    leave.set()
    whole.join(30)
    with budget.taking(10):
        pass


def test_a_part_beyond_the_budget_is_refused_and_a_failed_block_gives_its_part_back() -> None:
    budget = MemoryBudget(10)
    with (
        pytest.raises(ValueError, match="11 bytes are more than the budget of 10"),
        budget.taking(11),
    ):
        pass
    with pytest.raises(KeyError), budget.taking(10):
        raise KeyError
    with budget.taking(10):
        pass


def test_many_large_images_are_checked_within_the_stated_memory(tmp_path: Path) -> None:
    """Checking one takes 270 MB, four threads together more than a gigabyte."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    Image.new("LA", (8192, 8192), (90, 255)).save(paths[0], compress_level=1)
    for path in paths[1:]:
        path.hardlink_to(paths[0])
    assert paths[0].stat().st_size < MIB
    assert grown("check", tmp_path, *paths) < DECODING_BYTES + SLACK_BYTES


@pytest.mark.parametrize(
    ("name", "options", "bytes_per_pixel"),
    [
        ("a.png", {"compress_level": 1}, 8),
        ("a.bmp", {}, 8),
        ("a.jpg", {"progressive": True, "subsampling": 0}, 13),
        ("a.webp", {"lossless": True, "method": 0, "quality": 0}, 18),
    ],
)
def test_an_image_takes_no_more_memory_than_estimated(
    tmp_path: Path, name: str, options: dict[str, Any], bytes_per_pixel: int
) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(64, 0).repeat(64, 1)).save(tmp_path / name, **options)
    assert grown("read", tmp_path, tmp_path / name) < bytes_per_pixel * 4096**2 + SLACK_BYTES


def test_an_image_that_would_take_more_than_the_budget_is_refused_by_its_header(
    tmp_path: Path,
) -> None:
    Image.new("L", (8000, 6000)).save(tmp_path / "a.jpg")
    with pytest.raises(
        DatasetError,
        match=r"a\.jpg: 8000 x 6000 pixels take 595 MiB to decode from JPEG, expected at most 512 "
        "MiB",
    ):
        read_image(tmp_path / "a.jpg")
