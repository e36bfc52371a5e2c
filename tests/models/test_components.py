"""Pipelines on disk: every tensor is the file's, and what does not fit is named before export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file

from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model
from diver_trt.models.vae import lean
from tests.edited_json import json_file
from tests.models.conftest import WEIGHTS, State, edit, refusal

BLOCK_TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"


def rewrite(part: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(part / WEIGHTS)), part / WEIGHTS, {"format": "pt"})


def test_a_whole_pipeline_is_loaded_as_it_is_without_a_note(random_pipeline: Path) -> None:
    model = load_model(str(random_pipeline))
    assert model.notes == ()
    for part, module in (("transformer", model.transformer), ("vae", model.vae)):
        stored = load_file(random_pipeline / part / WEIGHTS)
        found = module.state_dict()
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())


# --- weights


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("transformer", "transformer_blocks.1.ff.net.2.weight"),
        ("transformer", "proj_out_2.bias"),
        ("vae", "decoder.conv_out.weight"),
        ("vae", "encoder.mid_block.attentions.0.to_q.weight"),
    ],
)
def test_a_missing_tensor_is_named(part: str, name: str, pipeline: Path) -> None:
    rewrite(pipeline / part, lambda state: {k: v for k, v in state.items() if k != name})
    where = pipeline / part
    assert f"{where}: the tensors are not those of config.json: 1 missing ({name})" in refusal(
        pipeline
    )


def test_a_missing_tensor_of_another_vae_is_named(pipeline: Path, random_pipeline: Path) -> None:
    rewrite(pipeline / "vae", lambda s: {k: v for k, v in s.items() if k != "decoder.conv_in.bias"})
    message = refusal(random_pipeline, vae=str(pipeline / "vae"))
    assert "1 missing (decoder.conv_in.bias)" in message


def test_other_faults_of_weights_are_named(pipeline: Path) -> None:
    part = pipeline / "transformer"
    whole = (part / WEIGHTS).read_bytes()

    def fault(change: Callable[[State], State]) -> str:
        (part / WEIGHTS).write_bytes(whole)
        rewrite(part, change)
        return refusal(pipeline)

    name = "transformer_blocks.1.ff.net.2.weight"
    assert "1 unexpected (lora.up)" in fault(lambda s: {**s, "lora.up": torch.ones(2)})
    assert f"1 of another shape ({name} [24, 95] instead of [24, 96])" in fault(
        lambda s: {**s, name: s[name][:, 1:].contiguous()}
    )
    assert f"{WEIGHTS}: {name} holds values that are NaN" in fault(
        lambda s: {**s, name: s[name] * float("nan")}
    )
    assert f"{WEIGHTS}: {name} is uint8, expected float32" in fault(
        lambda s: {**s, name: s[name].byte()}
    )
    assert f"{WEIGHTS}: {name} is float8_e4m3fn, expected float32" in fault(
        lambda s: {**s, name: s[name].to(torch.float8_e4m3fn)}
    )
    assert f"{BLOCK_TABLE} has 7 rows for 7 classes, so there is no null class" in fault(
        lambda s: {
            k: v[:-1].contiguous() if k.endswith("table.weight") else v for k, v in s.items()
        }
    )


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrappers_prefix_is_taken_off_with_a_note(
    part: str, prefix: str, pipeline: Path, own_weights: str
) -> None:
    rewrite(pipeline / part, lambda state: {prefix + name: v for name, v in state.items()})
    model = load_model(str(pipeline))
    assert model.notes == (f"{pipeline / part}: the prefix {prefix!r} is taken off the names",)
    assert weights_sha256(model) == own_weights


def test_a_name_with_and_without_a_prefix_is_refused(pipeline: Path) -> None:
    rewrite(
        pipeline / "transformer",
        lambda s: {
            "proj_out_1.bias": s["proj_out_1.bias"].clone(),
            **{"module." + k: v for k, v in s.items()},
        },
    )
    assert "unexpected (module." in refusal(pipeline)


def test_a_position_embedding_in_the_file_is_used(pipeline: Path, own_weights: str) -> None:
    table = load_model(str(pipeline)).transformer.pos_embed.pos_embed
    rewrite(pipeline / "transformer", lambda s: {**s, "pos_embed.pos_embed": table.clone()})
    same = load_model(str(pipeline))
    assert same.notes == ()
    assert weights_sha256(same) == own_weights
    rewrite(pipeline / "transformer", lambda s: {**s, "pos_embed.pos_embed": table + 1})
    other = load_model(str(pipeline))
    assert "is not the sine table (up to 1 off); it is used" in other.notes[0]
    weights_sha256(other)
    assert torch.equal(other.transformer.pos_embed.pos_embed, table + 1)
    rewrite(pipeline / "transformer", lambda s: {**s, "pos_embed.pos_embed": torch.ones(1, 9, 24)})
    assert "pos_embed [1, 9, 24] instead of [1, 16, 24]" in refusal(pipeline)


def test_old_names_of_the_vaes_attention_mean_the_new_ones(
    pipeline: Path, own_weights: str
) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    rewrite(pipeline / "vae", lambda state: {renamed(name): v for name, v in state.items()})
    assert "mid_block.attentions.0.query.weight" in str(
        load_file(pipeline / "vae" / WEIGHTS).keys()
    )
    assert weights_sha256(load_model(str(pipeline))) == own_weights


# --- the transformer's configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 1}, "num_layers is 1, but the weights have 2 transformer blocks"),
        ({"num_layers": 3}, "num_layers is 3, but the weights have 2 transformer blocks"),
        ({"num_embeds_ada_norm": 9}, "embedding_table.weight [8, 24] instead of [10, 24]"),
        ({"num_embeds_ada_norm": 8}, "has 8 rows for 8 classes, so there is no null class"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm is None, expected a whole number"),
        ({"attention_head_dim": 24}, "instead of [48, 4, 2, 2]"),
        ({"out_channels": None}, "proj_out_2.weight [32, 24] instead of [16, 24]"),
        ({"sample_size": [8, 8]}, "sample_size is [8, 8], expected a whole number"),
        ({"sample_size": 7}, "sample_size is 7, expected a multiple of patch_size 2"),
        ({"norm_type": "ada_norm"}, "not a configuration of DiTTransformer2DModel: Forward pass"),
        ({"_class_name": "PixArtTransformer2DModel"}, "holds a PixArtTransformer2DModel, expected"),
        ({"quantization_config": {"load_in_8bit": True}}, "its weights are quantised"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(
    fields: dict[str, Any], message: str, pipeline: Path
) -> None:
    edit(pipeline / "transformer" / "config.json", **fields)
    assert message in refusal(pipeline)


def test_the_class_of_published_dits_is_read_and_its_empty_fields_are_not_noted(
    pipeline: Path, own_weights: str
) -> None:
    edit(
        pipeline / "transformer" / "config.json",
        _class_name="Transformer2DModel",
        cross_attention_dim=None,
        double_self_attention=False,
        attention_type="default",
    )
    index = pipeline / "model_index.json"
    edit(index, transformer=["diffusers", "Transformer2DModel"], safety_checker=[None, None])
    model = load_model(str(pipeline))
    assert model.notes == ()
    assert weights_sha256(model) == own_weights
    edit(pipeline / "transformer" / "config.json", interpolation_scale=2)
    (note,) = load_model(str(pipeline)).notes
    assert note.endswith("DiTTransformer2DModel does not have interpolation_scale=2; ignored")


# --- the autoencoder


def with_vae(pipeline: Path, vae: Any) -> Path:
    shutil.rmtree(pipeline / "vae")
    vae.save_pretrained(pipeline / "vae")
    edit(pipeline / "model_index.json", vae=["diffusers", type(vae).__name__])
    return pipeline


def kl(**config: Any) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    return AutoencoderKL(
        **blocks,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        **config,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
            ),
            "AutoencoderTiny, expected AutoencoderKL",
        ),
        (lambda: VQModel(latent_channels=4), "VQModel, expected AutoencoderKL"),
        (lambda: kl(latent_channels=16), "has 16 latent channels, expected the transformer's 4"),
        (lambda: kl(in_channels=1, out_channels=1), "in_channels is 1, expected 3"),
        (lambda: kl(latents_mean=[0.1, 0.2]), "latents_mean is [0.1, 0.2], expected 4 numbers"),
        (
            lambda: kl(latents_mean=[0.1] * 4, shift_factor=0.2),
            "has both shift_factor and latents_m",
        ),
        (lambda: kl(scaling_factor=0.0), "scaling_factor is 0.0, expected a positive number"),
        (lambda: kl(latents_std=[]), "latents_std is [], expected 4 positive numbers"),
        (lambda: kl(scaling_factor=None), "scaling_factor is None, expected a positive number"),
    ],
)
def test_another_autoencoder_is_refused_alone_and_in_a_pipeline(
    make: Callable[[], Any], message: str, pipeline: Path, random_pipeline: Path
) -> None:
    with_vae(pipeline, make())
    assert message in refusal(pipeline)
    assert message in refusal(random_pipeline, vae=str(pipeline / "vae"))


def test_a_pipeline_given_as_an_autoencoder_is_distinguished_from_one(
    random_pipeline: Path,
) -> None:
    message = refusal(random_pipeline, vae=str(random_pipeline))
    assert (
        f"it is a whole pipeline, expected the autoencoder in it: {random_pipeline}/vae" in message
    )


def test_an_assumed_scaling_factor_is_noted(pipeline: Path) -> None:
    path = pipeline / "vae" / "config.json"
    with json_file(path) as config:
        del config["scaling_factor"]
    model = load_model(str(pipeline))
    assert model.vae.config.scaling_factor == 0.18215
    assert model.notes[0].endswith("has no scaling_factor; 0.18215, Stable Diffusion's, is assumed")


# --- the index


NAMES = {str(i): f"class {i}" for i in range(7)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {**NAMES, "7": "more"}}, "id2label has a class 7: it names 8 classes"),
        ({"id2label": dict(list(NAMES.items())[:-1])}, "id2label has no class 6: it names 6"),
        (
            {"id2label": {str(i + (i > 2)): "name" for i in range(7)}},
            "id2label has no class 3: it names 7 classes, the transformer has 7",
        ),
        (
            {"id2label": {**NAMES, "03": "twice"}},
            "id2label has the key '03', expected class numbers",
        ),
        ({"id2label": {**NAMES, "²": "odd"}}, "id2label has the key '²', expected class numbers"),
        ({"id2label": {**NAMES, "1" * 10_000: "long"}}, "…, expected class numbers"),
        ({"id2label": {**NAMES, "5": 5}}, "id2label names class 5 5, expected a text on one line"),
        ({"id2label": {**NAMES, "5": "a\nb"}}, "id2label names class 5 'a\\nb', expected a text"),
        ({"id2label": list(NAMES.values())}, "id2label is a list, expected an object"),
        ({"transformer": ["mine", "MyDiT"]}, "the transformer is mine.MyDiT, expected DiTTransf"),
        ({"scheduler": [None, None]}, "the scheduler is missing, expected one of diffusers'"),
        ({"vae": [None, None]}, "the vae is missing, expected AutoencoderKL. Choose another"),
        ({"_class_name": ["mine", "DiTPipeline"]}, "holds a ['mine', 'DiTPipeline'], expected a"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    fields: dict[str, Any], message: str, pipeline: Path
) -> None:
    edit(pipeline / "model_index.json", **fields)
    assert message in refusal(pipeline)


def test_names_come_in_the_order_of_the_classes(pipeline: Path) -> None:
    edit(pipeline / "model_index.json", id2label=dict(reversed(NAMES.items())))
    assert load_model(str(pipeline)).class_names == tuple(NAMES.values())
    edit(pipeline / "model_index.json", id2label=None)
    assert load_model(str(pipeline)).class_names is None


def test_a_scheduler_of_another_kind_is_refused_whole(pipeline: Path) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    edit(pipeline / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    assert "the scheduler is FlowMatchEulerDiscreteScheduler, expected one" in refusal(pipeline)
    shutil.rmtree(pipeline / "scheduler")
    assert "has no scheduler_config.json" in refusal(pipeline)


def test_the_norms_of_an_fp16_vae_keep_their_float32_weights(random_pipeline: Path) -> None:
    vae = load_model(str(random_pipeline)).vae
    for network in (vae.encoder, vae.decoder):
        own = dict(network.named_parameters())
        kept = {
            name.replace(".norm.weight", ".weight"): parameter
            for name, parameter in lean(network, torch.float16).named_parameters()
            if parameter.dtype == torch.float32
        }
        norms = [name for name in own if "norm" in name and name.endswith(".weight")]
        # The attention's norm has another name in the fused module.
        assert sum(name in kept for name in norms) == len(norms) - 1 > 0
        assert all(kept[name] is own[name] for name in norms if name in kept)
