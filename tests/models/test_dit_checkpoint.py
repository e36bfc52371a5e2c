"""Files in DiT's layout: each is the model that it says, or it is refused."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diver_trt.errors import ExportError
from diver_trt.export import exporter
from diver_trt.models import ModelOptions
from diver_trt.models.base import weights_sha256
from diver_trt.models.dit import load_model
from diver_trt.models.dit_checkpoint import load_dit_checkpoint
from tests.cli.command import fails, run
from tests.models.conftest import ASSUMED, BLOCKS, ROWS, State, is_the_network, saved, under
from tests.models.original_dit import OriginalDiT

TABLE = "y_embedder.embedding_table.weight"


def test_other_containers_of_a_state_dict_are_read(
    dit: OriginalDiT, weights: State, tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "dit.safetensors")
    torch.save(weights, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert is_the_network(tmp_path / "dit.safetensors", dit)
    assert is_the_network(tmp_path / "old.ckpt", dit)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], Any]:
    return lambda state: {**state, name: change(state[name])}


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([torch.full_like(tensor[:1], value), tensor[1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.attn.qkv.bias"), r"1 missing \(blocks\.1\.attn\.qkv\.bias\)"),
        (without("pos_embed"), "pos_embed is missing"),
        (without(TABLE), f"{TABLE} is missing"),
        (
            lambda s: {**s, "a": torch.ones(1), **under("c.", s)},
            r"33 unexpected \(a, c\.pos_embed, c\.x_embedder\.proj\.weight and 30 more\)",
        ),
        (
            lambda s: {**s, "blocks.7.attn.proj.bias": torch.ones(384)},
            r"blocks\.2\.attn\.qkv\.weight.* 1 unexpected \(blocks\.7\.attn\.proj\.bias\)",
        ),
        (
            changed("blocks.0.mlp.fc1.weight", lambda t: t[:-1]),
            (
                r"1 of another shape "
                r"\(blocks\.0\.mlp\.fc1\.weight \[1535, 384\] instead of \[1536, 384\]\)"
            ),
        ),
        (
            changed("blocks.1.mlp.fc1.weight", filled(float("nan"))),
            r"blocks\.1\.mlp\.fc1\.weight holds values that are NaN",
        ),
        (changed(TABLE, filled(float("inf"))), f"{TABLE} holds values that are infinite"),
        (
            changed("blocks.0.attn.proj.weight", lambda t: t.double().fill_(1e300)),
            r"blocks\.0\.attn\.proj\.weight holds values that are infinite",
        ),
        (changed("final_layer.linear.bias", lambda t: t.to(torch.int8)), "bias is int8, expected"),
        (
            changed("blocks.0.attn.proj.weight", lambda t: t[:1].clone().expand(384, 384)),
            "has 147,456 values, but fewer are stored",
        ),
        # A weight of one value, which is not a counter
        (lambda s: {**s, "temperature": torch.tensor(0.1)}, r"1 unexpected \(temperature\)"),
        (changed("pos_embed", lambda t: t[:, :15]), "15 tokens, which is not a square number"),
        (lambda s: {**s, "projectors.0.0.weight": torch.ones(1)}, "REPA"),
        (lambda s: {"ema": [torch.ones(1)], "model": s}, "ema is a list without"),
        (
            lambda s: {"ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}},
            r"holds no x_embedder\.proj\.weight, but ema\.decay, ema\.shadow_params",
        ),
        (
            lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": [torch.ones(1)]}},
            r"ema is a dict without x_embedder\.proj\.weight, expected a state dict",
        ),
        (lambda s: {"a": s, "b": s}, r"holds several networks \(a, b\)"),
        (lambda s: [1], "holds a list, expected a DiT's state dict"),
        (lambda s: {"a": torch.zeros(1)}, r"holds no x_embedder\.proj\.weight, but a"),
        (
            lambda s: {**under("module.", s), "pos_embed": s["pos_embed"]},
            r"holds no x_embedder\.proj\.weight, but module\.pos_embed",
        ),
    ],
)
def test_a_file_that_is_not_a_whole_dit_is_refused_by_the_tensors_name(
    change: Callable[[State], Any], message: str, weights: State, tmp_path: Path
) -> None:
    path = saved(change(weights), tmp_path / "changed.pt")
    with pytest.raises(ExportError, match=message) as caught:
        load_dit_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_file_that_would_run_code_is_refused_by_what_it_refers_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x_embedder.proj.weight": RunsCode()}, "evil.pt")
    with pytest.raises(ExportError, match=r"refers to posix\.mkdir, which is not data"):
        load_dit_checkpoint(Path("evil.pt"))
    assert not Path("executed").exists()


def test_files_that_are_not_of_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such file"):
        load_dit_checkpoint(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ExportError, match="cannot be loaded safely as tensors"):
        load_dit_checkpoint(tmp_path / "text.pt")
    (tmp_path / "packed.pt").write_bytes(b"\x1f\x8b" + bytes(99))
    with pytest.raises(ExportError) as caught:  # and not torch's advice, weights_only=False
        load_dit_checkpoint(tmp_path / "packed.pt")
    assert str(caught.value).endswith("(it is not a file of torch.save, or a damaged one)")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    with pytest.raises(ExportError, match="is a pointer of Git LFS, not the weights"):
        load_dit_checkpoint(tmp_path / "pointer.pt")
    with (tmp_path / "list.pt").open("wb") as file:
        pickle.dump([1], file)
    with pytest.raises(ExportError, match=r"list\.pt"):
        load_dit_checkpoint(tmp_path / "list.pt")


# --- what it predicts


def settings(**values: Any) -> argparse.Namespace:
    usual = {"data_path": "/data", "model": "DiT-S/2", "image_size": 64, "num_classes": 7}
    return argparse.Namespace(**{**usual, **values})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"args": settings(prediction="velocity", path_type="Linear")}, "prediction='velocity'"),
        ({"args": settings(path_type="VP", prediction="noise")}, "path_type='VP', expected a DDPM"),
        ({"args": settings(model="SiT-S/2")}, "model='SiT-S/2', expected a DiT"),
        ({"args": {"model": "LightningDiT-XL/1"}}, "model='LightningDiT-XL/1', expected a DiT"),
        ({"config": {"transport": {"path_type": "Linear"}}}, "path_type='Linear'"),
        ({"hyper_parameters": {"objective": "pred_v"}}, "objective='pred_v'"),
        ({"args": settings(predict_xstart=True)}, "predict_xstart=True"),
        ({"args": settings(noise_schedule="squaredcos_cap_v2")}, "expected 'linear'"),
        ({"args": settings(diffusion_steps=4000)}, "diffusion_steps=4000, expected 1000"),
        ({"args": settings(model="DiT-XL/2")}, "but its tensors are those of a DiT-S/2"),
        ({"args": settings(model="DiT-S/4")}, "but its tensors are those of a DiT-S/2"),
        # Whatever the settings are called, and however a command line was stored.
        ({"opts": settings(prediction="velocity")}, "prediction='velocity'"),
        ({"transport": {"path_type": "Linear"}}, "path_type='Linear'"),
        ({"prediction": "velocity"}, "prediction='velocity'"),
        ({"meta": [{"train": {"prediction": "v"}}]}, "prediction='v'"),
        ({"args": "train.py --model SiT-S/2 --prediction velocity"}, "model='SiT-S/2'"),
        ({"args": ["--path-type=Linear", "--lr", "1e-4"]}, "path_type='Linear'"),
        ({"argv": ("--prediction", "velocity")}, "prediction='velocity'"),
        ({"args": settings(zero_snr=True)}, "zero_snr=True"),
    ],
)
def test_settings_of_another_kind_of_model_are_refused_by_name(
    stated: dict[str, Any], message: str, weights: State, tmp_path: Path
) -> None:
    path = saved({"ema": weights, **stated}, tmp_path / "0400000.pt")
    for by_user in (False, True):
        with pytest.raises(ExportError, match=message):
            load_dit_checkpoint(path, stated=by_user)


def test_settings_of_a_dit_leave_nothing_to_assume(weights: State, tmp_path: Path) -> None:
    path = saved({"ema": weights, "args": settings(learn_sigma=True)}, tmp_path / "0400000.pt")
    assert load_dit_checkpoint(path)[1] == [BLOCKS]


def test_what_a_bare_state_dict_is_taken_for_is_said_unless_stated(
    weights: State, tmp_path: Path
) -> None:
    path = saved(weights, tmp_path / "transition.pt")  # not a SiT
    blocks, rows, assumed = load_dit_checkpoint(path)[1]
    assert (blocks, rows) == (BLOCKS, ROWS)
    assert assumed.startswith(ASSUMED)
    assert load_dit_checkpoint(path, stated=True)[1] == [BLOCKS, ROWS]


@pytest.mark.parametrize(
    "name", ["SiT-XL-2-256x256.pt", "repa_last.pt", "000-SiT-XL-2-Linear-velocity/checkpoints/1.pt"]
)
def test_a_path_that_names_another_model_is_refused_unless_stated(
    name: str, weights: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    path = saved(weights, tmp_path / name)
    with pytest.raises(ExportError, match="State it: --base dit if it predicts the noise"):
        load_dit_checkpoint(path)
    assert load_dit_checkpoint(path, stated=True)[1] == [BLOCKS, ROWS]


def test_the_command_takes_the_statement_and_prints_what_is_assumed(
    weights: State, tmp_path: Path, random_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> Any:
        raise ExportError("as planned")

    monkeypatch.setattr(exporter, "export_bundle", stops)
    path = saved(weights, tmp_path / "SiT.pt")
    vae = random_pipeline / "vae"
    command = ("export", path, tmp_path / "bundle", "--vae", vae)
    assert "the path has 'SiT' in it" in fails(run(*command))
    stated = run(*command, "--base", "dit")
    assert f"note: SiT.pt: {BLOCKS}" in stated.stderr
    assert "error: as planned" in stated.stderr
    assert run(*command, "--base", "unet").exit_code == 2


def test_settings_may_state_the_heads_of_another_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dit = OriginalDiT(width=96, heads=3).eval()
    stated = {"model": dit.state_dict(), "args": settings(num_heads=3, model="DiT-digits")}
    assert is_the_network(saved(stated, tmp_path / "stated.pt"), dit)
    for heads, message in (
        (None, "args=argparse.Namespace"),
        (5, "num_heads=5"),
        (0, "num_heads=0"),
    ):
        held = {**stated, "args": settings(**({} if heads is None else {"num_heads": heads}))}
        with pytest.raises(ExportError, match=message):
            load_dit_checkpoint(saved(held, tmp_path / "other.pt"))


# --- the null class


@pytest.mark.parametrize(
    ("rows", "args", "message"),
    [
        (10, None, "10 rows, taken to be 10 classes without a null class"),
        (1, None, "1 rows, taken to be 1 classes without a null class"),
        (7, settings(), "7 rows for 7 classes, so there is no null class"),
        (8, settings(class_dropout_prob=0.0), "class_dropout_prob=0, so it has no trained null"),
        (8, settings(cfg_prob=0), "cfg_prob=0, so it has no trained null"),
        (8, settings(label_dropout_prob=0.0), "label_dropout_prob=0, so it has no trained null"),
        (5, settings(), "5 rows, but its training settings have num_classes=7, expected 8"),
    ],
)
def test_a_label_table_without_a_null_class_is_refused(
    rows: int, args: argparse.Namespace | None, message: str, weights: State, tmp_path: Path
) -> None:
    weights[TABLE] = torch.randn(rows, 384)
    path = saved({"ema": weights, **({"args": args} if args else {})}, tmp_path / "model.pt")
    with pytest.raises(ExportError, match=message):
        load_dit_checkpoint(path)


@pytest.mark.parametrize(("rows", "args"), [(11, None), (10, settings(num_classes=9))])
def test_the_last_row_of_a_label_table_is_the_null_class(
    rows: int, args: argparse.Namespace | None, weights: State, tmp_path: Path
) -> None:
    weights[TABLE] = torch.randn(rows, 384)
    path = saved({"ema": weights, **({"args": args} if args else {})}, tmp_path / "model.pt")
    transformer, notes = load_dit_checkpoint(path)
    assert transformer.config.num_embeds_ada_norm == rows - 1
    assert not any("how many classes" in note for note in notes)


# --- the position embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sine_table_is_recognised_in_every_precision(
    dtype: torch.dtype, weights: State, tmp_path: Path
) -> None:
    path = saved({name: tensor.to(dtype) for name, tensor in weights.items()}, tmp_path / "dit.pt")
    transformer, notes = load_dit_checkpoint(path, stated=True)
    assert notes == [BLOCKS, ROWS]
    assert torch.equal(
        transformer.pos_embed.proj.weight, weights["x_embedder.proj.weight"].to(dtype).float()
    )


def test_a_position_embedding_of_the_files_own_is_used_and_is_part_of_the_identity(
    weights: State, tmp_path: Path, random_pipeline: Path
) -> None:
    vae = str(random_pipeline / "vae")
    plain = load_model(str(saved(weights, tmp_path / "plain.pt")), ModelOptions(vae=vae))
    weights["pos_embed"] += 0.5 * torch.randn_like(weights["pos_embed"])
    path = saved(weights, tmp_path / "learned.pt")
    own = OriginalDiT()
    own.load_state_dict(weights)
    assert is_the_network(path, own.eval())
    learned = load_model(str(path), ModelOptions(vae=vae))
    assert any("is not the sine table" in note for note in learned.notes)
    assert weights_sha256(learned) != weights_sha256(plain)
