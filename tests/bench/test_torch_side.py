"""The torch loop: its own step against the exporter's networks, and its types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diver_trt.bench.jobs import Work, work_for
from diver_trt.bench.torch_side import TorchModel, TorchNetwork
from diver_trt.bundle import Bundle
from diver_trt.models import ModelOptions
from diver_trt.models.base import BaseModel
from diver_trt.models.exported import load_exported
from diver_trt.recipe import Recipe
from diver_trt.runtime.recoverer import Recoverer
from tests.conftest import DIGITS_MODEL

FEW = Recipe().scaled_to(4)


@pytest.fixture(scope="module")
def model(digits: Bundle) -> BaseModel:
    return load_exported(digits, str(DIGITS_MODEL), ModelOptions(timestep_frequencies="diffusers"))


@pytest.fixture(scope="module")
def work(digits: Bundle) -> Work:
    return work_for(digits, 2, FEW)


def final_latent(model: TorchModel, work: Work) -> np.ndarray:
    *_, last = model.steps(work.latents, work.latents, work.latents, work.labels, work.schedule)
    fetched: np.ndarray = last.numpy()
    return fetched


def test_it_encodes_steps_and_decodes_as_an_engine_does(
    digits: Bundle, model: BaseModel, work: Work
) -> None:
    torch_model = TorchModel(model)
    with Recoverer(digits, FEW, engine="onnx", batch=2) as recoverer:
        np.testing.assert_allclose(
            torch_model.encode(work.pixels), recoverer.encode(work.images), rtol=1e-3, atol=1e-4
        )
        for _ in recoverer.denoise(work.latents, work.latents, work.latents, work.labels):
            pass
        expected = recoverer.latent.copy()
    found = final_latent(torch_model, work)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_in_float16_it_gives_float32_near_the_others(model: BaseModel, work: Work) -> None:
    single, half = TorchModel(model), TorchModel(model, half=True)
    for exact, rounded in (
        (single.encode(work.pixels), half.encode(work.pixels)),
        (final_latent(single, work), final_latent(half, work)),
        (single.decode(work.latents), half.decode(work.latents)),
    ):
        assert rounded.dtype == np.float32
        # A float16 has eleven bits; these networks lose about three of them.
        assert np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)
    assert torch.get_default_dtype() == torch.float32
    assert next(model.parts[0].parameters()).dtype == torch.float32


def test_a_step_begins_again_after_the_last_one(model: BaseModel, work: Work) -> None:
    network = TorchNetwork(TorchModel(model), "denoiser", work)
    assert all(network() > 0 for _ in range(FEW.start_step + 1))


def test_only_a_compiled_model_is_compiled(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode, dynamic: modes.append(mode))
    assert TorchModel(model).name == "torch eager"
    assert modes == []
    assert TorchModel(model, compiled=True).name == "torch compiled"
    assert modes == ["max-autotune"] * 3  # the transformer, and the VAE's encoder and decoder


def test_each_network_of_a_compiled_model_runs_compiled(
    model: BaseModel, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0

    def compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def counted(*arguments: Any, **settings: Any) -> Any:
            nonlocal runs
            runs += 1
            return function(*arguments, **settings)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)  # which takes minutes
    torch_model = TorchModel(model, compiled=True)
    for name in ("encoder", "denoiser", "decoder"):
        before = runs
        TorchNetwork(torch_model, name, work)()
        assert runs == before + 1, name
