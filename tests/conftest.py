"""Shared by all tests: bundles made once per session, and images to put through them.

`random_pipeline` has random weights large enough that every term of a step matters; `digits` is the
committed, trained model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.digits import default_bundle
from diver_trt.distilled.image_file import read_image
from diver_trt.files import FileRecord
from tests.edited_json import json_file

# Before torch is imported, and for subprocesses too: with models this small, a second thread only
# waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before `pytest_configure`, which leaves one of them.
ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

ROOT = Path(__file__).parent.parent
DIGITS_MODEL = ROOT / "examples" / "digits" / "dit-digits"
DISTILLED = ROOT / "examples" / "digits" / "distilled" / "ipc10"
IPC1 = DISTILLED.parent / "ipc1"


def pytest_configure(config: pytest.Config) -> None:
    """Keep a process that runs tests to one core, and so the processes that it starts.

    A test about threads takes `ALL_CORES`.
    """
    # With as many workers of pytest-xdist as cores, an engine's second thread takes a quarter more
    # processor time and no less wall time; and on more cores, batches are cut into other
    # microbatches. The process that starts the workers keeps its cores: they would inherit one.
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if ALL_CORES and runs_tests:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {ALL_CORES[worker % len(ALL_CORES)]})


def digit_folder(folder: Path, counts: dict[int, int]) -> Path:
    """Copy the first distilled images of some digits, as many as said, to class folders."""
    for digit, count in counts.items():
        (folder / str(digit)).mkdir(parents=True)
        for number in range(count):
            shutil.copy(DISTILLED / str(digit) / f"{number}.png", folder / str(digit))
    return folder


def ten_digits() -> NDArray[np.uint8]:  # [10, 32, 32, 3]
    """Return the first distilled image of each digit."""
    return np.stack([read_image(DISTILLED / str(digit) / "0.png") for digit in range(10)])


def flipped(path: Path) -> bytes:
    """Return the bytes of a file with the last bit changed."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    return bytes(data)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files: a worker that got one last would leave the others without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def default_signals() -> None:
    """Restore what shells ignore in background jobs and under nohup, for `preexec_fn`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A list of trusted engines and a cache of the tests' own, and the engine of a default install.

    `auto` takes ONNX Runtime where OpenVINO is not installed: tests that make it fail count on
    that. Processes that a test starts, and tests that name it, have OpenVINO as it is.
    """
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("diver_trt.runtime.backends.openvino.available", lambda *_: False)
        yield folder


@pytest.fixture(scope="session")
def digits() -> Bundle:
    return Bundle.open(default_bundle())


@pytest.fixture(scope="session")
def eight_bit_digits(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits as an int8 export writes them, without the minute that tracing takes."""
    import onnx_ir

    from diver_trt.export.int8 import quantise_weights

    folder = tmp_path_factory.mktemp("int8-digits")
    networks = {}
    for name, network in digits.networks.items():
        model = onnx_ir.load(digits.path / f"{name}.onnx")
        quantise_weights(model.graph)
        onnx_ir.save(model, folder / f"{name}.onnx")
        networks[name] = replace(network, graph=FileRecord.of(folder / f"{name}.onnx"))
    replace(digits, path=folder, precision="int8", networks=networks).write()
    return Bundle.open(folder)


@pytest.fixture
def imagenet(digits: Bundle) -> Bundle:
    """The digits bundle with the classes of ImageNet-1K, all that reading datasets needs."""
    names = tuple("tench, Tinca tinca" if i == 0 else f"thing {i}" for i in range(1000))
    return replace(digits, num_classes=1000, null_label=1000, class_names=names)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Six 32-pixel images with smooth and noisy parts."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 256, (6, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (0.7 * coarse + 0.3 * generator.integers(0, 256, (6, 32, 32, 3))).astype(np.uint8)


def save_random_pipeline(folder: Path, **transformer: Any) -> Path:
    """Save a DiTPipeline of random weights: 16-pixel images, 4 x 4 latents, width 24, 7 classes.

    Its VAE is the same whatever the transformer is, so that its graphs are exported once.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 7,
    }
    settings |= transformer
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=settings["in_channels"],
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.7,
    )
    dit = DiTTransformer2DModel(**settings)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            # By name: models of other class counts share their other weights, and so their traces.
            parameter.normal_(
                std=0.08, generator=torch.Generator().manual_seed(crc32(name.encode()))
            )
        for block in dit.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(dit.transformer_blocks[0].norm1.emb.state_dict())
    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False
    )
    DiTPipeline(dit, vae, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, the same one in every worker of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker to need it makes, while the others wait."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)
    return path


@pytest.fixture(scope="session")
def random_pipeline(shared: Path) -> Path:
    return made_once(shared / "random-pipeline", save_random_pipeline)


@pytest.fixture(scope="session")
def traced_once(shared: Path) -> Iterator[None]:
    """Let torch trace each network once a run, the longest part of an export by far."""
    import onnx_ir

    from diver_trt.export import onnx_graph

    trace = onnx_graph.traced

    def traced(network: Any, inputs: Any, outputs: Any) -> onnx_ir.Model:
        key = hashlib.sha256(repr((network, inputs, outputs)).encode())
        for name, tensor in network.state_dict().items():
            key.update(f"{name} {tensor.dtype}".encode() + tensor.numpy().tobytes())

        def make(folder: Path) -> None:
            folder.mkdir()
            onnx_ir.save(trace(network, inputs, outputs), folder / "traced.onnx")

        folder = made_once(shared / f"traced-{key.hexdigest()[:16]}", make)
        return onnx_ir.load(folder / "traced.onnx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "traced", traced)
        yield


@pytest.fixture(scope="session")
def export_to(
    shared: Path, traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """Open a copy of a pipeline's bundle; each pipeline is exported once, as that takes long."""

    def export(source: Path, precision: Any = "fp32", **options: Any) -> Bundle:
        from diver_trt.export.exporter import export_bundle
        from diver_trt.models import BASES, ModelOptions
        from diver_trt.models.recognition import recognised_base

        def make(path: Path) -> None:
            load_model = BASES[recognised_base(str(source))].load().load_model
            for _ in export_bundle(
                load_model(str(source), ModelOptions(**options)), path, precision
            ):
                pass

        key = hashlib.sha256(repr((source, precision, sorted(options.items()))).encode())
        name = f"{source.name}-{precision}"
        exported = made_once(shared / f"exported-{name}-{key.hexdigest()[:8]}", make)
        return Bundle.open(shutil.copytree(exported, tmp_path_factory.mktemp("bundles") / name))

    return export


@pytest.fixture(scope="session")
def random_bundle(export_to: Callable[..., Bundle], random_pipeline: Path) -> Bundle:
    return export_to(random_pipeline)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory, digits: Bundle) -> Path:
    """A copy of the digits bundle's graphs, for the bundles of single tests to hard-link.

    Symlinks out of a bundle are refused.
    """
    folder = tmp_path_factory.mktemp("graphs")
    for network in digits.networks.values():
        shutil.copy(digits.path / network.graph.name, folder)
    return folder


Edited = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path, digits: Bundle, graphs: Path) -> Edited:
    """Link the digits bundle's networks, and copy its manifest with one change, or none."""

    def edit(change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
        folder = shutil.copytree(graphs, tmp_path / "edited", copy_function=os.link)
        shutil.copy(digits.path / "bundle.json", folder)
        with json_file(folder / "bundle.json") as manifest:
            change(manifest)
        return folder

    return edit
