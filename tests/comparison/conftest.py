"""Reference runs of the digits in torch, shared by what is compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from diver_trt.bundle import Bundle
from diver_trt.comparison.inputs import Inputs, distilled_inputs
from diver_trt.comparison.lineup import bundle_participant, torch_participant
from diver_trt.comparison.runs import Participant, Reference, record
from diver_trt.comparison.verdict import Comparison, compare_engine
from diver_trt.contract import NETWORKS
from diver_trt.models.dit import Dit, load_model
from diver_trt.recipe import Recipe
from tests.comparison.faults import FEW, plant, round_weights
from tests.conftest import DIGITS_MODEL

BEHIND = "so the fault lies behind the network: guidance"
SHORT = Recipe(steps=6, inherit_step=3, start_step=6, window=(5, 3))

Planted = Callable[..., Bundle]
"""The fixture `planted`."""


def first(inputs: Inputs, n: int) -> Inputs:
    return replace(
        inputs,
        keys=inputs.keys[:n],
        labels=inputs.labels[:n],
        images=inputs.images[:n],
        noise=inputs.noise[:n],
    )


@dataclass(frozen=True)
class Held:
    """A reference run in torch by the paper's recipe.

    Calling it compares a bundle on ONNX Runtime, or any participant, with the reference.
    """

    reference: Reference
    inputs: Inputs

    def __call__(self, one: Bundle | Participant) -> Comparison:
        batch = len(self.inputs)
        found = bundle_participant("onnx", "onnx", one, batch) if isinstance(one, Bundle) else one
        return compare_engine(self.reference, found, self.inputs, Recipe())


def held(model: Dit, digits: Bundle, inputs: Inputs) -> Held:
    participant = torch_participant(model, digits, len(inputs), "fp32")
    recording = record(participant, inputs, Recipe())
    return Held(Reference(participant, recording, participant.probe()), inputs)


@pytest.fixture(scope="session")
def digits_model() -> Dit:
    return load_model(str(DIGITS_MODEL))


@pytest.fixture(scope="session")
def digits_fp16(export_to: Callable[..., Bundle]) -> Bundle:
    return export_to(DIGITS_MODEL, "fp16")


@pytest.fixture(scope="session")
def inputs(digits: Bundle) -> Inputs:
    return distilled_inputs(digits, 10)


@pytest.fixture(scope="session")
def ten(digits_model: Dit, digits: Bundle, inputs: Inputs) -> Held:
    """Ten images, for correct engines."""
    return held(digits_model, digits, inputs)


@pytest.fixture(scope="session")
def few(digits_model: Dit, digits: Bundle, inputs: Inputs) -> Held:
    """Three images, enough to locate a planted fault."""
    return held(digits_model, digits, first(inputs, FEW))


@pytest.fixture(scope="session")
def rounded(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits with the weights of an fp16 bundle, and computation in float32."""
    folder = tmp_path_factory.mktemp("bundles") / "rounded"
    return plant(digits, folder, dict.fromkeys(NETWORKS, round_weights))


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Return a copy of a bundle with edited graphs: `planted(digits, denoiser=edit)`."""

    def make(bundle: Bundle, **edits: Callable[[Any], None]) -> Bundle:
        return plant(bundle, tmp_path / "planted", edits)

    return make


@pytest.fixture
def bundles(digits: Bundle, rounded: Bundle) -> dict[str, Bundle]:
    return {"fp32": digits, "fp16": rounded}


def failed(comparison: Comparison) -> set[str]:
    assert comparison.verdict == "failed"
    return {check.subject for check in comparison.checks if not check.passed}
