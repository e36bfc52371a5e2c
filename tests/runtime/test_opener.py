"""Opening a model in smaller batches where memory is short, on the engine that was chosen."""

from __future__ import annotations

import pytest

from diver_trt.bundle import Bundle
from diver_trt.errors import DeviceMemoryError
from diver_trt.recipe import Recipe
from diver_trt.runtime.backends import openvino
from diver_trt.runtime.engine import Opened, Placement
from diver_trt.runtime.opener import ModelOpener


@pytest.mark.filterwarnings("ignore:out of memory:RuntimeWarning")
@pytest.mark.parametrize("images", [None, 100])
def test_auto_halves_the_batch_on_the_engine_that_ran_out_of_memory(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, images: int | None
) -> None:
    opens = openvino.open_session

    def short(name: str, bundle: Bundle, placement: Placement) -> Opened:
        if placement.balanced_batch() > 2:
            raise DeviceMemoryError("as planned")
        return opens(name, bundle, placement)

    monkeypatch.setattr(openvino, "available", lambda *_: True)
    monkeypatch.setattr(openvino, "open_session", short)
    with ModelOpener(digits, Recipe(), Placement(batch=8, images=images)).open() as model:
        assert (model.engine, model.batch) == ("openvino", 2)
