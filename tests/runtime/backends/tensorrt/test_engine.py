"""TensorRT's adapter against the stand-in (`tests/stand_in.py`): its logic, not TensorRT itself."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import Result

from diver_trt.bundle import Bundle
from diver_trt.errors import DeviceMemoryError, EngineError
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import PRESETS, Recipe
from diver_trt.runtime.backends.onnx import OnnxSession
from diver_trt.runtime.backends.tensorrt import module as trt_module
from diver_trt.runtime.backends.tensorrt.denoiser import TrtDenoiser
from diver_trt.runtime.backends.tensorrt.plans import Plan, read_plans
from diver_trt.runtime.backends.tensorrt.session import TrtSession
from diver_trt.runtime.chunks import chunks
from diver_trt.runtime.events import BatchStarts
from diver_trt.runtime.recoverer import Recoverer
from diver_trt.runtime.samples import checked_samples
from tests.cli.command import fails, run
from tests.conftest import DISTILLED
from tests.stand_in import (
    Error,
    StandInCuda,
    install_stand_in,
    stand_in_session,
    stand_in_tensorrt,
    write_stand_in_plan,
)

QUICK = replace(PRESETS["matched"], steps=10, inherit_step=5, start_step=5, window=(5, 2))
LABELS = [3, 1, 3, 9, 0, 3]


@dataclass
class Gpu:
    """A bundle with stand-in engines on a stand-in GPU."""

    bundle: Bundle
    api: StandInCuda

    def session(self) -> TrtSession:
        (plan,) = read_plans(self.bundle)
        assert not isinstance(plan, Exception)
        return stand_in_session(self.bundle, plan, self.api)


@pytest.fixture
def gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    api, _ = install_stand_in(monkeypatch)
    write_stand_in_plan(bundle, batch=2)
    return Gpu(bundle, api)


@pytest.fixture
def session(gpu: Gpu) -> Iterator[TrtSession]:
    session = gpu.session()
    yield session
    session.close()


def recover(
    bundle: Bundle, images: Any, engine: str, recipe: Recipe = QUICK, **options: Any
) -> NDArray[np.uint8]:
    with Recoverer(bundle, recipe, engine=engine, **options) as recoverer:
        return np.stack([sample.image for sample in recoverer(images, LABELS)])


@pytest.mark.parametrize(
    "recipe", [QUICK, Recipe(), PRESETS["matched"]], ids=["odd number of steps", "paper", "matched"]
)
def test_a_recovery_is_the_one_of_onnx_runtime(
    gpu: Gpu, digits: Bundle, images: Any, recipe: Recipe
) -> None:
    found, expected = (
        recover(gpu.bundle, images, "rtx", recipe),
        recover(digits, images, "onnx", recipe, batch=2),
    )
    np.testing.assert_array_equal(found, expected)
    assert gpu.api.launches == 3


def test_a_recovery_frees_all_that_it_took(gpu: Gpu, images: Any) -> None:
    recover(gpu.bundle, images, "rtx")
    assert gpu.api.device == gpu.api.host == {}
    assert gpu.api.graphs == []


def test_all_steps_are_one_graph_that_reads_its_own_rows(gpu: Gpu, session: TrtSession) -> None:
    table = Schedule(gpu.bundle.process, Recipe(), gpu.bundle.layout).table
    denoiser = session.open_denoiser(table, 50)
    (graph,) = gpu.api.graphs
    # Two images' class rows, two null rows, and the network, per step.
    copies, launches = (2 + 2) * 50, 50
    assert len(graph.operations) == copies + launches
    denoiser.close()
    assert gpu.api.graphs == []


def test_a_replayed_graph_equals_plain_enqueues(gpu: Gpu, images: Any) -> None:
    replayed = recover(gpu.bundle, images, "rtx")
    gpu.api.refuse_capture = True
    with pytest.warns(
        RuntimeWarning,
        match=(
            r"CUDA graph capture was refused \(cudaStreamEndCapture failed: .*\); "
            r"running step by step"
        ),
    ):
        enqueued = recover(gpu.bundle, images, "rtx")
    np.testing.assert_array_equal(replayed, enqueued)


def test_an_engine_that_cannot_be_captured_is_enqueued(
    gpu: Gpu, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.stand_in.StandInContext.is_stream_capturable", lambda self, stream: False
    )
    with pytest.warns(RuntimeWarning, match="this engine cannot be captured"):
        recover(gpu.bundle, images, "rtx")
    assert gpu.api.launches == 0


def test_the_latent_can_be_read_after_every_plain_step(gpu: Gpu, digits: Bundle) -> None:
    gpu.api.refuse_capture = True
    table = Schedule(digits.process, QUICK, digits.layout).table
    generator = np.random.default_rng(0)
    start, anchor, noise = generator.standard_normal((3, 2, 4, 8, 8)).astype(np.float32)
    tables = [
        generator.standard_normal((5, digits.condition_width)).astype(np.float32) * 0.1
        for _ in range(3)
    ]
    session = gpu.session()
    with pytest.warns(RuntimeWarning, match="refused"):
        ours = session.open_denoiser(table, 5)
    theirs = OnnxSession(digits, 2).open_denoiser(table, 5)
    for denoiser in (ours, theirs):
        denoiser.load(start, anchor, noise, tables[:2], tables[2])
    for k, same in zip(ours.run(), theirs.run(), strict=True):
        assert k == same
        np.testing.assert_array_equal(ours.latent(), theirs.latent())
    ours.close()
    theirs.close()
    session.close()


def test_networks_that_stay_share_one_scratch_block(gpu: Gpu, session: TrtSession) -> None:
    scratches = {session.open(name)._context.scratch for name in ("encoder", "decoder")}
    assert len(scratches) == 1


def test_in_phases_only_one_network_is_there_at_a_time(
    gpu: Gpu, images: Any, digits: Bundle
) -> None:
    from diver_trt.runtime.backends.tensorrt.memory import plan_memory

    (plan,) = read_plans(gpu.bundle)
    assert isinstance(plan, Plan)
    resident, phased = (plan_memory(plan, residency) for residency in ("resident", "phased"))
    held: list[int] = []
    original = gpu.api.cudaMalloc

    def watched(size: int) -> tuple[Any, ...]:
        result = original(size)
        held.append(sum(gpu.api.device.values()))
        return result

    gpu.api.cudaMalloc = watched  # type: ignore[method-assign]
    found = recover(gpu.bundle, images, "rtx", memory_budget=phased.peak_bytes)
    np.testing.assert_array_equal(found, recover(digits, images, "onnx", batch=2))
    # The stand-in's weights are not on its device.
    buffers = max(phase.total_bytes - phase.weights_bytes for phase in phased.phases)
    assert max(held) <= buffers + QUICK.start_step * 256  # and the step table
    assert phased.peak_bytes < resident.peak_bytes


def test_out_of_memory_says_what_to_do(gpu: Gpu) -> None:
    session = gpu.session()
    gpu.api.limit_bytes = 5000
    with pytest.raises(
        DeviceMemoryError,
        match=(
            r"out of memory: cudaMalloc of [\d,]+ bytes failed; "
            r"use a smaller --batch or --memory-budget"
        ),
    ):
        session.open("decoder")
    session.close()
    assert gpu.api.device == {}


def test_a_run_that_tensorrt_refuses_is_an_error(session: TrtSession) -> None:
    decoder = session.open("decoder")
    decoder._context.fail = True
    with pytest.raises(EngineError, match="TensorRT could not run the decoder: no reason given"):
        decoder.run()


def test_an_engine_that_wants_more_scratch_than_its_sidecar_says_gets_its_own(gpu: Gpu) -> None:
    session = gpu.session()
    deserialize = session.started.runtime.deserialize_cuda_engine

    def hungry(engine: bytes) -> Any:
        made = deserialize(engine)
        made.device_memory_size_v2 = 10**6
        return made

    session.started.runtime.deserialize_cuda_engine = hungry
    with pytest.warns(
        RuntimeWarning,
        match=("needs 1,000,000 bytes of scratch memory, but the sidecars state 4,096; allocating"),
    ):
        engine = session.open("decoder")
    assert engine._context.scratch[1] == 10**6
    engine.close()
    session.close()
    assert gpu.api.device == {}


def test_an_engine_that_rtx_calls_invalid_is_not_loaded(gpu: Gpu) -> None:
    session = gpu.session()
    session.started.module.EngineValidity = SimpleNamespace(INVALID=2)
    session.started.module.EngineInvalidityDiagnostics = SimpleNamespace(
        __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4}
    )
    session.started.runtime.get_engine_validity = lambda engine: (2, 6)
    with pytest.raises(
        EngineError,
        match=(
            "the decoder engine is not valid here: UNSUPPORTED_CC, OLD_CUDA_DRIVER; "
            "build the engines again"
        ),
    ):
        session.open("decoder")
    session.close()


def test_a_tensorrt_that_cannot_start_is_one_line(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = stand_in_tensorrt(gpu.api)
    module.Runtime = refuses
    monkeypatch.setattr(trt_module, "import_tensorrt", lambda backend: module)
    with pytest.raises(EngineError, match="TensorRT cannot start: no reason given"):
        Recoverer(gpu.bundle, QUICK, engine="rtx")
    assert gpu.api.device == {}


def test_networks_that_do_not_open_leave_nothing_behind(gpu: Gpu) -> None:
    gpu.api.limit_bytes = 10**7  # the plan fits, as the stand-in's weights are elsewhere
    original = gpu.api.cudaHostAlloc
    refused = (Error.cudaErrorMemoryAllocation, None)
    gpu.api.cudaHostAlloc = lambda size, flags: (  # type: ignore[method-assign]
        refused if size > 90_000 else original(size, flags)
    )
    with pytest.raises(DeviceMemoryError):
        Recoverer(gpu.bundle, QUICK, engine="rtx")
    assert gpu.api.device == gpu.api.host == {}
    with pytest.raises(DeviceMemoryError) as raised:
        Recoverer(gpu.bundle, QUICK, engine="auto")
    assert raised.value.engine == "rtx"


def test_what_is_free_on_the_device_is_a_budget_too(gpu: Gpu) -> None:
    gpu.api.limit_bytes = 5_000_000
    with Recoverer(gpu.bundle, QUICK, engine="rtx") as recoverer:
        assert recoverer.memory is not None
        assert recoverer.memory.residency == "phased"
    gpu.api.limit_bytes = 1_000_000
    with pytest.raises(DeviceMemoryError, match="nothing fits the device's free memory, 1 MB"):
        Recoverer(gpu.bundle, QUICK, engine="rtx")


@pytest.mark.parametrize(("images", "batch"), [(None, 8), (100, 8), (3, 3), (1, 2)])
def test_no_batch_of_a_range_is_larger_than_the_images(
    gpu: Gpu, images: int | None, batch: int
) -> None:
    folder = write_stand_in_plan(gpu.bundle, batch=8).folder
    sidecar = folder / "denoiser.json"
    fields = json.loads(sidecar.read_text())
    fields["profile"] = {"minimum": 2, "optimum": 4, "maximum": 8}
    sidecar.write_text(json.dumps(fields))
    for path in (gpu.bundle.path / "plans").iterdir():
        if path != folder:
            shutil.rmtree(path)
    with Recoverer(gpu.bundle, QUICK, engine="rtx", images=images) as recoverer:
        assert recoverer.batch == batch


def test_chunks_of_phases_are_whole_batches_with_few_classes(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diver_trt.runtime.chunks.CHUNK_IMAGES", 3)
    monkeypatch.setattr("diver_trt.runtime.chunks.CHUNK_CLASSES", 2)
    gpu.api.limit_bytes = 5_000_000
    labels = [0, 0, 0, 1, 2, 2, 2, 2, 3]
    images = np.zeros((9, 32, 32, 3), np.uint8)
    steps: list[None] = []
    with Recoverer(gpu.bundle, QUICK, engine="rtx") as recoverer:
        samples = checked_samples(gpu.bundle, images, labels, seed=0)
        found = [
            chunk
            for chunk in chunks(samples, recoverer.batch, resident=False)
            if not isinstance(chunk, BatchStarts)
        ]
        assert [[[s.label for s in batch] for batch in chunk] for chunk in found] == [
            [[0, 0], [0, 1]],
            [[2, 2], [2, 2]],
            [[3]],
        ]
        assert len(list(recoverer(images, labels, on_step=lambda: steps.append(None)))) == 9
    assert len(steps) == 5 * QUICK.start_step


def test_a_closed_recoverer_says_so(gpu: Gpu, images: Any) -> None:
    for engine in ("rtx", "onnx"):
        recoverer = Recoverer(gpu.bundle, QUICK, engine=engine)
        recoverer.close()
        recoverer.close()
        with pytest.raises(EngineError, match="the recoverer is closed"):
            list(recoverer(images, LABELS))


def test_an_engine_for_another_gpu_is_never_loaded(
    gpu: Gpu, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(
        name=b"NVIDIA H200", major=9, minor=0, totalGlobalMem=1, multiProcessorCount=132
    )
    monkeypatch.setattr(gpu.api, "cudaGetDeviceProperties", lambda device: (0, other))
    message = (
        r"encoder\.engine: it is for sm75, sm86, and this GPU is sm90\n"
        r"Rebuild it with `diver-trt build .* --backend rtx --sm 90 --batch 2`"
    )
    with pytest.raises(EngineError, match=message):
        recover(gpu.bundle, images, "rtx")
    with (
        pytest.warns(RuntimeWarning, match="engine rtx is skipped: .* this GPU is sm90"),
        Recoverer(gpu.bundle, QUICK, engine="auto") as auto,
    ):
        assert auto.engine == "onnx"


def test_auto_takes_engines_that_fit(gpu: Gpu) -> None:
    with Recoverer(gpu.bundle, QUICK, engine="auto") as recoverer:
        assert (recoverer.engine, recoverer.batch) == ("rtx", 2)
        assert recoverer.memory is not None
        assert recoverer.memory.residency == "resident"


def test_without_a_driver_auto_is_the_cpu_and_rtx_says_why(gpu: Gpu) -> None:
    gpu.api.no_driver = True
    with pytest.raises(EngineError, match="there is no NVIDIA GPU here"):
        Recoverer(gpu.bundle, QUICK, engine="rtx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Recoverer(gpu.bundle, QUICK, engine="auto") as recoverer:
            assert recoverer.engine == "onnx"


def test_a_batch_that_no_engine_takes_names_the_command(gpu: Gpu) -> None:
    with pytest.raises(
        EngineError,
        match=(
            r"no engine takes batch 4; "
            r"build one with `diver-trt build .* --backend rtx --batch 4`"
        ),
    ):
        Recoverer(gpu.bundle, QUICK, engine="rtx", batch=4)


def test_a_bundle_without_engines_names_the_command(digits: Bundle, gpu: Gpu) -> None:
    with pytest.raises(
        EngineError,
        match=r"has no engines for rtx; build them with `diver-trt build .* --backend rtx`",
    ):
        Recoverer(digits, QUICK, engine="rtx")


def recover_digits(bundle: Bundle, output: Path, *options: str) -> Result:
    """Recover ten digits on the command line."""
    settings = ("--steps", "4", "--inherit-step", "2", "--start-step", "4", "--window", "3:2")
    return run(
        "recover", DISTILLED.parent / "ipc1", output, "--bundle", bundle.path, *settings, *options
    )


@pytest.fixture
def short_after_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let batches of two run out of memory from the third one on."""
    run, runs = TrtDenoiser.run, iter(range(1000))

    def running(self: TrtDenoiser) -> Iterator[int]:
        if self._batch == 2 and next(runs) >= 2:
            raise DeviceMemoryError("out of memory: a gigabyte failed")
        return run(self)

    monkeypatch.setattr(TrtDenoiser, "run", running)


@pytest.mark.usefixtures("short_after_two_batches")
@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
def test_out_of_memory_auto_does_not_end_on_the_cpu(gpu: Gpu, tmp_path: Path) -> None:
    assert (
        "error: out of memory: a gigabyte failed; "
        "and in smaller batches: no engine takes batch 1; build one with"
    ) in fails(recover_digits(gpu.bundle, tmp_path / "out"))
    _, *lines = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["engine"] for line in lines] == ["rtx"] * 4
    write_stand_in_plan(gpu.bundle, batch=1)
    result = recover_digits(gpu.bundle, tmp_path / "out", "--batch", "2")
    assert result.exit_code == 0
    assert "recovering on rtx in 6 batches of up to 1" in result.stderr
    samples = json.loads((tmp_path / "out" / "manifest.json").read_text())["samples"]
    assert [sample["engine"] for sample in samples] == ["rtx"] * 10


@pytest.mark.filterwarnings("always:out of memory:RuntimeWarning")
def test_a_budget_that_nothing_fits_is_still_named_after_smaller_batches(
    gpu: Gpu, tmp_path: Path
) -> None:
    options = ("--engine", "rtx", "--memory-budget", "1MB")
    assert ("error: nothing fits a memory budget of 1 MB: the smallest that would do is") in fails(
        recover_digits(gpu.bundle, tmp_path / "out", *options)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"shape": ("n", 5, 8, 8)},
            r"has latent: float32\[\?, 4, 8, 8\], expected latent: float32\[n, 5",
        ),
        ({"shape": ("n", 4, 8)}, r"expected latent: float32\[n, 4, 8\] at batch 1"),
        ({"dtype": "float16"}, "expected latent: float16"),
    ],
)
def test_an_engine_of_other_shapes_or_types_is_not_run(
    gpu: Gpu, changed: dict[str, Any], message: str
) -> None:
    bundle, (plan,) = gpu.bundle, read_plans(gpu.bundle)
    assert isinstance(plan, Plan)
    decoder = bundle.networks["decoder"]
    other = replace(
        bundle,
        networks={
            **bundle.networks,
            "decoder": replace(decoder, inputs=(replace(decoder.inputs[0], **changed),)),
        },
    )
    session = stand_in_session(other, plan, gpu.api)
    with pytest.raises(EngineError, match=message):
        session.open("decoder")


def test_a_static_engine_is_of_its_batch(digits: Bundle) -> None:
    latent = digits.networks["decoder"].inputs[0]
    assert latent.agrees_with("float32", (2, 4, 8, 8), 2)
    assert not latent.agrees_with("float32", (3, 4, 8, 8), 2)
    assert not latent.agrees_with("float32", (2, 4, 8, 8))
    assert latent.agrees_with("float32", (-1, 4, 8, 8), 2)
