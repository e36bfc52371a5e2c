"""Time to list, check and plan a dataset of ImageNet-1K's size, and the memory of that and of a
recovery.

Each figure is of a whole `diver-trt` process, on files made here: 1,000 classes of 50 JPEG files of
224 pixels (SRe2L's), as many PNG files of 256 pixels (Minimax's), and one tensor of 50,000 images
of 64 pixels (TESLA's). The first part ends when the first batch would begin.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES, PER_CLASS, DISTINCT = 1000, 50, 200
QUICK = ("--steps", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="folder for about 9 GB of files, which are deleted afterwards",
    )
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    classes = folder / "classes.txt"
    # The digits model has ten.
    classes.write_text("".join(f"{index % 10}\n" for index in range(CLASSES)))
    for name, make in (("jpeg", make_jpeg), ("png", make_png), ("tensors", make_tensors)):
        source = make(folder / name)
        seconds, busy, peak = until_first_batch(source, folder / "out", "--classes", str(classes))
        print(
            f"{name}: listed, checked and planned in {seconds:.1f} s ({busy:.1f} s of CPU time), "
            f"peak {peak / 1e6:,.0f} MB",
            flush=True,
        )
        shutil.rmtree(folder / name)
    for count in (500, 5000):
        source = make_few(folder / "few", count)
        peak = whole_recovery(source, folder / "out")
        print(f"recovered {count} images: peak {peak / 1e6:,.0f} MB", flush=True)
        shutil.rmtree(folder / "few")


def picture(side: int, seed: int) -> Image.Image:
    """An image with large shapes and grain, whose file is about as large as a distilled image's."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (28, 28, 3)).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        (np.asarray(coarse, np.float32) + generator.normal(0, 12, (side, side, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def make_tree(folder: Path, side: int, suffix: str, name: str) -> Path:
    files = []
    for seed in range(DISTINCT):
        buffer = io.BytesIO()
        picture(side, seed).save(buffer, {"jpg": "JPEG", "png": "PNG"}[suffix])
        files.append(buffer.getvalue())
    for index in range(CLASSES):
        (folder / name.format(index)).mkdir(parents=True)
        for number in range(PER_CLASS):
            (folder / name.format(index) / f"class{index:03d}_id{number:03d}.{suffix}").write_bytes(
                files[(index + number) % DISTINCT]
            )
    return folder


def make_jpeg(folder: Path) -> Path:
    return make_tree(folder, 224, "jpg", "new{:03d}")


def make_png(folder: Path) -> Path:
    return make_tree(folder, 256, "png", "{:05d}")


def make_tensors(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pictures = np.stack([np.asarray(picture(64, seed)) for seed in range(DISTINCT)])
    values = torch.from_numpy(
        ((pictures / 255 - 0.45) / 0.225).astype(np.float32).transpose(0, 3, 1, 2).copy()
    )
    torch.save(values[torch.arange(CLASSES * PER_CLASS) % DISTINCT], folder / "images_best.pt")
    torch.save(torch.arange(CLASSES * PER_CLASS) // PER_CLASS, folder / "labels_best.pt")
    return folder


def make_few(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(32, number % DISTINCT).save(path)
    return folder


def until_first_batch(source: Path, output: Path, *options: str) -> tuple[float, float, int]:
    """Return the time until `recover` begins, by the clock and on the CPU in seconds, and its peak
    memory in bytes.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        command(source, output, *options),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "recovering on" in line:
                break
        else:
            sys.exit("recover ended by itself")
        seconds, peak = time.perf_counter() - started, peak_bytes(process.pid)
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
    shutil.rmtree(output, ignore_errors=True)
    return seconds, usage.ru_utime + usage.ru_stime, peak


def whole_recovery(source: Path, output: Path) -> int:
    """Return the peak memory of a recovery in bytes."""
    peak = 0
    with subprocess.Popen(
        command(source, output, *QUICK), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.05)
    shutil.rmtree(output)
    return peak


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a running process in bytes, or 0 after its end."""
    # Not ru_maxrss: a forked process starts with its parent's.
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def command(source: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "diver_trt", "recover", str(source), str(output), *options]


if __name__ == "__main__":
    main()
