"""One contract for every engine.

The engines are ONNX Runtime, OpenVINO, torch, TensorRT against the stand-in, and TensorRT-RTX where
there is a GPU. The reference is ONNX Runtime's plain session on the same graph. The stand-in covers
the adapter's logic; only `rtx` runs TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from diver_trt.bundle import Bundle
from diver_trt.contract import HALF_PRECISIONS, NETWORKS, NetworkName
from diver_trt.errors import BundleError, DeviceMemoryError, EngineError
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import PRESETS
from diver_trt.runtime.backends.onnx import OnnxSession
from diver_trt.runtime.backends.openvino import OpenVinoSession
from diver_trt.runtime.engine import Denoiser, Engine, Session
from diver_trt.runtime.recoverer import Recoverer
from tests.conftest import DIGITS_MODEL
from tests.gpu.device import needs_cuda_provider, needs_gpu, rtx_session
from tests.runtime.swapped_graph import with_another_graph
from tests.stand_in import stand_in_session, write_stand_in_plan

BATCH, STEPS = 2, 5
RECIPE = replace(
    PRESETS["matched"],
    steps=10,
    inherit_step=STEPS,
    start_step=STEPS,
    window=(STEPS, 2),
    guide="noised",
)
TOLERANCE = 2e-4  # engines sum in orders of their own; TF32 and float16 are not in an fp32 bundle


def onnx(bundle: Bundle, tmp_path: Path) -> Session:
    return OnnxSession(bundle, BATCH)


def onnx_cuda(bundle: Bundle, tmp_path: Path) -> Session:
    return OnnxSession(bundle, BATCH, "cuda")


def openvino(bundle: Bundle, tmp_path: Path) -> Session:
    return OpenVinoSession(bundle, BATCH)


def torch(bundle: Bundle, tmp_path: Path) -> Session:
    from diver_trt.comparison.torch_engine import TorchSession
    from diver_trt.models.dit import load_model

    # torch has no eight-bit weights.
    precision: Any = "fp16" if bundle.precision in HALF_PRECISIONS else "fp32"
    session: Any = TorchSession(load_model(str(DIGITS_MODEL)), bundle, BATCH, precision)
    return session  # type: ignore[no-any-return]


def stand_in(bundle: Bundle, tmp_path: Path) -> Session:
    return stand_in_session(bundle, write_stand_in_plan(bundle, BATCH, tmp_path / "plan"))


@pytest.fixture(
    params=[
        onnx,
        openvino,
        torch,
        stand_in,
        pytest.param(onnx_cuda, marks=[pytest.mark.gpu, needs_cuda_provider]),
        pytest.param(rtx_session, marks=[pytest.mark.gpu, needs_gpu]),
    ],
    ids=["onnx", "openvino", "torch", "stand-in", "onnx-cuda", "rtx"],
)
def session(request: pytest.FixtureRequest, digits: Bundle, tmp_path: Path) -> Iterator[Session]:
    opened = request.param(digits, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def decoder(session: Session) -> Iterator[Engine]:
    engine = session.open("decoder")
    yield engine
    engine.close()


def values(bundle: Bundle, network: str, size: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of a network of the digits bundle, of the size that it sees in a recovery."""
    generator = np.random.default_rng(seed)
    made: dict[str, NDArray[Any]] = {}
    for spec in bundle.networks[network].inputs:  # type: ignore[index]
        shape = spec.concrete(size)
        made[spec.name] = (
            generator.integers(0, 10, shape)
            if spec.dtype == "int64"
            else generator.standard_normal(shape).astype(spec.dtype)
        )
    return made


def reference(bundle: Bundle, network: str, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(
        bundle.path / f"{network}.onnx", providers=["CPUExecutionProvider"]
    )
    output: NDArray[Any] = session.run(None, inputs)[0]
    return output


@pytest.mark.parametrize("network", ["encoder", "conditioner", "decoder"])
def test_a_network_computes_what_its_graph_does(
    session: Session, digits: Bundle, network: Any
) -> None:
    engine = session.open(network)
    (output,) = (spec.name for spec in digits.networks[network].outputs)
    for seed in range(2):
        inputs = values(digits, network, engine.batch, seed)
        for name, value in inputs.items():
            engine.write(name, value)
        engine.run()
        np.testing.assert_allclose(
            engine.read(output).astype(np.float32),
            reference(digits, network, inputs),
            atol=TOLERANCE,
            rtol=TOLERANCE,
        )
    engine.close()


def test_buffers_live_as_long_as_the_engine(decoder: Engine, digits: Bundle) -> None:
    addresses = set()
    for seed in range(3):
        decoder.write("latent", values(digits, "decoder", 1, seed)["latent"])
        decoder.run()
        addresses.add(decoder.read("image").ctypes.data)
    assert len(addresses) == 1


def test_writing_copies(decoder: Engine, digits: Bundle) -> None:
    latent = values(digits, "decoder", 1)["latent"]
    expected = reference(digits, "decoder", {"latent": latent})
    decoder.write("latent", latent)
    latent[:] = 0
    decoder.run()
    np.testing.assert_allclose(decoder.read("image").astype(np.float32), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (np.zeros((1, 4, 8, 8), np.float16), r"float16\[1, 4, 8, 8\]"),
        (np.zeros((2, 4, 8, 8), np.float32), r"float32\[2, 4, 8, 8\]"),
    ],
    ids=["type", "shape"],
)
def test_another_type_or_shape_is_refused(decoder: Engine, wrong: NDArray[Any], found: str) -> None:
    expected = r"float32\[1, 4, 8, 8\]"
    message = rf"latent: got {found}, but the engine was opened for {expected}"
    with pytest.raises(EngineError, match=message):
        decoder.write("latent", wrong)


def test_unknown_tensors_are_named(decoder: Engine) -> None:
    with pytest.raises(EngineError, match="the decoder has no input 'image'; expected latent"):
        decoder.write("image", np.zeros(1))
    with pytest.raises(EngineError, match="the decoder has no output 'latent'; expected image"):
        decoder.read("latent")


def test_a_closed_engine_says_so(decoder: Engine) -> None:
    decoder.close()
    for use in (
        decoder.run,
        lambda: decoder.read("image"),
        lambda: decoder.write("latent", np.zeros((1, 4, 8, 8), np.float32)),
    ):
        with pytest.raises(EngineError, match="the decoder engine is closed"):
            use()


class Batch:
    """Random latents and conditions of a batch, from a seed."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.start, self.anchor, self.noise = generator.standard_normal(
            (3, BATCH, *bundle.latent_shape)
        ).astype(np.float32)
        *self.classes, self.null = [
            0.1 * generator.standard_normal((STEPS, bundle.condition_width)).astype(np.float32)
            for _ in range(BATCH + 1)
        ]

    def load(self, denoiser: Denoiser) -> None:
        denoiser.load(self.start, self.anchor, self.noise, self.classes, self.null)

    def after(self, bundle: Bundle, latent: NDArray[Any], k: int) -> NDArray[Any]:
        """Return the latent after step k by the reference."""
        by_class = np.stack([rows[k - 1] for rows in self.classes])
        inputs = {
            "latent": latent,
            "anchor": self.anchor,
            "noise": self.noise,
            "condition": np.stack([by_class, np.stack([self.null[k - 1]] * BATCH)]),
            "coefficients": table(bundle)[k - 1],
        }
        return reference(bundle, "denoiser", inputs)


def table(bundle: Bundle) -> NDArray[np.float32]:
    return Schedule(bundle.process, RECIPE, bundle.layout).table


@pytest.fixture
def denoiser(session: Session, digits: Bundle) -> Iterator[Denoiser]:
    opened = session.open_denoiser(table(digits), STEPS)
    yield opened
    opened.close()


def test_every_batch_is_denoised_alike(denoiser: Denoiser, digits: Bundle) -> None:
    """Two batches and the first again: nothing captured, alternated or carried is left behind."""
    finals = []
    for seed in (0, 1, 0):
        batch = Batch(digits, seed)
        batch.load(denoiser)
        assert list(denoiser.run()) == [5, 4, 3, 2, 1]
        expected = batch.start
        for k in range(STEPS, 0, -1):
            expected = batch.after(digits, expected, k)
        finals.append(denoiser.latent().copy())
        np.testing.assert_allclose(finals[-1], expected, atol=TOLERANCE * np.abs(expected).max())
    np.testing.assert_array_equal(finals[0], finals[2])


def test_a_closed_denoiser_says_so_in_the_middle_of_a_run_too(
    denoiser: Denoiser, digits: Bundle
) -> None:
    Batch(digits, 0).load(denoiser)
    begun = denoiser.run()
    next(begun)
    denoiser.close()
    for use in (lambda: next(begun), lambda: next(denoiser.run()), denoiser.latent):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_step_alone_is_the_step_of_a_run(denoiser: Denoiser, digits: Bundle) -> None:
    """In any order and on any latent, every step reads its own row and conditions.

    A later run is none the worse for it.
    """
    batch, generator = Batch(digits, 3), np.random.default_rng(4)
    batch.load(denoiser)
    for k in (2, 5, 3, 3):
        latent = generator.standard_normal(batch.start.shape).astype(np.float32)
        expected = batch.after(digits, latent, k)
        np.testing.assert_allclose(
            denoiser.step(k, latent), expected, atol=TOLERANCE * np.abs(expected).max()
        )
    chained = batch.start
    for k in range(STEPS, 0, -1):
        chained = denoiser.step(k, chained).copy()
    batch.load(denoiser)
    assert list(denoiser.run()) == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(denoiser.latent(), chained)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_graph_of_another_network_is_the_bundles_fault(
    digits: Bundle, tmp_path: Path, network: NetworkName, engine: str
) -> None:
    folder = with_another_graph(digits, network, tmp_path / "swapped")
    listed = r"but bundle\.json lists \w+: .*; export the model again"
    with pytest.raises(BundleError, match=rf"{network}\.onnx: reads \w+: .*, {listed}"):
        Recoverer(Bundle.open(folder), engine=engine)


@pytest.mark.parametrize(("engine", "title"), [("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_a_batch_that_no_memory_holds_is_short_of_memory(
    digits: Bundle, engine: str, title: str
) -> None:
    message = f"out of memory: {title} cannot give the denoiser .*Unable to allocate .* --batch"
    with pytest.raises(DeviceMemoryError, match=message):
        Recoverer(digits, engine=engine, batch=10**12)
