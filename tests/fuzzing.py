"""Damaged files for every reader, for `test_fuzz.py` and `benchmarks/fuzz.py`.

A target makes valid files, damages one of them, and reads them. Under any damage, the reader must
accept the files or raise a `DiverError` whose message is one printable line. It must take less than
`LIMIT_S` of processor time (so that a busy machine causes no defects) and at most `ASLEEP_S` in
all. It must start no process, and write only in folders of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image

from diver_trt.bench.cost import count
from diver_trt.bench.graph import read_graph
from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.distilled.class_map import Classes, load_class_map
from diver_trt.distilled.conversion.reading import read_to_convert
from diver_trt.distilled.conversion.writing import write_converted
from diver_trt.distilled.dataset import read_dataset
from diver_trt.distilled.image_file import check_image, quiet, read_image
from diver_trt.distilled.options import ReadOptions
from diver_trt.distilled.source import StoredImages
from diver_trt.errors import DiverError
from diver_trt.files import file_sha256
from diver_trt.graph_file import require_declared, require_listed_weights
from diver_trt.hub.card import Compared, model_card
from diver_trt.manifest import JOURNAL, MANIFEST, inspect_recovered
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import Recipe
from diver_trt.recovered.convert import convert_recovered
from diver_trt.recovered.journal import Journal
from diver_trt.recovered.merge import merge_shards
from diver_trt.recovered.written_files import read_soft_labels
from diver_trt.runtime.backends.tensorrt.memory import choose_memory_plan
from diver_trt.runtime.backends.tensorrt.plans import Plan, read_plans
from diver_trt.tensors import TensorSpec
from tests.distilled import methods
from tests.edited_json import json_file
from tests.hub.comparison import write_comparison
from tests.recovered import fake_run
from tests.stand_in import MACHINE, write_stand_in_plan

LIMIT_S = 5.0
ASLEEP_S = 60.0
MESSAGE_CHARACTERS = 1000

Damage = Callable[[bytes, Random], bytes]


class DefectError(AssertionError):
    """An input that the package does not handle as it promises."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads files.

    Attributes:
        name: Of the target.
        make: Writes whole files into an empty folder, and returns those that are to be damaged.
        damage: Returns damaged bytes of one of them.
        reads: What reads the folder; each is tried with every input.
        writes: Whether they may write: into the folder, and into `output` beside it.
    """

    name: str
    make: Callable[[Path], list[Path]]
    damage: Damage
    reads: tuple[Callable[[Path], object], ...]
    writes: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input: whether every reader accepted it, and how long the slowest took."""

    accepted: bool
    seconds: float


class Trial:
    """A target with its whole files in a folder, ready to be damaged one input after the other."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target, self._folder, self._output = target, folder / "files", folder / "output"
        self._folder.mkdir(parents=True)
        self._files = target.make(self._folder)
        kept = (
            [path for path in self._folder.rglob("*") if path.is_file()]
            if target.writes
            else self._files
        )
        self._whole = {path: path.read_bytes() for path in kept}
        self._tree = _listed(folder)
        for read in target.reads:
            # What is whole is accepted, and everything is imported before anything is watched.
            read(self._folder)
            self._restore()

    def attempt(self, random: Random) -> Outcome:
        """Damage one file, and read.

        Raises:
            DefectError: If the files are neither accepted nor refused in one line.
        """
        path = random.choice(self._files)
        path.write_bytes(self._target.damage(self._whole[path], random))
        writable = (self._folder, self._output) if self._target.writes else ()
        try:
            outcomes = [_judged(read, self._folder, writable) for read in self._target.reads]
        finally:
            self._restore()
        if (tree := _listed(self._folder.parent)) != self._tree:
            raise DefectError(f"files came or went: {sorted(tree ^ self._tree)}")
        return Outcome(
            all(outcome.accepted for outcome in outcomes),
            max(outcome.seconds for outcome in outcomes),
        )

    def _restore(self) -> None:
        if self._target.writes:
            shutil.rmtree(self._folder)
            shutil.rmtree(self._output, ignore_errors=True)
        for path, data in self._whole.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _judged(read: Callable[[Path], object], folder: Path, writable: tuple[Path, ...]) -> Outcome:
    started, accepted = time.process_time(), True
    with _watched(writable) as seen:
        try:
            read(folder)
        except DiverError as error:
            accepted, message = False, str(error)
            if not (message.isprintable() and 0 < len(message) <= MESSAGE_CHARACTERS):
                raise DefectError(
                    "a message that is not one printable line of at most "
                    f"{MESSAGE_CHARACTERS} characters: {message[:500]!r}"
                ) from error
        except Exception as error:
            raise DefectError(f"{type(error).__name__} escaped: {str(error)[:500]!r}") from error
        except _Hang as hang:
            raise DefectError(f"still reading after {hang}") from hang
    seconds = time.process_time() - started
    if seen:
        raise DefectError(f"did more than read: {seen[:5]}")
    if seconds > LIMIT_S:
        raise DefectError(f"took {seconds:.1f} s")
    return Outcome(accepted, seconds)


class _Hang(BaseException):
    """Not an Exception, or readers would take it for a damaged file."""


_seen: list[str] | None = None
_allowed: tuple[Path, ...] = ()
_DEEDS = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "tempfile.", "pty.", "webbrowser.")
_HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk", "os.getxattr")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and bool(arguments[2] & _WRITES) and arguments[0] != os.devnull
    if (writes or (event.startswith(_DEEDS) and event not in _HARMLESS)) and not _is_allowed(
        event, arguments
    ):
        _seen.append(f"{event}{arguments[:2]!r}"[:200])


def _is_allowed(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether a change of files stays inside the folders where it is allowed."""
    if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile"):
        return False
    paths = (
        arguments[:2]
        if event == "os.rename"
        else arguments[1:2]
        if event == "shutil.copyfile"
        else arguments[:1]
    )
    return all(
        any(Path(path).resolve().is_relative_to(folder) for folder in _allowed) for path in paths
    )


sys.addaudithook(_notice)


@contextmanager
def _watched(writable: tuple[Path, ...]) -> Iterator[list[str]]:
    """Record all effects of a block besides reading, and interrupt it if it takes too long."""
    global _seen, _allowed

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Hang(f"{LIMIT_S:g} s of work" if number == signal.SIGPROF else f"{ASLEEP_S:g} s")

    _seen, _allowed = [], tuple(folder.resolve() for folder in writable)
    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, LIMIT_S),
        (signal.SIGALRM, signal.ITIMER_REAL, ASLEEP_S),
    )
    for number, _, _ in timers:
        signal.signal(number, interrupt)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield _seen
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        # Ignored from here on, not as before: SIGPROF's own action is to end the process, and a
        # signal may still be on its way to another thread.
        for number, _, _ in timers:
            signal.signal(number, signal.SIG_IGN)
        _seen, _allowed, sys.dont_write_bytecode = None, (), bytecode


def _listed(folder: Path) -> set[str]:
    return {
        os.path.join(root, name)  # noqa: PTH118
        for root, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def in_bytes(data: bytes, random: Random) -> bytes:
    """Change, cut, drop, double or insert bytes.

    Three times out of four this happens near the start or the end, where formats have their headers
    and directories.
    """
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        size = len(changed)
        near = min(size, 300)
        first, second, third = (random.randrange(near + 1) for _ in range(3))
        at = random.choice([first, second, size - third, random.randrange(size + 1)])
        length = random.choice([1, 1, 2, 4, 8, 64])
        kind = random.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            changed[at : at + length] = (
                random.choice([b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\x1b"]) * length
            )
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            changed[at : at + 1] = (
                bytes([changed[at] ^ 1 << random.randrange(8)]) if at < size else b""
            )
        else:
            del changed[at:]
    return bytes(changed)


NESTED = "nested"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10, 2**31, 2**63, 10**30, 10**400, -(10**400),
    0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan"),
    "", "a", "n", "..", "../secret", "/etc/passwd", "a\nb", "\x1b[2J", "\x00", "\ud800", "\u2028",
    "é" * 300, "x" * 5000, "1" * 5000,
    "0.5\n:0.5", "1e308:1e308", "-1e39:1e-44", "nan:1", "0.5:0.5", "99", "²", "mtt", "kip", NESTED,
    [], {}, [[]], [None], {"": {}}, [1] * 100, ["n", 3, 32, 32], "0" * 64,
)  # fmt: skip
DOCUMENTS = (
    b"", b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"{}", b"\xff\xfe", b"1" * 5000,
    b'{"schema": 1e999}',
)  # fmt: skip


def in_json(data: bytes, random: Random) -> bytes:
    """Change a JSON document here and there and leave it one, most of the time."""
    if random.randrange(8) == 0:
        return in_bytes(data, random)
    if random.randrange(60) == 0:
        return random.choice(DOCUMENTS)
    document = {"": json.loads(data)}
    for _ in range(random.choice([1, 1, 2, 3])):
        holder, key = random.choice(list(_places(document, "")) or [(document, "")])
        kind = random.randrange(8)
        if kind == 0 and holder is not document:
            del holder[key]
        elif kind == 1:
            other, place = random.choice(list(_places(document, "")) or [(document, "")])
            holder[key] = json.loads(json.dumps(other[place]))
        elif kind == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif kind == 3 and isinstance(holder, dict) and holder is not document:
            holder[str(random.choice(VALUES))[:200]] = holder.pop(key)
        else:
            holder[key] = deepcopy(random.choice(VALUES))
    text = json.dumps(document[""], ensure_ascii=random.randrange(2) == 0)
    depth = random.choice([10, random.randrange(800, 1000), 100_000])
    return text.replace(f'"{NESTED}"', "[" * depth + "]" * depth).encode("utf-8", "surrogatepass")


def _places(holder: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every value of a document as its holder and its key."""
    yield holder, key
    value = holder[key]
    for inner in (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    ):
        yield from _places(value, inner)


def in_lines(data: bytes, random: Random) -> bytes:
    """Change a text of lines."""
    if random.randrange(4) == 0:
        return in_bytes(data, random)
    lines = data.split(b"\n")
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        other = lines[random.randrange(len(lines))]
        value = str(random.choice(VALUES)).encode("utf-8", "surrogatepass")
        lines[at] = random.choice([lines[at] + b" 1", other, value, b"#", lines[at][::-1]])
    return b"\n".join(lines)


def in_json_lines(data: bytes, random: Random) -> bytes:
    """Change a text of JSON documents, one on each line."""
    if random.randrange(2) == 0:
        return in_lines(data, random)
    lines = data.split(b"\n")
    at = random.randrange(len(lines) - 1)
    lines[at] = in_json(lines[at], random).replace(b"\n", b" ")
    return b"\n".join(lines)


_ODD_NAMES = ("../secret", "/secret", "a\nb", "\x1b[2J", "")


def in_zip(data: bytes, random: Random) -> bytes:
    """Change a member of a zip and write it with correct checksums, so that its reader gets it."""
    if random.randrange(3) == 0:
        return in_bytes(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    small = [at for at, (_, content) in enumerate(members) if len(content) < 4000] or [0]
    at = random.choice([*small, random.randrange(len(members))])
    name, content = members[at]
    kind = random.randrange(10)
    if kind == 0:
        members[at] = (random.choice([*_ODD_NAMES, name + "x", members[0][0], "y" * 3000]), content)
    elif kind == 1:
        del members[at]
    elif name.endswith(".npy") and kind < 8:
        members[at] = (name, _in_npy(content, random))
    else:
        members[at] = (name, in_bytes(content, random))
    output = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if random.randrange(8) == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(output, "w", packed) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that stands twice, which is meant
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, packed)
    return output.getvalue()


_ODD_TYPES = (
    "'|O'", "'<f8'", "'<U7'", "'|V4'", "'<M8[ns]'", "'<c8'", "'>f4'", "'<i8'", "'|b1'", "'|S0'",
    "'<m8'", "'<f2'", "'|u1'", "[('a', '<f4')]", "None",
)  # fmt: skip
_ODD_SHAPES = (
    "()", "(0,)", "(-1,)", "(2**62,)", f"({10**30},)", "(20, 3, 64)", "(20, 8, 8, 3)", "(True,)",
    "(1.5,)", "[]", "(0, 3, 8, 8)", "(20, 3, 8, 0)", f"({2**40}, 0)", "(20, 3, 8, 8, 1)",
    "(20, 3, 8, 4)", "(40, 3, 8, 8)", "(80, 3, 8, 8)",
)  # fmt: skip
_ODD_NPY = {"descr": _ODD_TYPES, "shape": _ODD_SHAPES, "fortran_order": ("True", "1", "None")}


def _npy_fields(header: str) -> dict[str, str]:
    """Return the fields of a header of numpy, each as its text."""
    fields = {"descr": "'<f4'", "fortran_order": "False", "shape": "(20, 3, 8, 8)"}
    for part in ("descr", "shape", "fortran_order"):
        start = header.index(f"'{part}': ") + len(part) + 4
        ends = [header.find(f", '{other}'", start) for other in fields if other != part]
        end = min(end for end in (*ends, header.rindex("}")) if end > 0)
        fields[part] = header[start:end].rstrip(", ")
    return fields


def _in_npy(data: bytes, random: Random) -> bytes:
    """Declare another type, shape or order for the same values."""
    size = struct.unpack("<H", data[8:10])[0]
    fields = _npy_fields(data[10 : 10 + size].decode("latin-1").strip())
    for part in random.choice([["descr"], ["shape"], ["fortran_order"], ["descr", "shape"]]):
        fields[part] = random.choice(_ODD_NPY[part])
    text = "{" + ", ".join(f"'{key}': {value}" for key, value in fields.items()) + ", }"
    if random.randrange(10) == 0:
        text = in_bytes(text.encode("latin-1"), random).decode("latin-1")
    text = text.ljust(size - 1) + "\n"
    return data[:8] + struct.pack("<H", len(text)) + text.encode("latin-1") + data[10 + size :]


def in_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header and leave its length right, most of the time."""
    if random.randrange(4) == 0:
        return in_bytes(data, random)
    (size,) = struct.unpack("<Q", data[:8])
    header = in_json(data[8 : 8 + size], random)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def in_png(data: bytes, random: Random) -> bytes:
    """Change a chunk and leave its checksum right, most of the time."""
    if random.randrange(4) == 0:
        return in_bytes(data, random)
    chunks, position = [], 8
    while position < len(data):
        (size,) = struct.unpack(">I", data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    at = random.randrange(len(chunks))
    kind, content = chunks[at]
    deed = random.randrange(5)
    if deed == 0:
        others = b"IHDR PLTE tRNS acTL fdAT iTXt zTXt iCCP eXIf IEND".split()
        chunks[at] = (random.choice(others), content)
    elif deed == 1:
        chunks.insert(at, chunks[random.randrange(len(chunks))])
    elif deed == 2:
        del chunks[at]
    elif kind == b"IHDR" and deed == 3:
        side = [random.choice([0, 1, 8, 9, 4096, 10**6, 2**31 - 1]) for _ in range(2)]
        chunks[at] = (kind, struct.pack(">II", *side) + content[8:])
    else:
        chunks[at] = (kind, in_bytes(content, random))
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


@cache
def digits() -> Bundle:
    """The committed model."""
    return Bundle.open(default_bundle())


def open_bundle(folder: Path) -> None:
    """Open a bundle, and plan with it what a recovery plans before it loads a network."""
    bundle = Bundle.open(folder)
    Schedule(bundle.process, Recipe(), bundle.layout)
    load_class_map("model", bundle)


def walk_graph(folder: Path) -> None:
    """Read the names of a graph's external files, and its declared inputs and outputs."""
    graph = folder / "encoder.onnx"
    require_listed_weights(graph, "encoder.onnx.data")
    tensors = tuple(TensorSpec(name, "float32", (16,)) for name in "xy")
    require_declared(graph, tensors[:1], tensors[1:])


def count_work(path: Path) -> None:
    """Count the FLOPs and bytes of a graph, as `bench` does before an engine opens it."""
    count(read_graph(path), 2)


def quote_comparison(path: Path) -> None:
    """Quote a comparison in a model card."""
    model_card(digits(), "someone/digits", "apache-2.0", Compared.read(path, digits()))


def read_engines(folder: Path) -> None:
    """Read sidecars, check them against a machine, and plan memory."""
    bundle = Bundle.open(folder)
    for plan in read_plans(bundle):
        if not isinstance(plan, Plan):
            raise plan
        plan.misfit(bundle, MACHINE)
        plan.distrusted()
        for network in plan.sidecars:
            plan.read(network)
        choose_memory_plan([plan], 2 * 10**9, 100)


def read_images(folder: Path, options: ReadOptions | None = None) -> None:
    """Detect a dataset's format and check every image, as a recovery does before it begins."""
    dataset = read_dataset(folder, digits(), options)
    for text in (dataset.summary, dataset.classes, *dataset.origin.notes):
        assert text.isprintable(), text
    for _ in dataset.images.check():
        pass
    for sample in dataset.samples:
        dataset.images.read(sample.position)
        if dataset.soft_label:
            dataset.soft_label(sample.position)


def read_classes(folder: Path) -> None:
    """Read a class map for a small model and for one of ImageNet-1K."""
    for num_classes in (10, 1000):
        load_class_map(str(folder / "classes"), Classes(num_classes))


def only_file(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Give a reader of one file the only one in the folder."""

    def of(folder: Path) -> object:
        (path,) = folder.iterdir()
        return read(path)

    return of


def decode(path: Path) -> object:
    """Check an image as `recover` does before it begins."""
    with quiet():
        return check_image(path)


def copied_digits(folder: Path) -> Path:
    """Put the digits into a folder and return the manifest."""
    for network in digits().networks.values():
        shutil.copy(digits().path / network.graph.name, folder)
    (folder / "bundle.json").write_bytes((digits().path / "bundle.json").read_bytes())
    return folder / "bundle.json"


def comparison(folder: Path) -> list[Path]:
    return [write_comparison(folder, digits())]


def sidecars(folder: Path) -> list[Path]:
    copied_digits(folder)
    return sorted(write_stand_in_plan(Bundle.open(folder), batch=2).folder.glob("*.json"))


def graph(folder: Path) -> list[Path]:
    """A graph with its weights beside it."""
    from tests.test_external_data import WHERE

    (folder / "encoder.onnx").write_bytes(
        WHERE["subgraph"]("encoder.onnx.data").SerializeToString()
    )
    return [folder / "encoder.onnx"]


def products(folder: Path) -> list[Path]:
    """A graph with a shape that it computes, an eight-bit weight and two products."""
    from tests.bench.test_cost import products_graph

    (folder / "denoiser.onnx").write_bytes(products_graph().SerializeToString())
    return [folder / "denoiser.onnx"]


def images(side: int = 8, count: int = 20) -> methods.Pixels:
    """Smooth images, since raw noise would be recognised as whitened."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(40, 200, (count, 1, 1, 3)) + np.linspace(0, 50, side)[:, None, None]
    return (coarse + generator.normal(0, 3, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


LABELS = [number // 2 for number in range(20)]


def stored(write: Callable[..., Path], **options: Any) -> Callable[[Path], list[Path]]:
    """Let a method write its files; each of tensors may be damaged."""

    def make(folder: Path) -> list[Path]:
        write(folder, images(), LABELS, **options)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    return make


def old_format(folder: Path) -> list[Path]:
    torch.save(
        [methods.normalised(images(), "none"), methods.hard(LABELS)],
        folder / "data.pt",
        _use_new_zipfile_serialization=False,
    )
    return [folder / "data.pt"]


def kip(folder: Path) -> list[Path]:
    """A file with KIP's name; its values are pixels, and not whitened as KIP's are."""
    np.savez(
        folder / "kip_10.npz",
        images=methods.normalised(images(), "none").numpy(),
        labels=methods.one_hot(LABELS, 10) - np.float32(0.1),
    )
    return [folder / "kip_10.npz"]


def converted(suffix: str, folder: Path) -> list[Path]:
    source = methods.datm(folder, images(), LABELS) / "images_best.pt"
    tensors = read_to_convert(source, ReadOptions(), None)
    write_converted(tensors, 1, None, folder / f"set{suffix}")
    for path in folder.glob("*.pt"):
        path.unlink()
    return [folder / f"set{suffix}"]


def whitened(reference: Callable[[], dict[str, Any]], folder: Path) -> list[Path]:
    """A converted set of FRePo's, white noise, with its ZCA reference; either may be damaged."""
    values = np.random.default_rng(7).normal(size=(20, 8, 8, 3)).astype(np.float32)
    np.savez(
        folder / "step000100.npz", image=values, label=methods.one_hot(LABELS, 10) - np.float32(0.1)
    )
    options = ReadOptions(normalisation="frepo-cifar10")
    found = read_to_convert(folder / "step000100.npz", options, None)
    write_converted(found, 1, "imagewoof", folder / "set.npz")
    (folder / "step000100.npz").unlink()
    np.savez(folder / "zca.npz", **reference())
    return [folder / "set.npz", folder / "zca.npz"]


def training_images() -> dict[str, Any]:
    return {"images": images() / 255}


def transform() -> dict[str, Any]:
    return {"rev_whitening_transform": np.eye(192, dtype=np.float32), "zca_mean": np.zeros(192)}


def undone(folder: Path) -> None:
    read_converted(folder / "set.npz", ReadOptions(), folder / "zca.npz")


def convert_checkpoint(folder: Path) -> None:
    read_converted(folder / "checkpoint_500000", ReadOptions(normalisation="imagenet"))


def read_converted(path: Path, options: ReadOptions, reference: Path | None = None) -> None:
    """Read every image of a file as `convert` would write it."""
    tensors = read_to_convert(path, options, reference)
    for note in tensors.notes:
        assert note.isprintable(), note
    for _ in StoredImages(path, tensors.images, tensors.normalisation).check():
        pass


def picture(name: str, mode: str, **options: Any) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        image = Image.fromarray(images(24, 1)[0])
        image.putalpha(255) if mode == "RGBA" else None
        image.convert(mode).save(folder / name, **options)
        return [folder / name]

    return make


def recovered(folder: Path, layout: str = "index") -> list[Path]:
    """A recovered dataset of one image in each of two classes, and one that was left out."""
    fake_run.recover(folder, layout=layout)
    with json_file(folder / MANIFEST) as document:
        document["recipe"], document["source"]["images"] = Recipe().to_json(), 3
        for number in (4, 2, 1):
            (folder / document["samples"].pop(number)["file"]).unlink()
        document["skipped"][0]["key"] = "00001/00001"
        for entry in (*document["samples"], *document["skipped"], *document["classes"]):
            entry["label"] = entry["index"]
        document["companions"] = [soft_labels_of(2, folder)]
    return [folder / MANIFEST]


def soft_labels_of(count: int, folder: Path) -> dict[str, str]:
    """Write soft labels of some images, and return their entry of the manifest."""
    np.save(folder / "soft_labels.npy", np.zeros((count, 10), np.float32))
    return {"file": "soft_labels.npy", "sha256": file_sha256(folder / "soft_labels.npy")}


def shards(layout: str, of: int, folder: Path) -> list[Path]:
    """The same in one shard or in two.

    Only a fact of one shard can differ from those of the others.
    """
    manifests = []
    for number in range(1, of + 1):
        root = folder / f"part{number}"
        # The arrays of npz are not read: its images lie where those of `index` do.
        manifests += recovered(root, "index" if layout == "npz" else layout)
        with json_file(root / MANIFEST) as document:
            document["samples"] = document["samples"][2 * (number - 1) // of : 2 * number // of]
            document["skipped"] = document["skipped"] if number == of else []
            document["shard"] = {"number": number, "of": of}
            document["layout"]["name"] = layout
            document["layout"]["normalisation"] = "none" if layout == "npz" else None
            document["companions"] = [soft_labels_of(len(document["samples"]), root)]
    return manifests


def merge(folder: Path) -> None:
    merge_shards(sorted(folder.iterdir()), folder.parent / "output")


def convert(folder: Path) -> None:
    convert_recovered(folder, folder.parent / "output", layout="webdataset", size=16)


def soft_labels(folder: Path) -> list[Path]:
    np.save(
        folder / "soft_labels.npy",
        np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32),
    )
    return [folder / "soft_labels.npy"]


def in_npy(data: bytes, random: Random) -> bytes:
    """Change the bytes of an array, or its header."""
    return in_bytes(data, random) if random.randrange(2) == 0 else _in_npy(data, random)


def read_journal(folder: Path) -> None:
    found = Journal(folder)
    found.head()
    deque(found.values(), maxlen=0)


BYSTANDERS = ("README.md", "data.pt", "notes.txt", "00000/mine.txt")


def finished(folder: Path) -> list[Path]:
    """A run of five images and a failed one, with files of its user's beside its own."""
    fake_run.recover(folder)
    for name in BYSTANDERS:
        (folder / name).write_bytes(b"mine")
    return [folder / MANIFEST]


def interrupted(folder: Path) -> list[Path]:
    """The same, stopped before its last image."""
    (manifest,) = finished(folder)
    document = json.loads(manifest.read_text())
    manifest.unlink()
    lines = [fake_run.head(), *document["samples"][:-1], *document["skipped"]]
    (folder / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / document["samples"][-1]["file"]).unlink()
    return [folder / JOURNAL]


def resume(folder: Path, overwrite: bool = False) -> None:
    """Run again, and compare the outcome with that of an undisturbed run."""
    try:
        fake_run.recover(folder, overwrite=overwrite)
    finally:
        assert all((folder / name).read_bytes() == b"mine" for name in BYSTANDERS), (
            "deleted what is not its own"
        )
    found, expected = outcome_of(folder), undisturbed()
    unlike = [name for name in found | expected if found.get(name) != expected.get(name)]
    assert found == expected, f"not as if undisturbed: {sorted(unlike)}"


@cache
def undisturbed() -> dict[str, object]:
    """The outcome of an undisturbed run."""
    with tempfile.TemporaryDirectory() as folder:
        finished(Path(folder))
        return outcome_of(Path(folder))


def outcome_of(folder: Path) -> dict[str, object]:
    """Return every file, and the manifest's entries without engines and problems.

    Only the journal records those.
    """
    outcome: dict[str, object] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")
    }
    manifest = json.loads(str(outcome.pop("manifest.json"), "utf-8"))  # type: ignore[call-overload]
    for part in ("samples", "skipped", "companions"):
        for entry in manifest[part]:
            assert entry.pop("engine", "").isprintable()
            assert entry.pop("problem", "").isprintable()
        outcome[part] = manifest[part]
    return outcome


def written(name: str, text: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_text(text)
        return [folder / name]

    return make


IMAGE = (only_file(decode), only_file(read_image))
DATASET = (read_images,)
KNOWN = (partial(read_images, options=ReadOptions(normalisation="imagenet")),)
UNDONE = (undone,)

TARGETS = (
    Target("bundle.json", lambda folder: [copied_digits(folder)], in_json, (open_bundle,)),
    Target("sidecars", sidecars, in_json, (read_engines,)),
    Target("comparison", comparison, in_json, (only_file(quote_comparison),)),
    Target("ONNX graph", graph, in_bytes, (walk_graph,)),
    Target("ONNX graph, its work", products, in_bytes, (only_file(count_work),)),
    Target("manifest", recovered, in_json, (inspect_recovered, read_images)),
    Target("journal", interrupted, in_lines, (read_journal,)),
    Target("merge", partial(shards, "npz", 2), in_json, (merge,), writes=True),
    Target("merge of one", partial(shards, "huggingface", 1), in_json, (merge,), writes=True),
    Target("convert", recovered, in_json, (convert,), writes=True),
    Target("soft labels", soft_labels, in_npy, (only_file(partial(read_soft_labels, rows=20)),)),
    Target("journal, resumed", interrupted, in_json_lines, (resume,), writes=True),
    Target(
        "journal, overwritten",
        interrupted,
        in_json_lines,
        (partial(resume, overwrite=True),),
        writes=True,
    ),
    Target("manifest, resumed", finished, in_json, (resume,), writes=True),
    Target(
        "manifest, overwritten", finished, in_json, (partial(resume, overwrite=True),), writes=True
    ),
    Target(
        "class map, lines",
        written("classes", "".join(f"thing_{i} {i}\n" for i in range(10))),
        in_lines,
        (read_classes,),
    ),
    Target(
        "class map, list",
        written("classes", json.dumps([*range(9), "9"])),
        in_json,
        (read_classes,),
    ),
    Target(
        "class map, object",
        written("classes", json.dumps({f"thing {i}": i for i in range(10)})),
        in_json,
        (read_classes,),
    ),
    Target("PNG", picture("a.png", "RGB"), in_png, IMAGE),
    Target("PNG, palette", picture("a.png", "P"), in_png, IMAGE),
    Target("PNG, alpha", picture("a.png", "RGBA"), in_png, IMAGE),
    Target("PNG, black and white", picture("a.png", "1"), in_png, IMAGE),
    Target("JPEG", picture("a.jpg", "RGB", quality=75), in_bytes, IMAGE),
    Target("JPEG, progressive", picture("a.jpeg", "L", progressive=True), in_bytes, IMAGE),
    Target("WebP", picture("a.webp", "RGB"), in_bytes, IMAGE),
    Target("WebP, lossless", picture("a.webp", "RGBA", lossless=True), in_bytes, IMAGE),
    Target("mtt", stored(methods.mtt), in_zip, DATASET),
    Target("tesla", stored(methods.tesla_with_teacher_labels), in_zip, DATASET),
    Target("datm", stored(methods.datm), in_zip, DATASET),
    Target("glad", stored(methods.glad), in_zip, DATASET),
    Target("dm", stored(methods.dm), in_zip, DATASET),
    Target("cafe", stored(methods.cafe), in_zip, DATASET),
    Target("idc", stored(methods.listed("data.pt")), in_zip, DATASET),
    Target("dream", stored(methods.listed("data1200.pt")), in_zip, DATASET),
    Target("ncfm", stored(methods.listed("data_20000.pt")), in_zip, DATASET),
    Target("seqmatch", stored(methods.seqmatch), in_zip, DATASET),
    Target("torch's old format", old_format, in_bytes, DATASET),
    Target("frepo", stored(methods.frepo), in_zip, KNOWN),
    Target("frepo's checkpoint", stored(methods.frepo_checkpoint), in_bytes, (convert_checkpoint,)),
    Target("kip", kip, in_zip, DATASET),
    Target("ZCA, training images", partial(whitened, training_images), in_zip, UNDONE),
    Target("ZCA, FRePo's transform", partial(whitened, transform), in_zip, UNDONE),
    Target("converted to npz", partial(converted, ".npz"), in_zip, DATASET),
    Target("converted to safetensors", partial(converted, ".safetensors"), in_safetensors, DATASET),
)
