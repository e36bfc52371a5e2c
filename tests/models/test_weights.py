"""Which files of weights are read: shards, torch files and variants, but not LoRAs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model
from tests.models.conftest import WEIGHTS, refusal


def test_shards_and_torch_files_are_read(pipeline: Path, own_weights: str) -> None:
    part = pipeline / "transformer"
    torch.save(load_file(part / WEIGHTS), part / "diffusion_pytorch_model.bin")
    (part / WEIGHTS).unlink()
    assert weights_sha256(load_model(str(pipeline))) == own_weights
    module = load_model(str(pipeline)).transformer
    (part / "diffusion_pytorch_model.bin").unlink()
    module.save_pretrained(part, max_shard_size="40kB")
    assert len(list(part.glob("*.safetensors"))) > 2
    assert weights_sha256(load_model(str(pipeline))) == own_weights
    first = sorted(part.glob("*.safetensors"))[0]
    first.unlink()
    assert f"has no {first.name}" in refusal(pipeline)


def test_a_folder_of_the_fp16_variant_alone_is_read_with_a_note(pipeline: Path) -> None:
    for part in ("transformer", "vae"):
        state = {k: v.half() for k, v in load_file(pipeline / part / WEIGHTS).items()}
        save_file(state, pipeline / part / "diffusion_pytorch_model.fp16.safetensors")
        if part == "transformer":
            assert load_model(str(pipeline)).notes == ()  # float32 is preferred
        (pipeline / part / WEIGHTS).unlink()
    model = load_model(str(pipeline))
    assert [note.rpartition(": ")[2] for note in model.notes] == [
        "only the fp16 weights are there; they are read"
    ] * 2
    assert torch.equal(model.vae.decoder.conv_out.weight, state["decoder.conv_out.weight"].float())
    (pipeline / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert f"{pipeline / 'vae'}: has no diffusion_pytorch_model.safetensors or " in refusal(
        pipeline
    )


def test_shards_are_read_before_one_file_as_in_diffusers(pipeline: Path, own_weights: str) -> None:
    """`save_pretrained` into a folder leaves what was saved there in one file."""
    part = pipeline / "transformer"
    module = load_model(str(pipeline)).transformer
    earlier = {name: tensor + 1 for name, tensor in load_file(part / WEIGHTS).items()}
    save_file(earlier, part / WEIGHTS, {"format": "pt"})
    module.save_pretrained(part, max_shard_size="40kB")
    assert (part / WEIGHTS).is_file()
    model = load_model(str(pipeline))
    assert weights_sha256(model) == own_weights
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
    assert weights_sha256(again) == own_weights
    assert again.notes == ()


@pytest.mark.parametrize(
    "name", ["pytorch_lora_weights.safetensors", "transformer/adapter_model.bin"]
)
def test_a_lora_that_is_not_read_is_noted(pipeline: Path, own_weights: str, name: str) -> None:
    (pipeline / name).touch()
    model = load_model(str(pipeline))
    assert weights_sha256(model) == own_weights
    (note,) = model.notes
    assert note.startswith(f"{pipeline / name}: is a LoRA and is not read")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ("{}", "is not an index of shards"),
        ('{"weight_map": {"a": "../a.bin"}}', "a shard's name is not a plain file name"),
    ],
)
def test_a_damaged_index_of_shards_is_refused(pipeline: Path, text: str, complaint: str) -> None:
    (pipeline / "transformer" / f"{WEIGHTS}.index.json").write_text(text)
    assert complaint in refusal(pipeline)
