"""Averaged weights as torch and ema-pytorch store them, with their counters beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diver_trt.errors import ExportError
from diver_trt.models.dit_checkpoint import load_dit_checkpoint
from tests.models.original_dit import OriginalDiT

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return OriginalDiT().state_dict()


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def loaded(held: Any, path: Path) -> tuple[Tensor, list[str]]:
    """Return the final layer's weight that is read, and the notes."""
    torch.save(held, path)
    transformer, notes = load_dit_checkpoint(path, stated=True)
    return transformer.proj_out_2.weight, notes


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        # torch.optim.swa_utils.AveragedModel
        (
            lambda s, z: {
                "model": z,
                "ema": {"n_averaged": torch.tensor(4), **under("module.", s)},
            },
            "its counters are left out: n_averaged",
        ),
        # https://github.com/lucidrains/ema-pytorch
        (
            lambda s, z: {
                "initted": torch.tensor([True]),
                "step": torch.tensor(3),
                **under("online_model.", z),
                **under("ema_model.", s),
            },
            "its counters are left out: initted, step",
        ),
        # Names of weights that are not averaged
        (lambda s, z: {"model": s, "model_no_ema": z}, None),
        (lambda s, z: {"model": s, "non_ema": z, "ema": None}, "its ema is empty"),
        (lambda s, z: {"weights-without-ema": z, "ema_weights": s}, "under ema_weights are read"),
    ],
)
def test_the_averaged_weights_are_read(
    wrap: Callable[[State, State], Any], note: str | None, state: State, tmp_path: Path
) -> None:
    other = {name: tensor + 1 for name, tensor in state.items()}
    weight, notes = loaded(wrap(state, other), tmp_path / "a.pt")
    assert torch.equal(weight, state["final_layer.linear.weight"])
    assert note is None or any(note in text for text in notes)


def test_a_weight_of_one_value_is_still_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="1 unexpected \\(temperature\\)"):
        loaded({**state, "temperature": torch.tensor(0.1)}, tmp_path / "a.pt")


def test_a_network_from_before_any_training_is_noted(state: State, tmp_path: Path) -> None:
    note = "its final layer is zero throughout, as before any training"
    assert note not in loaded(state, tmp_path / "a.pt")[1]
    begun = {**state, "final_layer.linear.weight": state["final_layer.linear.weight"] * 0}
    assert note in loaded(begun, tmp_path / "b.pt")[1]
