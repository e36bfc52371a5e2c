"""The DDPM chain of a diffusers scheduler: which fields are honoured, noted or refused.

    field                                       what is done
    num_train_timesteps, beta_start, beta_end   honoured
    beta_schedule                               honoured: linear, scaled_linear, squaredcos_cap_v2,
                                                sigmoid
    trained_betas, rescale_betas_zero_snr       honoured
    prediction_type                             refused unless epsilon
    use_flow_sigmas                             refused if set
    variance_type                               learned is refused (DiT's learned_range is read by
                                                the step); a fixed one has no effect on a DDIM step
    clip_sample, thresholding                   noted if set: DIVER does not clip the prediction
    timestep_spacing, steps_offset,             noted where they differ from DIVER's own steps
    set_alpha_to_one                            (leading, 0, true): they choose the sampler's
                                                timesteps, not the chain that was trained. Stable
                                                Diffusion's own steps are read by its loader
    clip_sample_range, sample_max_value,        no effect without the two above
    dynamic_thresholding_ratio

The schedulers of `CHAINS` differ in how they sample; of any but DDIM and DDPM only the betas are
read, with a note. Others (flow matching, EDM, consistency models) have no betas and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DDPMScheduler

from diver_trt.errors import ExportError, shown
from diver_trt.method.ddpm import MAX_TIMESTEPS, Ddpm
from diver_trt.models.model_files import one_line
from diver_trt.models.pipeline import unknown_fields

# beta_start, beta_end and beta_schedule of diffusers' classes where they are not given
_DDPM = (1e-4, 0.02, "linear")
_LATENT = (0.00085, 0.012, "linear")
_LATENT_SCALED = (0.00085, 0.012, "scaled_linear")

CHAINS: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(
        (
            *("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"),
            *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
            *("LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
            *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
            *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
            "DPMSolverMultistepInverseScheduler",
        ),
        _DDPM,
    ),
    **dict.fromkeys(
        (
            *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
            "DPMSolverSDEScheduler",
        ),
        _LATENT,
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _LATENT_SCALED),
}
"""Schedulers over a DDPM chain: beta_start, beta_end and beta_schedule where a configuration omits
them.
"""

LISTED_SCHEDULES = ("squaredcos_cap_v2", "sigmoid")
_FAMILY = ("DDIM", "DDPM")  # beginnings of the classes whose own steps are compared with DIVER's


def ddpm_process(
    config: Mapping[str, Any],
    kind: str,
    where: str,
    *,
    learned_variance: bool,
    own_steps: bool = False,
) -> tuple[Ddpm, list[str]]:
    """Return the betas of a scheduler, and notes on what is set aside.

    Args:
        config: Its `scheduler_config.json`.
        kind: Its class by `model_index.json`.
        where: The file, as messages name it.
        learned_variance: Whether the network predicts a variance beside the noise.
        own_steps: Whether the caller reads the scheduler's own steps, which then are not noted.

    Raises:
        ExportError: If it has no DDPM chain, or its model predicts something else than the noise.
    """
    _require_ddpm(config, kind, where, learned_variance=learned_variance)
    start, end, beta_schedule = CHAINS[kind]
    chain = {
        "beta_start": config.get("beta_start", start),
        "beta_end": config.get("beta_end", end),
        "beta_schedule": config.get("beta_schedule", beta_schedule),
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "trained_betas": config.get("trained_betas"),
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr") or False,
    }
    # Solvers load the configuration of a DDIM or DDPM scheduler and ignore its own fields.
    shared = {*signature(DDIMScheduler).parameters, *signature(DDPMScheduler).parameters}
    own = {name: value for name, value in config.items() if name not in shared}
    notes = _notes(config, kind, own_steps=own_steps) + unknown_fields(
        getattr(diffusers, kind), own, where
    )
    return _chain(chain, where), notes


def _require_ddpm(
    config: Mapping[str, Any], kind: str, where: str, *, learned_variance: bool
) -> None:
    """Refuse a scheduler without a DDPM chain, or whose model predicts something else."""
    # model_index.json and the configuration may name different classes, if a user swapped them.
    for name in (kind, str(config.get("_class_name", kind))):
        if name not in CHAINS:
            raise ExportError(
                f"{where}: the scheduler is {shown(name)}, expected one over a DDPM chain, "
                "such as DDIMScheduler: DIVER's equations are for models that predict its noise. "
                "Export such a model."
            )
    if (predicted := config.get("prediction_type", "epsilon")) != "epsilon":
        raise ExportError(
            f"{where}: the model predicts {shown(repr(predicted))}, expected the noise "
            "('epsilon'), which DIVER's equations are for. Export such a model."
        )
    for field in ("rescale_betas_zero_snr", "use_flow_sigmas", "clip_sample", "thresholding"):
        if not isinstance(value := config.get(field), (bool, type(None))):
            raise ExportError(f"{where}: {field} is {shown(repr(value))}, expected true or false")
    if config.get("use_flow_sigmas"):
        raise ExportError(
            f"{where}: use_flow_sigmas is set, expected a DDPM chain, not a flow. Export such a "
            "model."
        )
    if learned_variance and config.get("variance_type") == "learned":
        raise ExportError(
            f"{where}: variance_type is 'learned', expected 'learned_range' as in DiT: the model "
            "predicts a position between two bounds. Export such a model."
        )


def _chain(chain: dict[str, Any], where: str) -> Ddpm:
    _check_chain(chain, where)
    plain = chain["trained_betas"] is None and not chain["rescale_betas_zero_snr"]
    if plain and (kind := chain["beta_schedule"]) not in LISTED_SCHEDULES:
        return Ddpm(
            beta_schedule="linear" if kind == "linear" else "scaled_linear",
            beta_start=chain["beta_start"],
            beta_end=chain["beta_end"],
            train_timesteps=chain["num_train_timesteps"],
        )
    # Computed by diffusers, since trainers used its formulas: cosine betas differ between papers.
    try:
        betas = DDPMScheduler(**chain).betas.double().tolist()
    except Exception as cause:  # an older diffusers without one of the fields
        raise ExportError(
            f"{where}: diffusers cannot compute its betas: {one_line(cause)}"
        ) from cause
    # Zero terminal SNR ends with a beta of 1.
    if not all(_is_fraction(beta) for beta in betas[:-1]) or not 0 < betas[-1] <= 1:
        raise ExportError(f"{where}: its betas are not all between 0 and 1")
    return Ddpm.listed(betas)


def _check_chain(chain: dict[str, Any], where: str) -> None:
    """Check the fields that the betas are computed from.

    Raises:
        ExportError: If one is out of range, or they contradict each other.
    """
    timesteps, kind, trained = (
        chain[key] for key in ("num_train_timesteps", "beta_schedule", "trained_betas")
    )
    # `type`, since True is an instance of int.
    if type(timesteps) is not int or not 2 <= timesteps <= MAX_TIMESTEPS:
        raise ExportError(
            f"{where}: num_train_timesteps is {shown(repr(timesteps))}, expected 2 to "
            f"{MAX_TIMESTEPS:,}"
        )
    if trained is not None:
        if not isinstance(trained, list) or len(trained) != timesteps:
            found = len(trained) if isinstance(trained, list) else type(trained).__name__
            raise ExportError(
                f"{where}: trained_betas has {found} values, expected one for each of {timesteps} "
                "training timesteps"
            )
        if not all(_is_fraction(beta) for beta in trained):
            raise ExportError(f"{where}: trained_betas are not all between 0 and 1")
    elif kind not in ("linear", "scaled_linear", *LISTED_SCHEDULES):
        raise ExportError(
            f"{where}: the beta schedule is {shown(repr(kind))}, expected one of linear, "
            f"scaled_linear, {', '.join(LISTED_SCHEDULES)}"
        )
    start, end = chain["beta_start"], chain["beta_end"]
    if not (_is_fraction(start) and _is_fraction(end) and start <= end):
        raise ExportError(
            f"{where}: betas run from {shown(repr(start))} to {shown(repr(end))}, expected "
            "0 < beta_start <= beta_end < 1"
        )


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1


def _notes(config: Mapping[str, Any], kind: str, *, own_steps: bool) -> list[str]:
    """Return what the scheduler would do otherwise than DIVER."""
    notes = []
    if not kind.startswith((*_FAMILY, "PNDM") if own_steps else _FAMILY):
        notes.append(f"of its {kind} only the betas are used; DIVER samples with DDIM")
        if not own_steps:
            return notes
    # Where the configuration omits a field, diffusers' default counts. The pipelines whose steps
    # are read set clip_sample to false by themselves.
    clips = {
        "clip_sample": config.get("clip_sample", True) and not own_steps,
        "thresholding": config.get("thresholding", False),
    }
    if set_ones := [field for field, value in clips.items() if value]:
        notes.append(
            f"its scheduler sets {' and '.join(set_ones)}, which DIVER does not apply: it does not "
            "clip what the model predicts"
        )
    own: dict[str, Any] = {"timestep_spacing": "leading"}
    called = "leading"
    if not own_steps:
        own |= {"steps_offset": 0, "set_alpha_to_one": True}
        called = "leading, offset 0, last alpha 1"
    if others := [
        f"{field}={config[field]}"
        for field, value in own.items()
        if config.get(field, value) != value
    ]:
        notes.append(
            f"its scheduler sets {', '.join(others)}; DIVER's own steps are used instead ({called})"
        )
    return notes
