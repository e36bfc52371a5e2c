"""The memory that decoding takes: one limit over all threads, and what each kind of file is counted with."""

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
"""Buffers of fixed size, and what the allocator keeps."""

GROWN = """
import os, sys
from pathlib import Path
from typing import Any
os.cpu_count = lambda: 8
from diver_trt.distilled.image_file import quiet, read_image
from diver_trt.distilled.source import ImageFiles
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
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
    """Return by how many bytes a process grows at most while it checks or reads images."""
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    command = [sys.executable, "-c", GROWN, what, *map(str, paths), str(folder / "small.png")]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_the_budget_is_never_exceeded_and_all_get_their_part() -> None:
    budget, in_use, most, lock = MemoryBudget(10), 0, 0, threading.Lock()
    reached = threading.Barrier(2, timeout=30)

    def take(size: int, meet: bool) -> None:
        nonlocal in_use, most
        with budget.taking(size):
            with lock:
                in_use += size
                most = max(most, in_use)
            if meet:
                reached.wait()  # both are inside at once
            with lock:
                in_use -= size

    threads = [threading.Thread(target=take, args=(5, True)) for _ in range(2)]
    threads += [threading.Thread(target=take, args=(size, False)) for size in (10, 7, 3, 10, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most == 10


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
    """Each takes 270 MB to look at, on four threads more than a gigabyte."""
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
def test_an_image_takes_no_more_than_it_is_counted_with(
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
        match=r"a\.jpg: 8000 x 6000 pixels take 595 MiB to decode from JPEG, expected at most 512 MiB",
    ):
        read_image(tmp_path / "a.jpg")
