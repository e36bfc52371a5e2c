"""The weights of a network within what trainers write, and of those the averaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diver_trt.models.dit_checkpoint import load_dit_checkpoint
from tests.models.conftest import ASSUMED, BLOCKS, ROWS, State, is_the_network, saved, under
from tests.models.original_dit import OriginalDiT

ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("wrap", "noted"),
    [
        (lambda s, _: s, []),
        (lambda s, z: {"model": z, "ema": s, "opt": {}, "step": torch.tensor(5)}, []),
        (lambda s, z: {"model": under("module.", z), "ema": under("module.", s)}, ["'module.'"]),
        (lambda s, _: {"model": under("_orig_mod.", s)}, ["'_orig_mod.'"]),
        (lambda s, _: {"ema": under("module._orig_mod.", s)}, ["'module._orig_mod.'"]),
        (lambda s, _: {"ema": {"state_dict": s, "decay": 0.9999}}, []),
        (lambda s, _: {"state_dict": under("model.", s), "epoch": 3}, ["'model.'"]),
        (
            lambda s, z: {"state_dict": {**under("model.", z), **under("ema.", s)}},
            ["prefix 'ema.' is taken off"],
        ),
        (
            lambda s, _: {"model": s, "ema": None},
            ["its ema is empty; the weights under model, not"],
        ),
        (lambda s, _: {"model": s, "ema": {}}, ["its ema is empty; the weights under model, not"]),
        # Names that other trainers give to averaged weights, and to what is around a network.
        (
            lambda s, z: {"state_dict": z, "state_dict_ema": s},
            ["the weights under state_dict_ema are"],
        ),
        (lambda s, z: {"params": z, "params_ema": s}, ["the weights under params_ema are read"]),
        (lambda s, z: {"net": z, "ema": {"shadow": s}}, ["the weights under ema.shadow are read"]),
        (lambda s, z: {"model": z, "averaged": {"module": s}}, ["under averaged.module are read"]),
        (lambda s, z: {"model": z, "avg_model": s}, ["the weights under avg_model are read"]),
        (lambda s, z: {"model": z, "polyak": {"net": s}}, ["under polyak.net are read"]),
        (lambda s, _: {"model": s, "avg_loss": [], "loss_avg": None}, []),
        (lambda s, _: {"mine": {"weights": s}}, ["the weights under mine.weights are read"]),
        (
            lambda s, _: {"state_dict": under("model.diffusion_model.", s)},
            ["'model.diffusion_model.'"],
        ),
        (lambda s, _: {"model": s, "ema_decay": 0.9999, "use_ema": True}, []),
        # torch.optim.swa_utils.AveragedModel
        (
            lambda s, z: {"model": z, "ema": {"n_averaged": torch.tensor(4)} | under("module.", s)},
            ["its counters are left out: n_averaged", "'module.'"],
        ),
        # https://github.com/lucidrains/ema-pytorch
        (
            lambda s, z: {
                "initted": torch.tensor([True]),
                "step": torch.tensor(3),
                **under("online_model.", z),
                **under("ema_model.", s),
            },
            ["its counters are left out: initted, step", "'ema_model.'"],
        ),
        (lambda s, _: {"model": s, "ema": {"shadow": ITSELF}}, []),
        # Names of weights that are not averaged
        (lambda s, z: {"model": s, "model_no_ema": z}, []),
        (lambda s, z: {"model": s, "non_ema": z, "ema": None}, ["its ema is empty"]),
        (lambda s, z: {"weights-without-ema": z, "ema_weights": s}, ["under ema_weights are read"]),
    ],
)
def test_the_right_weights_are_found_in_what_trainers_write(
    wrap: Callable[[State, State], Any],
    noted: list[str],
    dit: OriginalDiT,
    weights: State,
    tmp_path: Path,
) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    path = saved(wrap(weights, zeros), tmp_path / "0400000.pt")
    assert is_the_network(path, dit)
    _, notes = load_dit_checkpoint(path)
    own = [text for text in notes if text not in (BLOCKS, ROWS) and not text.startswith(ASSUMED)]
    assert len(own) == len(noted)
    assert all(part in text for part, text in zip(noted, own, strict=True))


def test_a_container_that_is_referred_to_again_and_again_is_read_once(
    dit: OriginalDiT, weights: State, tmp_path: Path
) -> None:
    """A thousand references on each of six levels, or 10^18 ways through one small file."""
    lists: Any = []
    mappings: Any = {}
    for _ in range(6):
        lists = [lists] * 1000
        mappings = dict.fromkeys(map(str, range(1000)), mappings)
    held = {"model": weights, "args": lists, "history": mappings, "ema": {"shadow": lists}}
    assert is_the_network(saved(held, tmp_path / "0400000.pt"), dit)


def test_a_network_from_before_any_training_is_noted(weights: State, tmp_path: Path) -> None:
    note = "its final layer is zero throughout, as before any training"
    assert note not in load_dit_checkpoint(saved(weights, tmp_path / "a.pt"))[1]
    weights["final_layer.linear.weight"].zero_()
    assert note in load_dit_checkpoint(saved(weights, tmp_path / "b.pt"))[1]
