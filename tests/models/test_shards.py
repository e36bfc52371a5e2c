"""Weights beside those that are read: shards beside one file, and LoRAs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_shards_are_read_before_one_file_as_in_diffusers(
    random_pipeline: Path, tmp_path: Path
) -> None:
    """`save_pretrained` into a folder leaves what was saved there in one file."""
    pipeline = shutil.copytree(random_pipeline, tmp_path / "model")
    part = pipeline / "transformer"
    expected = weights_sha256(load_model(str(pipeline)))
    module = load_model(str(pipeline)).transformer
    earlier = {name: tensor + 1 for name, tensor in load_file(part / WEIGHTS).items()}
    save_file(earlier, part / WEIGHTS, {"format": "pt"})
    module.save_pretrained(part, max_shard_size="40kB")
    assert (part / WEIGHTS).is_file()
    model = load_model(str(pipeline))
    assert weights_sha256(model) == expected
    assert model.notes == (
        f"{part}: has {WEIGHTS} and shards, which may differ; the shards are read, as in diffusers",
    )
    library = DiTTransformer2DModel.from_pretrained(part).proj_out_2.weight
    assert torch.equal(model.transformer.proj_out_2.weight, library)
    # The other way round it deletes the shards, and leaves their index.
    module.save_pretrained(part)
    assert len(list(part.glob("*.safetensors"))) == 1
    assert (part / f"{WEIGHTS}.index.json").is_file()
    again = load_model(str(pipeline))
    assert weights_sha256(again) == expected
    assert again.notes == ()


@pytest.mark.parametrize(
    "name", ["pytorch_lora_weights.safetensors", "transformer/adapter_model.bin"]
)
def test_a_lora_that_is_not_read_is_noted(random_pipeline: Path, tmp_path: Path, name: str) -> None:
    pipeline = shutil.copytree(random_pipeline, tmp_path / "model")
    (pipeline / name).touch()
    model = load_model(str(pipeline))
    assert weights_sha256(model) == weights_sha256(load_model(str(random_pipeline)))
    (note,) = model.notes
    assert note.startswith(f"{pipeline / name}: is a LoRA and is not read")
