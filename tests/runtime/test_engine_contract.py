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
from diver_trt.contract import HALF_PRECISIONS
from diver_trt.errors import EngineError
from diver_trt.method.schedule import Schedule
from diver_trt.recipe import PRESETS
from diver_trt.runtime.backends.onnx import OnnxSession
from diver_trt.runtime.backends.openvino import OpenVinoSession
from diver_trt.runtime.backends.tensorrt.cuda import Cuda
from diver_trt.runtime.backends.tensorrt.session import TrtSession
from diver_trt.runtime.engine import Session
from tests.conftest import DIGITS_MODEL
from tests.gpu.device import needs_cuda_provider, needs_gpu, rtx_session
from tests.stand_in import StandInCuda, stand_in_tensorrt, write_stand_in_plan

BATCH = 2
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
    api = StandInCuda()
    plan = write_stand_in_plan(bundle, BATCH, tmp_path / "plan")
    return TrtSession(bundle, plan, BATCH, stand_in_tensorrt(api), Cuda(api))


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


def test_buffers_live_as_long_as_the_engine(session: Session, digits: Bundle) -> None:
    engine = session.open("decoder")
    addresses = set()
    for seed in range(3):
        engine.write("latent", values(digits, "decoder", 1, seed)["latent"])
        engine.run()
        addresses.add(engine.read("image").ctypes.data)
    assert len(addresses) == 1
    engine.close()


def test_writing_copies(session: Session, digits: Bundle) -> None:
    engine = session.open("decoder")
    latent = values(digits, "decoder", 1)["latent"]
    expected = reference(digits, "decoder", {"latent": latent})
    engine.write("latent", latent)
    latent[:] = 0
    engine.run()
    np.testing.assert_allclose(engine.read("image").astype(np.float32), expected, atol=TOLERANCE)
    engine.close()


def test_another_type_or_shape_is_refused(session: Session) -> None:
    engine = session.open("decoder")
    for wrong, found in (
        (np.zeros((1, 4, 8, 8), np.float16), r"float16\[1, 4, 8, 8\]"),
        (np.zeros((2, 4, 8, 8), np.float32), r"float32\[2, 4, 8, 8\]"),
    ):
        with pytest.raises(
            EngineError,
            match=rf"latent: got {found}, but the engine was opened for float32\[1, 4, 8, 8\]",
        ):
            engine.write("latent", wrong)
    engine.close()


def test_unknown_tensors_are_named(session: Session) -> None:
    engine = session.open("decoder")
    with pytest.raises(EngineError, match="the decoder has no input 'image'; expected latent"):
        engine.write("image", np.zeros(1))
    with pytest.raises(EngineError, match="the decoder has no output 'latent'; expected image"):
        engine.read("latent")
    engine.close()


def test_a_closed_engine_says_so(session: Session) -> None:
    engine = session.open("decoder")
    engine.close()
    engine.close()
    for use in (
        engine.run,
        lambda: engine.read("image"),
        lambda: engine.write("latent", np.zeros((1, 4, 8, 8), np.float32)),
    ):
        with pytest.raises(EngineError, match="the decoder engine is closed"):
            use()


def one_step(
    bundle: Bundle,
    latent: NDArray[Any],
    anchor: NDArray[Any],
    noise: NDArray[Any],
    conditions: list[NDArray[Any]],  # of each image, then of the null class: [K, width]
    table: NDArray[Any],
    k: int,
) -> NDArray[Any]:
    """Return the latent after step k by the reference."""
    by_class = np.stack([rows[k - 1] for rows in conditions[:BATCH]])
    by_null = np.stack([conditions[BATCH][k - 1]] * BATCH)
    inputs = {
        "latent": latent,
        "anchor": anchor,
        "noise": noise,
        "condition": np.stack([by_class, by_null]),
        "coefficients": table[k - 1],
    }
    return reference(bundle, "denoiser", inputs)


def test_every_batch_is_denoised_alike(session: Session, digits: Bundle) -> None:
    """Two batches and the first again: nothing captured, alternated or carried is left behind."""
    recipe = replace(
        PRESETS["matched"], steps=10, inherit_step=5, start_step=5, window=(5, 2), guide="noised"
    )
    table = Schedule(digits.process, recipe, digits.layout).table
    denoiser = session.open_denoiser(table, 5)
    finals = []
    for seed in (0, 1, 0):
        generator = np.random.default_rng(seed)
        start, anchor, noise = generator.standard_normal((3, BATCH, 4, 8, 8)).astype(np.float32)
        tables = [
            0.1 * generator.standard_normal((5, digits.condition_width)).astype(np.float32)
            for _ in range(BATCH + 1)
        ]
        denoiser.load(start, anchor, noise, tables[:BATCH], tables[BATCH])
        assert list(denoiser.run()) == [5, 4, 3, 2, 1]
        expected = start
        for k in range(5, 0, -1):
            expected = one_step(digits, expected, anchor, noise, tables, table, k)
        finals.append(denoiser.latent().copy())
        np.testing.assert_allclose(finals[-1], expected, atol=TOLERANCE * np.abs(expected).max())
    np.testing.assert_array_equal(finals[0], finals[2])
    denoiser.close()
    denoiser.close()
    for use in (lambda: next(denoiser.run()), denoiser.latent):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_step_alone_is_the_step_of_a_run(session: Session, digits: Bundle) -> None:
    """In any order and on any latent, every step reads its own row and conditions.

    A later run is none the worse for it.
    """
    recipe = replace(
        PRESETS["matched"], steps=10, inherit_step=5, start_step=5, window=(4, 2), guide="noised"
    )
    table = Schedule(digits.process, recipe, digits.layout).table
    generator = np.random.default_rng(3)
    start, anchor, noise = generator.standard_normal((3, BATCH, 4, 8, 8)).astype(np.float32)
    tables = [
        0.1 * generator.standard_normal((5, digits.condition_width)).astype(np.float32)
        for _ in range(BATCH + 1)
    ]
    denoiser = session.open_denoiser(table, 5)
    denoiser.load(start, anchor, noise, tables[:BATCH], tables[BATCH])
    for k in (2, 5, 3, 3):
        latent = generator.standard_normal(start.shape).astype(np.float32)
        expected = one_step(digits, latent, anchor, noise, tables, table, k)
        np.testing.assert_allclose(
            denoiser.step(k, latent), expected, atol=TOLERANCE * np.abs(expected).max()
        )
    chained = start
    for k in range(5, 0, -1):
        chained = denoiser.step(k, chained).copy()
    denoiser.load(start, anchor, noise, tables[:BATCH], tables[BATCH])
    assert list(denoiser.run()) == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(denoiser.latent(), chained)
    denoiser.close()
