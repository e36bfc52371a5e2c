"""Scheduler configurations: the chain is diffusers' own, or the field is named."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diver_trt.bundle import Bundle
from diver_trt.documents import Document
from diver_trt.errors import BundleError, ExportError, RecipeError
from diver_trt.method.ddpm import Ddpm
from diver_trt.method.schedule import Schedule
from diver_trt.models.scheduler import CHAINS, ddpm_process
from diver_trt.recipe import Recipe
from diver_trt.structs import dump

# facebook/DiT-XL-2-256's, as diffusers writes it.
PUBLISHED: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "trained_betas": None,
}


def read(kind: str = "DDIMScheduler", **fields: Any) -> tuple[Ddpm, list[str]]:
    config = {**PUBLISHED, "_class_name": kind, **fields}
    return ddpm_process(config, kind, "scheduler_config.json", learned_variance=True)


def test_the_published_dit_needs_no_note() -> None:
    schedule, notes = read()
    assert notes == []
    assert schedule == Ddpm(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=1000
    )


TRAINED = [round(1e-4 + 2e-5 * i**0.9, 9) for i in range(1000)]


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale_betas_zero_snr": True},
        {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": TRAINED},
        {"num_train_timesteps": 100},
    ],
)
def test_a_step_is_that_of_diffusers_own_scheduler(fields: dict[str, Any]) -> None:
    schedule, notes = read(**fields)
    theirs = diffusers.DDIMScheduler(**{**PUBLISHED, **fields})
    assert notes == []
    assert schedule.alphas_cumprod() == pytest.approx(theirs.alphas_cumprod.numpy(), abs=1e-6)
    theirs.set_timesteps(50)
    assert theirs.timesteps.tolist() == schedule.times(50)[::-1].tolist()
    latent, noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    a, b = schedule.coefficients(50)
    for k, timestep in zip(range(49, -1, -1), theirs.timesteps, strict=True):
        step = theirs.step(torch.from_numpy(noise), timestep, torch.from_numpy(latent))
        assert a[k] * latent + b[k] * noise == pytest.approx(step.prev_sample.numpy(), abs=2e-5)


def test_the_chains_of_other_schedulers_are_those_that_diffusers_computes() -> None:
    schedule, _ = read("DDPMScheduler", beta_schedule="sigmoid")
    theirs = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    assert schedule.alphas_cumprod() == pytest.approx(theirs.alphas_cumprod.numpy(), abs=1e-6)
    for kind, defaults in CHAINS.items():
        parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
        if "beta_start" in parameters:  # else it stands for a package that is not installed
            named = ("beta_start", "beta_end", "beta_schedule")
            assert tuple(parameters[name].default for name in named) == defaults, kind


def test_what_a_scheduler_would_do_otherwise_is_noted() -> None:
    assert "clip_sample, which" in read(clip_sample=True)[1][0]
    assert "thresholding, which" in read(thresholding=True)[1][0]
    (steps,) = read(set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing")[1]
    assert "timestep_spacing=trailing, steps_offset=1, set_alpha_to_one=False; DIVER's own" in steps
    (solver,) = read("DPMSolverMultistepScheduler", use_karras_sigmas=True)[1]
    assert (
        solver
        == "of its DPMSolverMultistepScheduler only the betas are used; DIVER samples with DDIM"
    )


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("PNDMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, []),
        ("DDIMScheduler", {"clip_sample": True}, []),  # the pipeline sets it to false
        ("DDIMScheduler", {"thresholding": True}, ["its scheduler sets thresholding, which"]),
        ("PNDMScheduler", {"timestep_spacing": "trailing"}, ["its scheduler sets timestep_spac"]),
        ("EulerDiscreteScheduler", {}, ["of its EulerDiscreteScheduler only the betas are used"]),
    ],
)
def test_what_is_set_aside_is_noted_where_the_schedulers_own_steps_are_read(
    kind: str, fields: dict[str, Any], expected: list[str]
) -> None:
    _, notes = ddpm_process(fields, kind, "there", learned_variance=False, own_steps=True)
    assert len(notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(notes, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("DDIMScheduler", {"prediction_type": "v_prediction"}, "predicts 'v_prediction', expected"),
        ("DDIMScheduler", {"prediction_type": "sample"}, "predicts 'sample', expected the noise"),
        ("FlowMatchEulerDiscreteScheduler", {}, "the scheduler is FlowMatchEulerDiscreteScheduler"),
        ("EDMEulerScheduler", {}, "the scheduler is EDMEulerScheduler"),
        ("DDIMScheduler", {"_class_name": ["DDIM"]}, r"the scheduler is \['DDIM'\], expected one"),
        ("DDIMScheduler", {"_class_name": "CMStochasticIterativeScheduler"}, "CMStochastic"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is set"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type is 'learned', expected"),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "the beta schedule is 'laplace', expected"),
        (
            "DDIMScheduler",
            {"trained_betas": [0.1, 0.2]},
            "trained_betas has 2 values, expected one",
        ),
        ("DDIMScheduler", {"trained_betas": [0.1] * 999 + [2]}, "not all between 0 and 1"),
        ("DDIMScheduler", {"beta_start": 0.5}, "betas run from 0.5 to 0.02, expected"),
        ("DDIMScheduler", {"beta_end": None}, "betas run from 0.0001 to None, expected"),
        ("DDIMScheduler", {"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'"),
    ],
)
def test_other_chains_are_refused_by_name(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read(kind, **fields)


@pytest.mark.parametrize(
    "field", ["rescale_betas_zero_snr", "use_flow_sigmas", "clip_sample", "thresholding"]
)
def test_a_switch_that_is_neither_true_nor_false_is_refused(field: str) -> None:
    with pytest.raises(ExportError, match=f"{field} is 'false', expected true or false"):
        read(**{field: "false"})


def test_a_field_that_the_scheduler_does_not_have_is_noted() -> None:
    (note,) = read(flow_shift=3.0, base_shift=None)[1]
    assert note == "scheduler_config.json: DDIMScheduler does not have flow_shift=3.0; ignored"


def test_listed_betas_come_back_from_a_bundle(random_bundle: Bundle, tmp_path: Path) -> None:
    process, _ = read(rescale_betas_zero_snr=True)
    for network in random_bundle.networks.values():
        for record in network.files:
            shutil.copy(random_bundle.path / record.name, tmp_path)
    manifest = json.loads((random_bundle.path / "bundle.json").read_text())
    assert "betas" not in manifest["process"]
    (tmp_path / "bundle.json").write_text(json.dumps({**manifest, "process": dump(process)}))
    assert Bundle.open(tmp_path).process == process


@pytest.mark.parametrize("betas", [[], [0.1], [0.1, 0], [1, 0.5], [0.1, "a"], [0.1, float("nan")]])
def test_hostile_betas_of_a_bundle_are_refused(betas: list[Any]) -> None:
    chain = {"beta_start": 0.1, "beta_end": 0.5, "train_timesteps": 2}
    fields = {"kind": "ddpm", "beta_schedule": "listed", **chain, "betas": betas}
    document = Document(fields, "bundle.json", BundleError)
    with pytest.raises(BundleError, match=r"bundle\.json: betas(\[1\])?: found .*, expected"):
        document.load(Ddpm)


@pytest.mark.parametrize(
    "fields",
    [
        {"beta_schedule": "linear", "betas": [0.1, 0.5]},
        {"beta_schedule": "listed"},
        {"beta_schedule": "listed", "betas": [0.1, 0.4]},
        {"beta_schedule": "listed", "betas": [0.1, 0.2, 0.5]},
    ],
)
def test_betas_that_contradict_the_other_fields_are_refused(fields: dict[str, Any]) -> None:
    chain = {"kind": "ddpm", "beta_start": 0.1, "beta_end": 0.5, "train_timesteps": 2}
    document = Document({**chain, **fields}, "bundle.json", BundleError)
    with pytest.raises(BundleError, match=r"bundle\.json: (betas|train_timesteps): .*expected"):
        document.load(Ddpm)


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (read(rescale_betas_zero_snr=True)[0], 1000, "at timestep 999 .* keeps no signal"),
        (Ddpm.listed([0.999] * 1000), 50, "keeps no signal; use fewer steps than 50"),
        (Ddpm.listed([1e-300] * 1000), 50, "has steps that add no noise"),
    ],
)
def test_a_chain_without_signal_or_noise_is_refused_before_numpy_warns(
    schedule: Ddpm, steps: int, message: str, digits: Bundle
) -> None:
    recipe = Recipe(steps=steps, inherit_step=25, start_step=50, window=(40, 25))
    with pytest.raises(RecipeError, match=message):
        Schedule(schedule, recipe, digits.layout)
