"""Loading models: DiT's checkpoint layout, and the frequencies that weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from diver_trt.bundle import Bundle
from diver_trt.errors import ExportError
from diver_trt.models import ModelOptions
from diver_trt.models.dit import _trained_frequencies, load_model
from tests.models.conftest import saved
from tests.models.original_dit import OriginalDiT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(dit: OriginalDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(dit.state_dict(), tmp_path_factory.mktemp("checkpoints") / "DiT-tiny.pt")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, random_pipeline: Path, export_to: Callable[..., Bundle]) -> Bundle:
    return export_to(checkpoint, vae=str(random_pipeline / "vae"))


def session(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        bundle.path / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )


def test_the_exported_conditioner_computes_dits_own_formula(
    dit: OriginalDiT, bundle: Bundle
) -> None:
    timestep, label = torch.tensor([0, 20, 100, 500, 980]), torch.tensor([0, 3, 6, 7, 1])
    (found,) = session(bundle, "conditioner").run(
        None, {"time": timestep.numpy().astype(np.float32), "label": label.numpy()}
    )
    with torch.no_grad():
        expected = dit.modulations(timestep, label).numpy()
    assert bundle.timestep_frequencies == "dit"
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_with_diffusers_frequencies_it_would_be_another_model(
    dit: OriginalDiT, checkpoint: Path, random_pipeline: Path
) -> None:
    loaded = load_model(
        str(checkpoint),
        ModelOptions(vae=str(random_pipeline / "vae"), timestep_frequencies="diffusers"),
    )
    latent, timestep, label = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([500, 980]),
        torch.tensor([1, 2]),
    )
    with torch.no_grad():
        wrong = loaded.transformer(latent, timestep, label).sample
        right = dit(latent, timestep, label)
    assert (wrong - right).norm() > 1e-2 * right.norm()


def test_the_exported_step_runs_the_original_network(dit: OriginalDiT, bundle: Bundle) -> None:
    """A step can return the class-conditional prediction itself.

    It does with w = 1, a = 0, b = 1 and no semantic guidance.
    """
    latent = torch.randn(2, 4, 8, 8)
    timestep, label = torch.tensor([500, 500]), torch.tensor([1, 6])
    with torch.no_grad():
        condition = torch.stack(
            [dit.modulations(timestep, label), dit.modulations(timestep, torch.tensor([7, 7]))]
        )
        expected = dit(latent, timestep, label)[:, :4].numpy()
    row = np.array([1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=np.float32)
    inputs = {
        "latent": latent.numpy(),
        "anchor": latent.numpy(),
        "noise": latent.numpy(),
        "condition": condition.numpy(),
        "coefficients": row,
    }
    (found,) = session(bundle, "denoiser").run(None, inputs)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("layers", "heads", "head_dim", "classes", "expected"),
    [(28, 16, 72, 1000, "dit"), (28, 16, 72, 10, "diffusers"), (3, 2, 12, 7, "diffusers")],
)
def test_the_default_frequencies_follow_the_weights_origin(
    layers: int, heads: int, head_dim: int, classes: int, expected: str
) -> None:
    transformer: Any = SimpleNamespace(
        config=SimpleNamespace(
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_embeds_ada_norm=classes,
        )
    )
    assert _trained_frequencies(transformer)[0] == expected


def test_a_directory_that_holds_no_dit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no model_index\.json"):
        load_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(
        ExportError, match="holds a StableDiffusionPipeline, expected a DiTPipeline"
    ):
        load_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ExportError, match=r"model_index\.json: is not valid JSON"):
        load_model(str(tmp_path))
