"""Hostile files end in one line of error; nothing runs, nothing is written, memory is bounded."""

from __future__ import annotations

import codecs
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.distilled import methods
from tests.distilled.array_files import Touch, rewritten
from tests.distilled.test_dataset import CLASSES, known_images
from tests.distilled.test_png_stream import png
from tests.edited_json import set_in
from tests.fuzzing import recovered
from tests.recovered.commands import in_manifest

EXTRA_BYTES = 150_000_000
PEAK = (
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).strip(), "
    "file=sys.stderr)"
)
AS_A_USER = f"""
import sys
from diver_trt.cli import main
try:
    main()
finally:
    {PEAK}
"""


@cache
def torch_alone() -> int:
    """Peak memory in bytes of a process that only imports torch."""
    # Measured, since torch's builds differ by hundreds of megabytes.
    result = subprocess.run(
        [sys.executable, "-c", f"import sys, torch; {PEAK}"], capture_output=True, check=True
    )
    return kilobytes(result.stderr.decode()) * 1024


def kilobytes(line: str) -> int:
    return int(line.split()[1])


def refused(source: Path, output: Path) -> str:
    """Run `recover` and return its one line of error; check that it takes little memory."""
    result = subprocess.run(
        [sys.executable, "-c", AS_A_USER, "recover", str(source), str(output)],
        capture_output=True,
        check=False,
    )
    *printed, peak = result.stderr.decode().splitlines()
    lines = [line for line in printed if "error:" in line]
    assert (result.returncode, len(lines)) == (1, 1), printed
    assert all(line.isprintable() for line in printed), printed
    assert "Traceback" not in "".join(printed)
    assert "weights_only" not in "".join(printed)
    assert not output.exists()
    assert not list(source.parent.rglob("executed"))
    assert kilobytes(peak) * 1024 < torch_alone() + EXTRA_BYTES, peak
    return lines[0]


def nan_where_few_look(folder: Path) -> None:
    """In one pixel of image 7 of 6,000: only a check of every image finds it."""
    images = methods.normalised(known_images(20, 32), "cifar10").repeat(300, 1, 1, 1)
    images[7, 1, 30, 30] = float("nan")
    methods.mtt(folder, images, [i // 600 for i in range(6000)])


def infinite(folder: Path) -> None:
    images = methods.normalised(known_images(20, 32), "cifar10")
    images[3, 0, 0, 0] = float("-inf")
    methods.mtt(folder, images, CLASSES)


def absurd(folder: Path) -> None:
    """Finite in the file, but too large for float32."""
    images = np.full((20, 3, 32, 32), 0.5)
    images[3, 0, 0, 0] = 1e300
    np.savez(folder / "set.npz", images=images, labels=np.array(CLASSES), format=np.array("idc"))


def code_in_the_labels(folder: Path) -> None:
    methods.mtt(folder, known_images(20, 32), CLASSES, "cifar10")
    torch.save(Touch(folder / "executed"), folder / "labels_best.pt")


def objects(folder: Path) -> None:
    np.savez(
        folder / "set.npz",
        images=np.zeros((2, 3, 8, 8), np.float32),
        labels=np.array([Touch(folder / "executed")] * 2, object),
    )


def terabyte(folder: Path) -> None:
    torch.save(
        [torch.zeros(1).expand(2**14, 3, 2**13, 2**13), torch.zeros(2**14, dtype=torch.int64)],
        folder / "data.pt",
    )


def many_compressed(folder: Path) -> None:
    """Four arrays of 300 MB in 1.2 MB, for a reader that decompresses unused ones."""
    member = npy_header("|u1", "(300_000_000,)}") + bytes(300_000_000)
    with zipfile.ZipFile(folder / "set.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("images", "labels", "a", "b"):
            archive.writestr(f"{name}.npy", member)
    assert (folder / "set.npz").stat().st_size < 6_000_000


def sixty_expanded(folder: Path) -> None:
    """Sixty tensors that take 67 MB each once their one value is repeated."""
    torch.save([torch.zeros(1).expand(1, 3, 2047, 2730) for _ in range(60)], folder / "data.pt")
    assert (folder / "data.pt").stat().st_size < 20_000


class Zeros:
    """Pickles as a call that torch permits, and that takes a gigabyte."""

    def __reduce__(self) -> Any:
        return bytearray, (1_000_000_000,)


def zeros_by_call(folder: Path) -> None:
    torch.save([torch.zeros(20, 3, 32, 32), torch.tensor(CLASSES), Zeros()], folder / "data.pt")


class Encoded:
    """Pickles as a call that torch permits for numpy's numbers, and that quadruples its bytes."""

    def __init__(self, arguments: tuple[str, str]) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return codecs.encode, self.arguments


def encoded_again_and_again(folder: Path) -> None:
    arguments = ("a" * 1_000_000, "utf-32")
    torch.save(
        [
            torch.zeros(20, 3, 32, 32),
            torch.tensor(CLASSES),
            *(Encoded(arguments) for _ in range(300)),
        ],
        folder / "data.pt",
    )
    assert (folder / "data.pt").stat().st_size < 2_000_000


def link(name: str, target: str) -> Callable[[Path], None]:
    """A symlink in place of an image or of a class folder."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def huge_png(folder: Path) -> None:
    """20,000 x 20,000 black-and-white pixels: 50 kB on disk, 400 MB as grey, 1.2 GB as RGB."""
    (folder / "3").mkdir()
    file = png(zlib.compress(b"\0" * (20_000 * 2_501)), size=(20_000, 20_000), depth=1)
    (folder / "3" / "0.png").write_bytes(file)
    assert len(file) < 100_000


def picture(name: str) -> Callable[[Path], None]:
    """One picture in a class folder."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(folder / name)

    return make


def newline_in_the_name_of_tensors(folder: Path) -> None:
    np.savez(
        folder / "a\nerror: all is well.npz",
        images=np.zeros((2, 3, 8, 8), np.float32),
        labels=np.arange(2),
    )


def newline_in_the_name_of_a_part(folder: Path) -> None:
    (folder / "S\n1").mkdir()
    methods.mtt(folder / "S\n1", known_images(20, 32), CLASSES)


def member(name: str, data: bytes) -> Callable[[Path], None]:
    """An `.npz` file with one member."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "set.npz", "w") as archive:
            archive.writestr(name, data)

    return make


def npy_header(dtype: str, end: str) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {end}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def escape_in_a_pickle(folder: Path) -> None:
    value = [torch.zeros(20, 3, 32, 32), Touch(folder / "executed")]
    rewritten(value, folder / "data.pt", lambda data: data.replace(b"mkdir", b"m\x1b[1m"))


def escape_in_a_safetensors_header(folder: Path) -> None:
    header = b'{"images": {"dtype": "\\u001b[2J", "shape": [1], "data_offsets": [0, 4]}}'
    (folder / "set.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def long_name_in_a_manifest(folder: Path) -> None:
    recovered(folder)
    in_manifest(folder, set_in("samples", 0, "file", to="x" * 5000))


def damaged_late(folder: Path) -> None:
    """The last of three hundred files is truncated, which is found before any work."""
    methods.SRE2L(
        folder, np.repeat(known_images(10, 32), 30, axis=0), [i // 30 for i in range(300)]
    )
    last = sorted(folder.rglob("*.jpg"))[-1]
    last.write_bytes(last.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nan_where_few_look, "images_best.pt: image 7 holds NaN or infinite values"),
        (infinite, "holds NaN or infinite values"),
        (absurd, "holds values up to 1e+300, which cannot be pixels"),
        (code_in_the_labels, "holds more than tensors (posix.mkdir)"),
        (objects, "labels.npy holds Python objects, which are never loaded"),
        (terabyte, "is larger than the file"),
        (
            many_compressed,
            "images are uint8[300000000]; expected float16, float32, float64 or uint8",
        ),
        (sixty_expanded, "holds a list of 60; expected"),
        (zeros_by_call, "holds more than tensors (__builtin__.bytearray)"),
        (encoded_again_and_again, "holds a list of 302; expected"),
        (link("3/0.png", "/etc/passwd"), "3/0.png: is a symlink out of the dataset"),
        (link("3", "/usr"), "3: is a symlink out of the dataset"),
        (huge_png, "expected at most 67,108,864 in all"),
        (
            picture("3/a\nerror: all is well.png"),
            r"holds a name that cannot be printed, 'a\nerror: all is well.png'; rename it",
        ),
        (
            picture("3/" + os.fsdecode(b"\xff\xfe.png")),
            r"holds a name that cannot be printed, '\udcff\udcfe.png'; rename it",
        ),
        (picture("3\n4/0.png"), r"holds a name that cannot be printed, '3\n4'; rename it"),
        (link("3/0.png", "0.png"), "3/0.png: is a symlink out of the dataset, or a broken one"),
        (link("3", "3"), "3: is a symlink out of the dataset, or a broken one"),
        (
            newline_in_the_name_of_tensors,
            r"holds a name that cannot be printed, 'a\nerror: all is well.npz'; rename it",
        ),
        (newline_in_the_name_of_a_part, r"holds a name that cannot be printed, 'S\n1'; rename it"),
        (
            member("\x1b[2J.npy", npy_header("|u1", "(1,)}") + b"0"),
            r"holds a dictionary of \x1b[2J; expected",
        ),
        (member("\x1b[2J.npy", npy_header("|O", "(1,)}")), r"\x1b[2J.npy holds Python objects"),
        (member("images.npy", npy_header("<f4", "(20, 3")), "not an .npz file, or a damaged one"),
        (escape_in_a_pickle, r"holds more than tensors (posix.m\x1b[1m)"),
        (
            escape_in_a_safetensors_header,
            r"not a safetensors file, or a damaged one (Error while deserializing header: ",
        ),
        (long_name_in_a_manifest, "expected a path inside the folder"),
        (damaged_late, "class009_id029.jpg: not an image, or a damaged one"),
    ],
)
def test_hostile_files_end_in_one_line(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    make(source)
    assert message in refused(source, tmp_path / "out")
