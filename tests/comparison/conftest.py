"""A reference run of the digits in torch, shared by what is held against it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import Inputs, distilled_inputs
from diver_trt.comparison.lineup import bundle_participant, torch_participant
from diver_trt.comparison.runs import Participant, record
from diver_trt.comparison.verdict import Comparison, Reference, compare_engine
from diver_trt.export.checkpoint import Model, load_model
from diver_trt.recipe import Recipe
from tests.conftest import DIGITS_MODEL

BATCH = 10


@pytest.fixture(scope="session")
def digits_model() -> Model:
    return load_model(str(DIGITS_MODEL))


@pytest.fixture(scope="session")
def digits_fp16(export_to: Callable[..., Bundle]) -> Bundle:
    return export_to(DIGITS_MODEL, "fp16")


@pytest.fixture(scope="session")
def inputs(digits: Bundle) -> Inputs:
    return distilled_inputs(digits, 10)


@pytest.fixture(scope="session")
def reference(digits: Bundle, digits_model: Model, inputs: Inputs) -> Reference:
    participant = torch_participant(digits_model, digits, BATCH, "fp32")
    return Reference(participant, record(participant, inputs, Recipe()), participant.probe())


@pytest.fixture(scope="session")
def held_against_torch(
    reference: Reference, inputs: Inputs
) -> Callable[[Bundle | Participant], Comparison]:
    """Compare a bundle on ONNX Runtime, or any participant, by the paper's recipe."""

    def hold(one: Bundle | Participant) -> Comparison:
        participant = (
            bundle_participant("onnx", "onnx", one, BATCH) if isinstance(one, Bundle) else one
        )
        return compare_engine(reference, participant, inputs, Recipe())

    return hold
