"""Shared by the tests of models: a DiT in its own layout, and files to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diver_trt.errors import ExportError
from diver_trt.models import ModelOptions
from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model
from diver_trt.models.dit_checkpoint import load_dit_checkpoint
from tests.models.original_dit import OriginalDiT

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"

# What is noted of the small `OriginalDiT` whatever file it is in
BLOCKS = "it has 2 blocks, where DiT-S has 12"
ROWS = (
    "nothing in the file states how many classes it has; "
    "its label table of 8 rows is taken for 7 classes and a null class"
)
ASSUMED = "nothing in the file states what it predicts; taken to be a DiT that predicts the noise"


@pytest.fixture(scope="session")
def dit() -> OriginalDiT:
    torch.manual_seed(0)
    return OriginalDiT().eval()


@pytest.fixture
def weights(dit: OriginalDiT) -> State:
    """The tensors of `dit` under DiT's names, for a test to change."""
    return {name: tensor.clone() for name, tensor in dit.state_dict().items()}


@pytest.fixture
def pipeline(random_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the random pipeline, for a test to change."""
    return shutil.copytree(random_pipeline, tmp_path / "model")


@pytest.fixture(scope="session")
def own_weights(random_pipeline: Path) -> str:
    """The hash of the random pipeline's weights."""
    return weights_sha256(load_model(str(random_pipeline)))


def refusal(pipeline: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        load_model(str(pipeline), ModelOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(held: Any, path: Path) -> Path:
    torch.save(held, path)
    return path


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def edit(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@torch.no_grad()
def is_the_network(path: Path, dit: OriginalDiT) -> bool:
    """Return whether a file loads to the function that the original network computes."""
    transformer = load_dit_checkpoint(path)[0].eval()
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    draw = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 4, 8, 8, generator=draw)
    timestep, label = torch.tensor([20, 980]), torch.tensor([3, 7])
    found, expected = transformer(latent, timestep, label).sample, dit(latent, timestep, label)
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


def assert_same_steps(found: Sequence[NDArray[np.float32]], expected: Sequence[Tensor]) -> None:
    """Compare the start and the latent after each step with those of another sampler."""
    for k, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        reference = theirs.numpy()
        assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max(), f"{k} steps on"
